"""Who is in the pool: every worker with its load, and which of them could serve a request.

That question is asked for each request, so its answer is remembered by line; what is in flight changes a worker's
view, not the answer.

Invariants: a name stands for one load, here or gone and never both, so that legs still running on a worker that
left and came back are counted where they are; one that is gone is kept only while something runs there.
"""

from policies.load import Load
from policies.model import RequestView, WorkerFacts, WorkerId, WorkerView


class Roster:
    """The workers of one pool; `window_s` and `window_tokens` bound the prefill in flight on each."""

    def __init__(self, *, window_s: float, window_tokens: int | None) -> None:
        self._window_s = window_s
        self._window_tokens = window_tokens
        self._here: dict[WorkerId, Load] = {}
        self._gone: dict[WorkerId, Load] = {}
        self._by_line: dict[str, list[Load]] = {}

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
        if (before.usable, before.suspect, before.lines) != (facts.usable, facts.suspect, facts.lines):
            self._by_line.clear()
        return (before.usable and not facts.usable) or not before.lines <= facts.lines

    def leave(self, worker: WorkerId) -> bool:
        """Let a worker go; whether it was here."""
        load = self._here.pop(worker, None)
        if load is None:
            return False
        if not load.idle:
            self._gone[worker] = load
            load.pin(0)  # the prefix trees forget it, with its pins
        self._by_line.clear()
        return True

    def rest(self, load: Load) -> None:
        """Something has ended on this worker: forget it if it is gone and that was the last."""
        if load.idle:
            self._gone.pop(load.facts.id, None)

    def _join(self, facts: WorkerFacts) -> None:
        load = self._gone.pop(facts.id, None)
        if load is None:
            load = Load(facts, window_s=self._window_s, window_tokens=self._window_tokens)
        else:
            load.tell(facts)
        self._here[facts.id] = load
        self._by_line.clear()

    # -- questions

    def loads(self) -> list[Load]:
        """Every worker on which something may be running, those that are gone last."""
        return [*self._here.values(), *self._gone.values()]

    def views(self) -> list[WorkerView]:
        """All workers that may be given requests."""
        return [load.view() for load in self._here.values() if load.facts.usable]

    def serves(self, request: RequestView) -> bool:
        """Whether anybody could serve the request."""
        if _plain(request):
            return bool(self._line(request.line))
        return any(load.facts.serves(request) for load in self._here.values())

    def able(self, request: RequestView) -> list[WorkerView]:
        """Who could serve the request, with room or without; suspects only where there is nobody else."""
        if _plain(request):
            return [load.view() for load in self._line(request.line)]
        return [load.view() for load in _best([w for w in self._here.values() if w.facts.serves(request)])]

    def _line(self, line: str) -> list[Load]:
        loads = self._by_line.get(line)
        if loads is None:
            loads = _best([w for w in self._here.values() if w.facts.usable and line in w.facts.lines])
            if loads:  # names that nobody serves are not collected
                self._by_line[line] = loads
        return loads


def _plain(request: RequestView) -> bool:
    return request.pinned is None and not request.excluded


def _best(loads: list[Load]) -> list[Load]:
    return [load for load in loads if not load.facts.suspect] or loads
