"""Who is in the pool: every worker with its load, and which of them could serve a request.

That question is asked for each request, so its answer is remembered by line; what is in flight changes a worker's
view, not the answer. Suspect and stalled workers are in it only where there is nobody else.

Invariants: a name stands for one load, here or gone and never both, so that legs still running on a worker that
left and came back are counted where they are; one that is gone is kept only while something runs there.
"""

import math
from functools import partial

from policies.fleet.speed import Pool
from policies.fleet.worker import STALLED_S, Load
from policies.model import RequestView, WorkerFacts, WorkerId, WorkerView


class Roster:
    """The workers of one pool.

    `window_s` and `window_tokens` bound the prefill in flight on each; `kv_margin` is the share of its KV cache
    that is left free.
    """

    def __init__(self, window_s: float, window_tokens: int | None, kv_margin: float = 0.0) -> None:
        self._make = partial(
            Load, window_s=window_s, window_tokens=window_tokens, kv_margin=kv_margin, pool=Pool()
        )
        self._here: dict[WorkerId, Load] = {}
        self._gone: dict[WorkerId, Load] = {}
        self._by_line: dict[str, list[Load]] = {}
        self._watch_at = -math.inf
        self.given = 0
        """How often room has been given back, or a worker has changed."""
        self.eased = 0
        """The same, and how often answers have grown: their end is nearer, so KV may suffice that did not."""

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._here

    def __getitem__(self, worker: WorkerId) -> Load:
        return self._here[worker]

    # -- comings and goings

    def tell(self, facts: WorkerFacts) -> bool:
        """Take in a worker or replace what is known of it; whether it now serves less than before."""
        load = self._here.get(facts.id)
        if load is None:
            self._join(facts)
            return False
        before = load.facts
        load.tell(facts)
        self.gave(load)
        if _standing(before) != _standing(facts):
            self._regroup()
        return (before.usable and not facts.usable) or not before.lines <= facts.lines

    def leave(self, worker: WorkerId) -> bool:
        """Let a worker go; whether it was here."""
        load = self._here.pop(worker, None)
        if load is None:
            return False
        load.leave()
        if not load.idle:
            self._gone[worker] = load
        self._regroup()
        return True

    def rest(self, load: Load) -> None:
        """Something has ended on this worker: forget it if it is gone and that was the last."""
        self.gave(load)
        if load.idle:
            self._gone.pop(load.facts.id, None)

    def _join(self, facts: WorkerFacts) -> None:
        load = self._gone.pop(facts.id, None)
        if load is None:
            load = self._make(facts)
        else:
            load.tell(facts)
        self._here[facts.id] = load
        self._regroup()

    # -- what takes room and gives it

    def taken(self, worker: WorkerId) -> int:
        """How often somebody has been placed on a worker; 0 if it is not here."""
        load = self._here.get(worker)
        return 0 if load is None else load.taken

    def gave(self, load: Load) -> None:
        """Something has ended on this worker, or it is not as it was."""
        self.given += 1
        self.eases(load)

    def eases(self, load: Load) -> None:
        """The worker may admit now what it did not before."""
        self.eased += 1
        load.eased_at = self.eased

    def eased_since(self, eased: int) -> list[WorkerView]:
        """The workers that may admit now what they did not when `eased` was this."""
        return [load.view() for load in self._here.values() if load.eased_at > eased and load.facts.usable]

    def _regroup(self) -> None:
        """Who may serve what is no longer as it was."""
        self._by_line.clear()
        for load in self._here.values():
            self.gave(load)

    # -- silence

    def heard(self, load: Load, now: float) -> None:
        """A worker has given something back: it is not stalled."""
        load.heard(now)
        if load.stalled:
            self._judge(load, now)

    def watch(self, now: float) -> None:
        """Look who is stalled by now; rarely more than a comparison."""
        if now < self._watch_at:
            return
        for load in self._here.values():
            self._judge(load, now)
        # Whoever is silent from now on cannot be stalled before `STALLED_S` have passed.
        due = (load.stalls_at() for load in self._here.values() if not load.stalled)
        self._watch_at = min(min(due, default=math.inf), now + STALLED_S)

    def next_watch(self) -> float | None:
        """When to look again; None: nothing is due from anybody."""
        return self._watch_at if any(load.awaited for load in self._here.values()) else None

    def _judge(self, load: Load, now: float) -> None:
        if load.judge(now):
            self._regroup()

    # -- questions

    def loads(self) -> list[Load]:
        """Every worker on which something may be running, those that are gone last."""
        return [*self._here.values(), *self._gone.values()]

    def views(self) -> list[WorkerView]:
        """All workers that may be given requests."""
        return [load.seen or load.view() for load in self._here.values() if load.facts.usable]

    def serves(self, request: RequestView) -> bool:
        """Whether anybody could serve the request."""
        if _plain(request):
            return bool(self._line(request.line))
        return any(load.facts.serves(request) for load in self._here.values())

    def able(self, request: RequestView) -> list[WorkerView]:
        """Who could serve the request, with room or without."""
        if _plain(request):
            return [load.seen or load.view() for load in self._line(request.line)]
        return [load.view() for load in _best([w for w in self._here.values() if w.facts.serves(request)])]

    def _line(self, line: str) -> list[Load]:
        loads = self._by_line.get(line)
        if loads is None:
            loads = _best([w for w in self._here.values() if w.facts.usable and line in w.facts.lines])
            if loads:  # names that nobody serves are not collected
                self._by_line[line] = loads
        return loads


def _standing(facts: WorkerFacts) -> tuple[object, ...]:
    """What of a worker decides who else may serve a request, and with whom together."""
    return facts.usable, facts.suspect, facts.lines, facts.stages


def _plain(request: RequestView) -> bool:
    return request.pinned is None and not request.excluded


def _best(loads: list[Load]) -> list[Load]:
    return [load for load in loads if not (load.facts.suspect or load.stalled)] or loads
