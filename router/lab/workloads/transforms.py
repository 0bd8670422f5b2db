"""A workload made of others: played faster, cut short, dealt to other clients. The originals stay as they are."""

import dataclasses
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import overload

from router.lab.workload import UNIT_BYTES, Request, Workload, WorkloadError


def faster(workload: Workload, rate: float) -> Workload:
    """Played `rate` times as fast, pauses of closed loops included. Raises WorkloadError unless it is positive."""
    if not 0 < rate < float("inf"):
        raise WorkloadError(f"the rate factor should be more than 0, not {rate:g}")
    return dataclasses.replace(workload, requests=_View(workload.requests, rate=rate))


def first(workload: Workload, limit: int) -> Workload:
    """Its first `limit` requests. Raises WorkloadError unless that is at least 1."""
    if limit < 1:
        raise WorkloadError(f"the number of requests should be at least 1, not {limit}")
    if limit >= len(workload.requests):
        return workload
    return dataclasses.replace(workload, requests=_View(workload.requests, limit=limit))


def composed(prefixes: Workload, clients: Workload, seed: int = 0) -> Workload:
    """The requests of one workload dealt to the clients of another with that one's skew.

    A conversation stays with its client: a request whose prompt goes on from the whole prompt of an earlier one
    has the client of that one; any other draws, each client in proportion to its requests. Moments, lengths, and
    prefixes are those of `prefixes`, weights those of `clients`. No such traffic was ever seen, hence the name.
    """
    counts = dict.fromkeys(clients.clients, 0)
    for request in clients.requests:
        counts[request.client] += 1
    names = list(counts)
    chance = Random(f"{seed}/{prefixes.name}/{clients.name}")
    dealt = array("i", _deal(prefixes.requests, list(counts.values()), chance))
    view = _View(prefixes.requests, clients=_Dealt(dealt, names, clients.weights))
    name = f"composed({prefixes.name} dealt to the clients of {clients.name})"
    warnings = (*prefixes.warnings, *clients.warnings)
    return Workload(
        name, prefixes.block_tokens, view, clients.weights, clients.misbehaving, warnings, prefixes.served_names
    )


def _deal(requests: Sequence[Request], shares: list[int], chance: Random) -> Iterator[int]:
    """A client's number for each request."""
    owners = range(len(shares))
    owner_by_end: dict[int, int] = {}
    owner_by_session: dict[str, int] = {}
    for request in requests:
        units = array("Q", request.key)
        owner = None if request.session is None else owner_by_session.get(request.session)
        if owner is None:
            owner = next((owner_by_end[unit] for unit in reversed(units) if unit in owner_by_end), None)
        if owner is None:
            owner = chance.choices(owners, shares)[0]
        if len(request.key) > UNIT_BYTES:  # a single block is more likely a system prompt than a conversation
            owner_by_end.setdefault(units[-1], owner)
        if request.session is not None:
            owner_by_session.setdefault(request.session, owner)
        yield owner


@dataclass(frozen=True, slots=True)
class _Dealt:
    """Whose each request is."""

    numbers: Sequence[int]
    names: Sequence[str]
    weights: Mapping[str, float]


class _View(Sequence[Request]):
    """Requests of another sequence, changed as they are asked for."""

    __slots__ = ("_clients", "_length", "_rate", "_source")

    def __init__(
        self,
        source: Sequence[Request],
        *,
        rate: float = 1.0,
        limit: int | None = None,
        clients: _Dealt | None = None,
    ) -> None:
        self._source = source
        self._rate = rate
        self._length = len(source) if limit is None else min(limit, len(source))
        self._clients = clients

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Request: ...
    @overload
    def __getitem__(self, row: slice) -> list[Request]: ...
    def __getitem__(self, row: int | slice) -> Request | list[Request]:
        if isinstance(row, slice):
            return [self._request(each) for each in range(*row.indices(self._length))]
        if not -self._length <= row < self._length:
            raise IndexError(row)
        return self._request(row % self._length)

    def __iter__(self) -> Iterator[Request]:
        return map(self._request, range(self._length))

    def _request(self, row: int) -> Request:
        request = self._source[row]
        client, weight, after = request.client, request.weight, request.after
        if self._clients is not None:
            client = self._clients.names[self._clients.numbers[row]]
            weight = self._clients.weights[client]
        if after is not None:
            after = (after[0], after[1] / self._rate)
        return dataclasses.replace(request, at=request.at / self._rate, client=client, weight=weight, after=after)
