"""A backlog on one simulated worker whose steps take equally long: the model of the papers, with our scheduler.

The queue policy, the scheduler and the engine are the ones that serve; only time is simple. A step takes `STEP_S`
whatever is in it, a prompt is computed in the step that gives its first token, blocks are of one token. In its
t-th step a request holds `s + t - 1` tokens of KV cache: one less than in the papers, so a job of their model
stands for a prompt of one token more. A request whose answer outgrows what was foreseen is not evicted by the
policy: the engine preempts the one that started last, which keeps its tokens but has to compute their KV again,
in a step. So a schedule here may be better than any of the model's, where nobody is interrupted.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from benchmarks.papers.bound import Job
from policies.estimates.answer_length import Length
from policies.model import Dispatch, PrefixKey, RequestView, Stage, Ticket, Usage, WorkerFacts
from policies.orders.kit.least_f import Item, batches
from policies.scheduler.scheduler import Scheduler
from router.control.scheduler_factory import make_scheduler
from router.lab.setup import make_setup
from router.lab.workload import UNIT_BYTES
from workers.simulator.engine import Engine
from workers.simulator.profiles import Profile
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest, EngineSequence

STEP_S = 1 / 128
"""A power of two, so that sums of steps are exact."""
_WORKER, _SERVED_NAME, _CLIENT = "worker", "model", "client"
_LARGE = 10**6
_PROFILE = Profile(
    name="unit steps",
    overhead_s=STEP_S,
    weights_s=0.0,
    token_s=0.0,
    sample_s=0.0,
    context_s=0.0,
    pair_s=0.0,
    kv_tokens=0,
    max_num_seqs=_LARGE,
    max_num_batched_tokens=_LARGE,
)


def sets_of_least_f(prompts: Sequence[int], answers: Sequence[int], memory: int) -> list[list[int]]:
    """Sorted-F's list as the order `sorted_f` makes it: set after set of jobs by their numbers."""
    items = [Item(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return list(batches(items, memory))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a backlog."""

    total_steps: float
    """Sum of completion times."""
    preemptions: int


def serve(
    jobs: Sequence[Job],
    lengths: Sequence[Length],
    memory: int,
    queue: str,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run jobs that are all there from the start; `lengths` is what the policies believe of their answers."""
    worker = _Worker(memory, queue, settings or {})
    for number, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
        worker.submit(number, job, length)
    ends = worker.run()
    return Outcome(sum(ends) / STEP_S, worker.engine.counters.preemptions)


class _Worker:
    """The scheduler, the engine, and what is open between them."""

    def __init__(self, memory: int, queue: str, settings: Mapping[str, Any]) -> None:
        self.engine = Engine(
            EngineConfig(
                kv_blocks=memory,
                block_size=1,
                max_num_seqs=_LARGE,
                max_num_batched_tokens=_LARGE,
                max_model_len=memory,
                prefix_caching=False,
            ),
            _PROFILE,
        )
        setup = make_setup(
            placement="least_loaded",
            queue=queue,
            settings={
                "queue_requests": _LARGE,
                "queue_wait_s": float(_LARGE),
                "prefill_window_tokens": 10**9,
                **settings,
            },
        )
        self._scheduler: Scheduler = make_scheduler(setup.config)
        facts = WorkerFacts(
            id=_WORKER,
            served_names=frozenset((_SERVED_NAME,)),
            stages=frozenset(Stage),
            slots=_LARGE,
            kv_tokens=memory,
            max_batched_tokens=_LARGE,
        )
        self._scheduler.worker_joined(facts, 0.0)
        self._units = count(1)
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, tuple[Ticket, EngineSequence, int]] = {}
        """With how many output tokens the scheduler has heard of."""

    def submit(self, number: int, job: Job, length: Length) -> None:
        name = str(number)
        self._jobs[name] = job
        view = RequestView(
            id=name,
            client=_CLIENT,
            served_name=_SERVED_NAME,
            key=PrefixKey(self._unlike_others(job.prompt), UNIT_BYTES, 1),
            input_tokens=job.prompt,
            expected_output_tokens=length.expected,
            arrived=0.0,
            length=length,
            streams=True,
        )
        self._scheduler.submit(view, 0.0)

    def _unlike_others(self, tokens: int) -> bytes:
        """Units of a prompt that shares nothing."""
        return array("Q", (next(self._units) for _ in range(tokens))).tobytes()

    def run(self) -> list[float]:
        """Step by step to the end; when each job ended."""
        ends: list[float] = []
        self._decide(0.0)
        while (at := self.engine.next_step()) is not None:
            # One step only: the next one is planned after the decisions, so that who starts now is in it.
            result = self.engine.advance_one(at)
            for sequence in result.finished if result else ():
                ticket, _, _ = self._running.pop(sequence.request.id)
                job = self._jobs[sequence.request.id]
                self._scheduler.settled(ticket, Usage(job.prompt, job.answer, 0), at)
                ends.append(at)
            self._tell(at)
            self._decide(at)
        return ends

    def _tell(self, now: float) -> None:
        """The scheduler hears of every token as it comes."""
        for name, (ticket, sequence, told) in self._running.items():
            generated = self.engine.generated(sequence)
            if generated > told:
                self._scheduler.output(ticket, generated - told, now)
                self._running[name] = ticket, sequence, generated

    def _decide(self, now: float) -> None:
        for decision in self._scheduler.decisions(now):
            if not isinstance(decision, Dispatch):
                raise TypeError(f"a job was turned away: {decision.reason}")
            name = decision.request.id
            job = self._jobs[name]
            prompt = Blocks((), job.prompt)
            sequence = self.engine.add(EngineRequest(name, prompt, job.answer, job.answer), now)
            self._running[name] = decision.ticket, sequence, 0
