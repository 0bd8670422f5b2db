"""Orders under a memory limit, beside a lower bound on the optimum (Zhou et al.).

Two settings. *Unit steps* is the model of the papers (`one_worker.py`): everything there from the start, times in
steps, and the bound of `bound.py` means what it says. First with exact lengths, on three kinds of instance; then
with intervals that hold the true length somewhere inside, of growing width, which is what A_max and A_min are
about.

*Simulated H100* is the lab: one worker whose KV cache is cut to a tenth, clients whose prompts and answers differ
a lot and arrive over time, lengths estimated from the answers so far. Steps differ in length there, so a job's
size on the relaxed machine is its share of the engine's time (`shares`), and the bound is a looser one.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from statistics import fmean
from typing import Any

from benchmarks.papers.bound import Job, Load, by_count, lower_bound
from benchmarks.papers.one_worker import serve
from benchmarks.papers.runner import Row, Runner, stacked
from policies.estimates.answer_length import Length
from router.lab.driver import replay
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload
from workers.simulator.profiles import Profile, pairs

QUEUES = ("fcfs", "shortest_first", "mc_sf", "sorted_f", "svf", "amax", "amin", "dlpm", "dlpm+svf")
KINDS = ("equal prompts", "log-normal", "long prompts, short answers")
WIDTHS = (1, 2, 4, 8, 16)
"""Upper over lower end of an interval."""
JOBS, INSTANCES = 150, 2
BLOCK_TOKENS = 16
KV_TOKENS = 45_000
CLIENTS: Mapping[str, tuple[float, float]] = {
    "chat": (300, 150),
    "code": (1500, 40),
    "reports": (400, 700),
    "documents": (6000, 80),
    "labels": (150, 8),
    "digests": (3000, 300),
}
"""Mean prompt and mean answer, tokens."""
RATE, BURST_S = 12.0, 60.0
"""Requests per second of all clients, until then."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Jobs that are all there from the start."""

    kind: str
    seed: int
    jobs: int = JOBS
    width: int = 1
    queue: str = "fcfs"


@dataclass(frozen=True, slots=True)
class Burst:
    """The lab's workload under one queue."""

    seed: int
    queue: str
    burst_s: float = BURST_S


def reproduce(
    runner: Runner,
    seeds: Sequence[int],
    *,
    jobs: int = JOBS,
    instances: int = INSTANCES,
    widths: Sequence[int] = WIDTHS,
    burst_s: float = BURST_S,
) -> dict[str, Any]:
    """Sums of completion times over the bound, by queue, a mean of instances per seed; and the lab's means."""
    numbers = [seed * 1000 + number for seed in seeds for number in range(instances)]

    def ratios(kind: str, width: int) -> dict[str, Row]:
        tasks = [Instance(kind, each, jobs, width, queue) for queue in QUEUES for each in numbers]
        rows = iter(runner.run(against_the_bound, tasks))
        means = {queue: [_means([next(rows) for _ in range(instances)]) for _ in seeds] for queue in QUEUES}
        return {queue: stacked(rows) for queue, rows in means.items()}

    exact, intervals = {}, {}
    for kind in KINDS:
        runner.tell(f"memory: unit steps, exact lengths, {kind}")
        exact[kind] = ratios(kind, 1)
    for width in widths:
        runner.tell(f"memory: unit steps, intervals of factor {width}")
        intervals[f"{width}"] = ratios("log-normal", width)
    bursts = [Burst(seed, queue, burst_s) for queue in QUEUES for seed in seeds]
    lab = dict(zip(QUEUES, runner.told("memory: simulated H100", in_the_lab, bursts, seeds), strict=True))
    return {"exact": exact, "intervals": intervals, "lab": lab}


def _means(rows: Sequence[Row]) -> Row:
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


# -- unit steps


def instance(asked: Instance) -> tuple[list[Job], list[Length], int]:
    """Jobs, what is believed of their answers, and the memory; the same for every queue."""
    chance = Random(f"{asked.kind}/{asked.seed}")
    jobs = [_job(asked.kind, chance) for _ in range(asked.jobs)]
    spread = Random(f"{asked.seed}/lengths")
    memory = {"equal prompts": 600, "log-normal": 8000, "long prompts, short answers": 4000}[asked.kind]
    return jobs, [believed(job.answer, asked.width, spread) for job in jobs], memory


def against_the_bound(asked: Instance) -> Row:
    """One run in unit steps."""
    jobs, lengths, memory = instance(asked)
    outcome = serve(jobs, lengths, memory, asked.queue)
    return {"ratio": outcome.total_steps / lower_bound(jobs, memory), "preemptions": outcome.preemptions}


def _job(kind: str, chance: Random) -> Job:
    if kind == "equal prompts":
        return Job(5, chance.randint(1, 95))
    if kind == "log-normal":
        return Job(_drawn(chance, 400, 1.0, 2500), _drawn(chance, 100, 1.0, 800))
    # Where shortest first goes wrong: the answers that are a little shorter have prompts that fill the memory.
    return Job(chance.randint(1200, 1800), chance.randint(8, 15)) if chance.random() < 0.5 else Job(10, 20)


def _drawn(chance: Random, mean: float, deviation: float, most: int) -> int:
    """Log-normal with this mean and deviation of the logarithm, cut."""
    value = mean * chance.lognormvariate(-deviation * deviation / 2, deviation)
    return max(1, min(most, round(value)))


def believed(answer: int, width: int, chance: Random) -> Length:
    """An interval whose ends differ by the factor `width`, the truth anywhere in it; the mean is its middle."""
    if width == 1:
        return Length(answer, answer, answer)
    lower = max(1, round(answer / width ** chance.random()))
    upper = max(lower, answer, lower * width)
    return Length(lower, max(lower, round((lower * upper) ** 0.5)), upper)


# -- simulated H100


def burst(seed: int, burst_s: float) -> Workload:
    """Poisson arrivals of clients whose prompts and answers are log-normal and share nothing."""
    chance, names = Random(f"burst/{seed}"), count(1)
    requests: list[Request] = []
    for client, (prompt, answer) in CLIENTS.items():
        at = 0.0
        while (at := at + chance.expovariate(RATE / len(CLIENTS))) < burst_s:
            tokens = _drawn(chance, prompt, 0.5, 20_000)
            key = array("Q", (next(names) for _ in range(tokens // BLOCK_TOKENS))).tobytes()
            requests.append(Request(at, client, key, tokens, _drawn(chance, answer, 0.6, 4000)))
    requests.sort(key=lambda request: request.at)
    return Workload("burst", BLOCK_TOKENS, requests, dict.fromkeys(CLIENTS, 1.0))


def in_the_lab(asked: Burst) -> Row:
    """One replay; the bound is on the mean time from arrival to end."""
    workload = burst(asked.seed, asked.burst_s)
    setup = make_setup(
        queue=asked.queue,
        workers=1,
        settings={
            "engine.kv_tokens": KV_TOKENS,
            "queue_requests": 10**6,
            "queue_wait_s": 1e6,
        },
    )
    report = summarize(replay(workload, setup), setup)
    jobs = [Job(one.input_tokens, one.output_tokens, one.at) for one in workload.requests]
    profile = setup.profile
    alone = [
        job.release + profile.prefill_s(job.prompt) + (job.answer - 1) * profile.step_s(1, job.prompt)
        for job in jobs
    ]
    least = max(by_count(shares(jobs, profile, part), alone) for part in (0.0, 0.5, 1.0))
    least -= sum(job.release for job in jobs)
    return {
        "requests": report["requests"],
        "e2e_s": report["e2e_s"],
        "ttft_s": report["ttft_s"],
        "preemptions": report["preemptions"],
        "bound_s": least / len(jobs),
    }


def shares(jobs: Sequence[Job], profile: Profile, weights: float) -> list[Load]:
    """What each job takes at least of the engine's time, in seconds.

    A step takes `overhead + max(reading of weights, products) + reading of contexts + attention of prompts`. The
    last two are sums over the jobs in it. The others are paid by the whole batch: of the overhead, and of any part
    `weights` of the reading, a job pays as much as it holds of the memory; of the products, the rest of that part.
    """
    loads = []
    for job in jobs:
        decoded = job.answer - 1
        context = decoded * job.prompt + decoded * job.answer // 2
        held = job.answer * job.prompt + job.answer * decoded // 2
        size = held / KV_TOKENS * (profile.overhead_s + weights * profile.weights_s)
        size += (1 - weights) * profile.token_s * (job.prompt + decoded)
        size += context * profile.context_s + pairs(0, job.prompt) * profile.pair_s
        loads.append(Load(size, job.release))
    return loads
