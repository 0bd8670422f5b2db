"""An order by size in which a request starts where it fits into memory until its expected end.

Theory (algorithms for batches under a memory limit: arXiv 2502.07115, 2508.06133, 2508.14544, 2606.22327): one
worker, unit steps; a request with a prompt of s tokens and an answer of o holds s + t tokens of KV cache after t
steps. `policies.fits` says whether a batch stays within the worker's memory up to the newcomer's end.

Several workers [ours]: the test of the papers is made for each worker with room. A request is kept off those
where it does not fit. Where the order stops at the first failure, that closes the worker in question for
everybody behind, and no other. A worker whose memory is not known takes everything, and so does an idle one for
its first request.

Invariants: asked twice, the same answer; at most `window` requests are looked at, and as many that are
impatient; whoever has waited `patience_s` keeps everybody younger off the workers that could serve it, which
therefore run empty until it fits: nobody waits for ever.
"""

from collections.abc import Callable, Iterator, Sequence

from policies.events import Event
from policies.fleet.kv_fit import Batch, Member
from policies.knowledge import Knowledge
from policies.model import Candidate, Matches, RequestView, WorkerId, WorkerView
from policies.orders.kit.ageing import aged_first
from policies.orders.kit.sized import SizedBacklog

Answer = Callable[[RequestView], int]
"""How long an answer is taken to be, tokens per sequence."""


def expected(request: RequestView) -> int:
    """The mean estimate."""
    return request.expected_output_tokens


def occupancy(request: RequestView, answer: int) -> int:
    """Volume: KV tokens times steps over a life, `s*o + o*(o+1)/2` for each sequence's answer of o tokens."""
    return request.input_tokens * answer + request.sequences * answer * (answer + 1) // 2


class WithinMemory:
    """A queue by `size`; `answer` goes into the test of memory, `skips`: those behind may pass one that fails."""

    def __init__(
        self,
        knowledge: Knowledge,
        *,
        size: Callable[[RequestView], float],
        answer: Answer = expected,
        skips: bool,
        patience_s: float,
        window: int,
    ) -> None:
        self._knowledge = knowledge
        self._answer = answer
        self._skips = skips
        self._patience_s = patience_s
        self._window = window
        self._waiting = SizedBacklog(size)

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: RequestView, *, again: bool = False) -> None:  # noqa: ARG002 - its size is its place
        self._waiting.push(request)

    def remove(self, request: RequestView) -> None:
        self._waiting.remove(request)

    def waiting(self) -> Iterator[RequestView]:
        return iter(self._waiting)

    def candidates(self, workers: Sequence[WorkerView], now: float) -> Iterator[Candidate]:
        memory = _Memory({worker.id: self.batch(worker) for worker in workers if worker.room.open})
        shut: frozenset[WorkerId] = frozenset()
        ordered = self.in_order(workers, now)
        for request, kept, *_ in aged_first(ordered, workers, now, self._patience_s):
            asked = [w.id for w in workers if w.room.open and w.id not in kept | shut and w.facts.serves(request)]
            full = memory.full(request, self._answer(request), self._knowledge.prefixes.match(request), asked)
            yield Candidate(request, kept | shut | full)
            if not self._skips:
                shut |= full
            if memory.batches.keys() <= kept | shut:
                return

    def in_order(self, workers: Sequence[WorkerView], now: float) -> list[RequestView]:
        """Those that this step looks at, best first."""
        return self._waiting.in_order(workers, now, self._patience_s, self._window)

    def batch(self, worker: WorkerView) -> Batch | None:
        """What runs on a worker, lengths as this order estimates them; None: the next one fits whatever it is."""
        return None if worker.room.idle else worker.room.batch

    def on(self, event: Event) -> None:
        """What runs is the scheduler's knowledge; there are no accounts."""


class _Memory:
    """The batches of the workers with room, during one step."""

    def __init__(self, batches: dict[WorkerId, Batch | None]) -> None:
        self.batches = batches
        self._failures: dict[WorkerId, list[tuple[int, int, int, int]]] = {}
        """What did not fit. Who is larger in every respect will not either: that saves most of the tests."""

    def full(
        self, request: RequestView, answer: int, matches: Matches, among: Sequence[WorkerId]
    ) -> frozenset[WorkerId]:
        """The workers among these where the request does not fit."""
        return frozenset(
            worker for worker in among if not self._fits(request, answer, matches.get(worker, 0), worker)
        )

    def _fits(self, request: RequestView, answer: int, matched: int, worker: WorkerId) -> bool:
        batch = self.batches[worker]
        if batch is None:
            return True
        # A prefix that is cached but that nobody is using becomes occupied by being used.
        fresh = max(request.input_tokens - matched, request.input_tokens - batch.pinned)
        needs = (fresh, request.input_tokens, answer, request.sequences)
        failures = self._failures.setdefault(worker, [])
        for failed in failures:
            if needs[0] >= failed[0] and needs[1] >= failed[1] and needs[2] >= failed[2] and needs[3] >= failed[3]:
                return False
        if batch.fits(Member(request.input_tokens, 0, answer, request.sequences), fresh):
            return True
        failures.append(needs)
        return False
