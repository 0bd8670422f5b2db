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

from policies.model import WorkerId
from workers.bounds.backoff import Backoff
from workers.bounds.bounded_map import BoundedMap
from workers.bounds.log_limit import LogLimit
from workers.fleet.worker import Worker

_log = logging.getLogger("fairlead.gateway")

_APART = Backoff(first_s=10.0, longest_s=600.0)
_REMEMBERED = 1000
"""Pairs; workers come and go."""

_Pair = tuple[WorkerId, WorkerId]


@dataclass(slots=True)
class _Failed:
    """A pair that has failed. `until`: when it may try again."""

    why: str
    times: int
    until: float


class PairCompatibility:
    """What is known of pairs, `(prefill, decode)`. Times are the event loop's."""

    def __init__(self) -> None:
        self._failed: BoundedMap[_Pair, _Failed] = BoundedMap(_REMEMBERED)
        self._log_limit = LogLimit(_log, repeat=None)

    def misfit(self, prefill: Worker, decode: Worker, now: float) -> str | None:
        """Why the two should not share a request now; None: nothing speaks against it."""
        pair = (prefill.id, decode.id)
        failed = self._failed.get(pair)
        why = _unlike(prefill, decode)
        if why is not None:
            self._warn(pair, why, now)
        elif failed is not None and now < failed.until:
            why = failed.why
        return why

    def failed(self, prefill: WorkerId, decode: WorkerId, why: str, now: float) -> None:
        """The decode worker could not go on, and nothing else is known to be wrong with either."""
        pair = (prefill, decode)
        before = self._failed.get(pair)
        if before is not None and now < before.until:
            return  # sent before the other one failed
        times = 1 if before is None else before.times + 1
        self._failed[pair] = _Failed(why, times, now + _APART.delay_s(times))
        self._warn(pair, f"{why} (do they serve the same model, with the same vLLM and the same connector?)", now)

    def worked(self, prefill: WorkerId, decode: WorkerId) -> None:
        """One worker has gone on from what the other has computed."""
        self._failed.pop((prefill, decode), None)
        self._log_limit.over(f"{prefill} -> {decode}")

    def _warn(self, pair: _Pair, why: str, now: float) -> None:
        message = "%s cannot hand KV over to %s: %s; requests that they would share run whole on one worker"
        self._log_limit.warn(" -> ".join(pair), why, now, message, *pair, why)


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
