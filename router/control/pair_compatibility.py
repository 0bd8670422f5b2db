"""Can what this worker computes of a prompt be used by that one?

Connectors do not tell a gateway whom they understand, and two of their ways to fail are silent: a worker without
the other's connector computes the prompt again, and with other KV blocks than the other's it may answer from KV
that it has misread. So a pair is taken apart, and its request runs whole on one worker, where

- their metrics show KV blocks of different sizes, or NIXL on one side only;
- the decode worker has answered what it should have fetched with an error, while both of them serve: different
  models or versions, one that pushes beside one that pulls. Such a pair is tried again after a while, which
  doubles with each failure that follows.
"""

import logging
from dataclasses import dataclass
from typing import TypeVar

from policies.model import WorkerId
from workers.fleet.worker import Worker

_log = logging.getLogger("fairlead.gateway")

_APART_S = 10.0
_APART_MAX_S = 600.0
_REMEMBERED = 1000
"""Pairs; workers come and go."""

_Pair = tuple[WorkerId, WorkerId]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Failed:
    """A pair that has failed. `until`: when it may try again."""

    why: str
    apart_s: float
    until: float


class PairCompatibility:
    """What is known of pairs, `(prefill, decode)`. Times are the event loop's."""

    def __init__(self) -> None:
        self._failed: dict[_Pair, _Failed] = {}
        self._told: dict[_Pair, str] = {}

    def misfit(self, prefill: Worker, decode: Worker, now: float) -> str | None:
        """Why the two should not share a request now; None: nothing speaks against it."""
        pair = (prefill.id, decode.id)
        failed = self._failed.get(pair)
        why = _unlike(prefill, decode)
        if why is not None:
            self._tell(pair, why)
        elif failed is not None and now < failed.until:
            why = failed.why
        return why

    def failed(self, prefill: WorkerId, decode: WorkerId, why: str, now: float) -> None:
        """The decode worker could not go on, and nothing else is known to be wrong with either."""
        pair = (prefill, decode)
        before = self._failed.get(pair)
        if before is not None and now < before.until:
            return  # sent before the other one failed
        apart_s = min(2 * before.apart_s, _APART_MAX_S) if before is not None else _APART_S
        _put(self._failed, pair, _Failed(why, apart_s, now + apart_s))
        self._tell(pair, f"{why} (do they serve the same model, with the same vLLM and the same connector?)")

    def worked(self, prefill: WorkerId, decode: WorkerId) -> None:
        """One worker has gone on from what the other has computed."""
        self._failed.pop((prefill, decode), None)
        self._told.pop((prefill, decode), None)

    def _tell(self, pair: _Pair, why: str) -> None:
        if self._told.get(pair) != why:
            _put(self._told, pair, why)
            _log.warning(
                "%s cannot hand KV over to %s: %s; requests that they would share run whole on one worker",
                *pair,
                why,
            )


def _put(known: dict[_Pair, _T], pair: _Pair, what: _T) -> None:
    """Remember it, and forget the oldest."""
    known[pair] = what
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]


def _unlike(prefill: Worker, decode: Worker) -> str | None:
    """What their metrics say against it."""
    ours, theirs = prefill.scrape, decode.scrape
    if ours is None or theirs is None:
        return None
    if ours.nixl != theirs.nixl:
        with_nixl, without = ("the first", "the second") if ours.nixl else ("the second", "the first")
        return f"{with_nixl} has the NIXL connector, {without} has not"
    if ours.block_size and theirs.block_size and ours.block_size != theirs.block_size:
        return f"their KV blocks have {ours.block_size} and {theirs.block_size} tokens"
    return None
