"""The papers' orders as printed, in the papers' model: unit steps, one memory, everything there from the start.

What serves here is something else: an order beside a scheduler, an engine that preempts, and ageing
(`one_worker.py`). These are the rules by themselves, so that a table can hold both to the same optimum.

A step: jobs that have their answer leave; if the others would hold more than M tokens in this step, some are
evicted; jobs that wait are admitted by rank where everything fits until its foreseen end (`fits`); every job
gets a token. An evicted job loses what it has generated and waits again [2508.14544]. Only answers that are
longer than foreseen lead to evictions.

| rule | rank | foreseen answer | where one does not fit | source |
|---|---|---|---|---|
| fcfs | arrival | expected | stop | |
| shortest_first | expected answer | expected | the next may pass [ours] | baseline of 2508.06133 |
| mc_sf | expected answer | expected | stop | 2502.07115 |
| sorted_f | place in the list of sets of least F | expected | stop | 2508.06133 |
| svf | volume | expected | the next may pass | 2606.22327 |
| svf_1bit | volume, answer taken for that of its kind | of its kind | the next may pass | 2606.22327 [ours] |
| amax | upper end | upper end | stop | 2508.14544 |
| amin | estimate: lower end, raised as the answer grows | the same | stop | 2508.14544 |

[ours] The set of least F is searched for (`policies`' own bounded search), not found exactly. Of 1-bit SVF only
the abstract could be read: SVF with "merely a single bit" for the length of an answer. Here the bit says
whether an answer is above the median, and an answer is taken to be as long as the mean of its half; that is the
volume, and what the test of memory foresees. A rule other than A_min evicts the job that started last, as vLLM
does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from benchmarks.papers.bound import Job
from benchmarks.papers.one_worker import sets_of_least_f
from policies.estimates.answer_length import Length

Ranks = Callable[["Case"], list[float]]


@dataclass(frozen=True, slots=True)
class Case:
    """Jobs, what is believed of their answers, and the memory in tokens."""

    jobs: Sequence[Job]
    believed: Sequence[Length]
    memory: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Ranks and foreseen answers by number of the job; lower ranks go first, equal ones by arrival."""

    ranks: Ranks
    foreseen: Callable[[Case], list[int]]
    passes: bool = False
    """A job behind one that does not fit may start."""
    estimates: bool = False
    """A_min: a job ranks by its estimate, which after an eviction is at least what had been generated; on overflow
    those of least estimate are evicted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule came to."""

    total_steps: int
    """Sum of completion times."""
    evictions: int


def run(case: Case, rule: Rule) -> Outcome:
    """Every job to its end. Raises ValueError for a job that does not fit by itself."""
    if any(job.prompt + job.answer > case.memory for job in case.jobs):
        raise ValueError(f"a job does not fit into {case.memory} tokens by itself")
    return _Machine(case, rule).run()


def volume(job: Job, answer: int) -> int:
    """Token-steps of a job with an answer of that many tokens."""
    return Job(job.prompt, answer).volume


def halves(case: Case) -> list[int]:
    """One bit of each answer, spelled out: the mean of those up to the median, or of those above it."""
    middle = median(job.answer for job in case.jobs)
    short = [job.answer for job in case.jobs if job.answer <= middle]
    long = [job.answer for job in case.jobs if job.answer > middle] or short
    means = round(fmean(short)), round(fmean(long))
    return [means[job.answer > middle] for job in case.jobs]


def _arrival(case: Case) -> list[float]:
    return [0.0] * len(case.jobs)


def _expected(case: Case) -> list[int]:
    return [length.expected for length in case.believed]


def _upper(case: Case) -> list[int]:
    return [length.upper for length in case.believed]


def _lower(case: Case) -> list[int]:
    return [length.lower for length in case.believed]


def _volumes(answers: Callable[[Case], list[int]]) -> Ranks:
    return lambda case: [volume(job, answer) for job, answer in zip(case.jobs, answers(case), strict=True)]


def _as_ranks(answers: Callable[[Case], list[int]]) -> Ranks:
    return lambda case: [float(answer) for answer in answers(case)]


def _listed(case: Case) -> list[float]:
    prompts = [job.prompt for job in case.jobs]
    order = [number for chosen in sets_of_least_f(prompts, _expected(case), case.memory) for number in chosen]
    places = {number: float(place) for place, number in enumerate(order)}
    return [places[number] for number in range(len(case.jobs))]


RULES: dict[str, Rule] = {
    "fcfs": Rule(_arrival, _expected),
    "shortest_first": Rule(_as_ranks(_expected), _expected, passes=True),
    "mc_sf": Rule(_as_ranks(_expected), _expected),
    "sorted_f": Rule(_listed, _expected),
    "svf": Rule(_volumes(_expected), _expected, passes=True),
    "svf_1bit": Rule(_volumes(halves), halves, passes=True),
    "amax": Rule(_as_ranks(_upper), _upper),
    "amin": Rule(_as_ranks(_lower), _lower, estimates=True),
}


@dataclass(slots=True)
class _Machine:
    """The memory, step by step. Invariant: a job waits, runs, or has ended."""

    case: Case
    rule: Rule
    estimate: list[int] = field(init=False)
    rank: list[float] = field(init=False)
    running: dict[int, int] = field(default_factory=dict)
    """Tokens generated, by number, in the order of starts."""

    def __post_init__(self) -> None:
        foreseen = zip(self.case.jobs, self.rule.foreseen(self.case), strict=True)
        # Nothing longer than fits by itself can be an answer.
        self.estimate = [min(answer, self.case.memory - job.prompt) for job, answer in foreseen]
        self.rank = self.rule.ranks(self.case)

    def run(self) -> Outcome:
        jobs, waiting = self.case.jobs, set(range(len(self.case.jobs)))
        total = evictions = step = 0
        while waiting or self.running:
            while self._held() > self.case.memory:
                waiting.add(self._evict())
                evictions += 1
            for number in self._admitted(waiting):
                waiting.remove(number)
            step += 1
            for number in list(self.running):
                self.running[number] += 1
                if self.running[number] == jobs[number].answer:
                    del self.running[number]
                    total += step
        return Outcome(total, evictions)

    def _held(self) -> int:
        """Tokens in the coming step, if nobody else starts."""
        return sum(self.case.jobs[number].prompt + done + 1 for number, done in self.running.items())

    def _evict(self) -> int:
        if self.rule.estimates:
            victim = min(self.running, key=lambda number: max(self.estimate[number], self.running[number]))
        else:
            victim = next(reversed(self.running))
        self.estimate[victim] = max(self.estimate[victim], self.running.pop(victim))
        return victim

    def _admitted(self, waiting: set[int]) -> list[int]:
        """Start those that may, in order; their numbers."""
        started = []
        rank = self.estimate if self.rule.estimates else self.rank
        for number in sorted(waiting, key=lambda number: (rank[number], number)):
            if self._fits(number):
                self.running[number] = 0
                started.append(number)
            elif not self.rule.passes:
                break
        return started

    def _fits(self, newcomer: int) -> bool:
        """Whether memory suffices at every foreseen end; an answer past its estimate ends with its next token."""
        there = [(self.case.jobs[newcomer].prompt, 0, self.estimate[newcomer])]
        there += [
            (self.case.jobs[number].prompt, done, max(self.estimate[number], done + 1) - done)
            for number, done in self.running.items()
        ]
        return all(
            sum(prompt + done + end for prompt, done, left in there if left >= end) <= self.case.memory
            for end in {left for _, _, left in there}
        )
