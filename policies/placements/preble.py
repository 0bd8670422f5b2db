"""Is more of this prompt cached than missing, so that its holder is worth exploiting, or who is least loaded?

Source: Preble, E2 placement with post-assignment load balancing (arXiv 2407.00023).

    missed < cached: exploit, the worker with the least load cost among those that hold the longest match
    else:            explore, a worker whose time goes mostly into decoding, or the least load cost of all

    load cost = L + M + P, seconds, over what was placed in the last `window_s`
    L  prefill of all that missed there, and decoding of a mean answer for each request
    M  for all that LRU would evict to make room: its prefill, by the share of requests that use it
    P  prefill of what this request misses there

After that [paper]: while the heaviest L exceeds the lightest by the factor `imbalance`, what would exploit the
heavy worker goes to the light one; when the queueing of a hot prefix doubles nevertheless, another worker gets it.

[ours] Times come from each worker's own profile; a decode step is shared by the fleet's mean batch. Tree nodes are
chunks of 128 tokens (`preble_window.py`). Decoding workers soak up prefills only if their load is not above the
mean, or an idle fleet would be passed over. Imbalance counts from `slack_s` of difference on, or the first request
of all would be one. Queueing has doubled when the later half of the latest waits of a prefix is twice the earlier
half, and noticeable. The paper's P priority groups are an order of the queue, not of the placement, and no part of
this.

Invariant: accounts move only in `on`, and each sum is over exactly the requests of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from policies.events import Bound, Event, Left, Placed, WorkerArrived, WorkerGone
from policies.model import Matches, Outcome, Question, Ranked, Reason, RequestView, WorkerView
from policies.placements.kit.preble_window import Entry, Window, chunks_of
from policies.placements.kit.ranking import longest_match, reason_for
from policies.protocol import PlacementPolicy

_ENOUGH = 16
"""Waits of a prefix that are compared at least."""
_NOTICEABLE_S = 0.1
"""A mean wait that is shorter has not doubled, whatever it was before."""


@dataclass(frozen=True, slots=True)
class Settings:
    window_s: float = 180.0
    """What was placed within so long counts as load, H."""
    imbalance: float = 1.5
    """Factor between the heaviest and the lightest load from which on exploiting the heavy one stops."""
    slack_s: float = 2.0
    """Difference in load below which no worker counts as heavy."""
    decode_share: float = 0.9
    """Share of a worker's load that is decoding, from which on it gets what explores."""
    replicate: bool = True
    """Give a hot prefix to another worker when its queueing doubles."""
    hot_requests: int = 16
    """Requests within the window that make the prefix they share a hot one."""


class Preble(PlacementPolicy):
    """E2: the chosen worker first, the others by load cost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._window = Window(settings.window_s)
        self._entries: dict[str, Entry] = {}

    def rank(self, question: Question) -> list[Ranked]:
        request, matches, workers = question.request, question.matches, question.workers
        costs = _Costs(self._window, request, matches, workers)
        cached = longest_match(matches, workers)
        if request.input_tokens - cached < cached:
            holders = [worker for worker in workers if matches.get(worker.id, 0) == cached]
            chosen, reason = self._exploit(request, holders, workers, costs)
        else:
            chosen, reason = self._explore(workers, costs), Reason.MISS
        others = [(costs.load_cost(worker), place, worker) for place, worker in enumerate(workers)]
        others.sort(key=lambda entry: (entry[2] is not chosen, *entry[:2]))
        return [
            (worker, cost, reason if worker is chosen else reason_for(matches.get(worker.id, 0), cached))
            for cost, _, worker in others
        ]

    def on(self, event: Event) -> None:
        """Move the window: the only place that does."""
        self._window.expire(event.now)
        if isinstance(event, Bound | Placed):
            self._take(event)
        elif isinstance(event, Left):
            entry = self._entries.pop(event.request.id, None)
            if entry is not None and (event.placement is None or event.outcome in (None, Outcome.REFUSED)):
                self._window.drop(entry)
            elif event.outcome is Outcome.COMPLETED and event.usage is not None:
                self._window.answer(event.usage.output_tokens, event.now)
        elif isinstance(event, WorkerArrived):
            self._window.arrive(event.worker.id, event.worker.kv_tokens)
        elif isinstance(event, WorkerGone):
            self._window.leave(event.worker)

    # -- choosing

    def _exploit(
        self, request: RequestView, holders: list[WorkerView], able: Sequence[WorkerView], costs: "_Costs"
    ) -> tuple[WorkerView, Reason]:
        best = min(holders, key=costs.load_cost)
        if self._settings.replicate and self._queueing_doubled(request):
            others = [worker for worker in able if worker not in holders]
            if others:
                return min(others, key=costs.load_cost), Reason.SPILL
        light, heavy = min(able, key=costs.load), max(costs.workers, key=costs.load)
        if best is heavy and self._heavier(costs.load(heavy), costs.load(light)):
            return light, Reason.HIT if light in holders else Reason.SPILL
        return best, Reason.HIT

    def _explore(self, able: Sequence[WorkerView], costs: "_Costs") -> WorkerView:
        mean = fmean(costs.load(worker) for worker in costs.workers)
        decoding = [
            worker
            for worker in able
            if costs.decode_share(worker) > self._settings.decode_share and costs.load(worker) <= mean
        ]
        return max(decoding, key=costs.decode_share) if decoding else min(able, key=costs.load_cost)

    def _heavier(self, heavy_s: float, light_s: float) -> bool:
        return heavy_s > self._settings.imbalance * light_s and heavy_s - light_s > self._settings.slack_s

    def _queueing_doubled(self, request: RequestView) -> bool:
        chunk = self._window.hot(chunks_of(request), self._settings.hot_requests)
        waits = [] if chunk is None else self._window.waits_s(chunk)
        if len(waits) < _ENOUGH:
            return False
        half = len(waits) // 2
        before, lately = fmean(waits[:half]), fmean(waits[half:])
        return lately >= _NOTICEABLE_S and lately >= 2 * before

    # -- accounts

    def _take(self, event: Bound | Placed) -> None:
        """What a request adds to its worker: as it is bound by an estimate, as it is placed by what is known."""
        request, worker = event.request, event.placement.ranked
        entry = self._entries.get(request.id)
        if entry is None or entry.worker != worker or isinstance(event, Bound):
            if entry is not None:
                self._window.drop(entry)
            chunk = self._window.hot(chunks_of(request), self._settings.hot_requests)
            if chunk is not None and not self._window.holds(worker, chunk):
                self._window.forget_waits(chunk)  # from here on it has one more worker
            entry = self._entries[request.id] = self._window.bind(request, worker, event.now)
        if isinstance(event, Placed):
            self._window.place(entry, event.extend_tokens, event.matched_tokens)
            chunk = self._window.hot(entry.chunks, self._settings.hot_requests)
            if chunk is not None:
                self._window.wait(entry, chunk, event.now - request.arrived)


class _Costs:
    """Load costs of one request, each worker's computed once."""

    def __init__(
        self, window: Window, request: RequestView, matches: Matches, workers: Sequence[WorkerView]
    ) -> None:
        self.workers = workers
        self._window = window
        self._request = request
        self._matches = matches
        self._chunks = chunks_of(request)
        mean = window.mean_output()
        self._output = request.expected_output_tokens if mean is None else mean
        self._batch = max(1, round(fmean(worker.sequences for worker in workers)))
        self._loads = {worker.id: self._prefill(worker) + self._decode(worker) for worker in workers}

    def load(self, worker: WorkerView) -> float:
        """L."""
        return self._loads[worker.id]

    def load_cost(self, worker: WorkerView) -> float:
        """L + M + P."""
        matched = self._matches.get(worker.id, 0)
        missed = max(1, self._request.input_tokens - matched)
        evicted = self._window.eviction_s(worker.id, self._chunks, worker.profile)
        return self.load(worker) + evicted + worker.profile.prefill_s(missed, matched)

    def decode_share(self, worker: WorkerView) -> float:
        """Of L; 0 for a worker without any."""
        return self._decode(worker) / self.load(worker) if self.load(worker) > 0 else 0.0

    def _prefill(self, worker: WorkerView) -> float:
        return self._window.prefill_s(worker.id, worker.profile)

    def _decode(self, worker: WorkerView) -> float:
        step_s = worker.profile.step_s(self._batch) / self._batch
        return self._window.requests(worker.id) * self._output * step_s
