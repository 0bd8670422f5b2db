"""What the scheduler costs: one request's submit + decisions + first token + settled, in microseconds.

    python benchmarks/micro/scheduler_step.py [--seed 1] [--workers 64] [--queued 4000] [--rounds 3000]
        [--placement cache_aware ...] [--queue fcfs] [--clock wall|cpu]

Prints its figures as they are and asserts nothing; on a machine shared with other work, ``--clock cpu`` leaves out
the time in which this process did not run. Prompts are 4 KB long and begin with one of 24 system prompts of 2 KB.
Two situations:

idle     nothing runs: each request is placed at once and ends before the next one comes
backlog  every worker is full and so many requests wait: each step ends one request, whose place is given to the
         next in the queue, and takes a new one in at the tail
"""

import argparse
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from policies import catalog
from policies.knowledge import Knowledge
from policies.model import Dispatch, PrefixKey, RequestView, Ticket, Usage, WorkerFacts
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]
SLOTS = 8


class Workload:
    """Requests without end, the same for the same seed."""

    def __init__(self, seed: int, clients: int = 20) -> None:
        self._rng = random.Random(seed)
        self._clients = clients
        self._systems = [self._rng.randbytes(2048) for _ in range(24)]
        self.made = 0

    def request(self, now: float) -> RequestView:
        self.made += 1
        prompt = self._rng.choice(self._systems) + self._rng.randbytes(2048)
        return RequestView(
            id=f"r{self.made}",
            client=f"client-{self._rng.randrange(self._clients)}",
            served_name="model",
            key=PrefixKey(prompt),
            input_tokens=len(prompt) // 4,
            expected_output_tokens=200,
            arrived=now,
            streams=True,
        )


def scheduler(seed: int, workers: int, queue: str, placement: str) -> Scheduler:
    """A scheduler with its fleet, nothing in flight."""
    knowledge = Knowledge(rng=random.Random(seed))
    made = Scheduler(
        catalog.queue_policies()[queue].build(knowledge=knowledge),
        catalog.placement_policies()[placement].build(knowledge=knowledge),
        SchedulerSettings(max_queued=10**6, max_wait_s=1e9),
        knowledge,
    )
    for number in range(workers):
        made.worker_joined(WorkerFacts(f"worker-{number:02}", frozenset({"model"}), slots=SLOTS), 0.0)
    return made


def idle(made: Scheduler, workload: Workload, clock: Clock, rounds: int) -> Iterator[float]:
    """Seconds per request, one after the other."""
    for round_ in range(rounds):
        now = round_ * 0.1
        request = workload.request(now)
        began = clock()
        ticket = made.submit(request, now)
        made.decisions(now)
        made.first_token(ticket, now + 0.01)
        made.decisions(now + 0.01)
        made.settled(ticket, Usage(1024, 200), now + 0.05)
        made.decisions(now + 0.05)
        yield clock() - began


class Backlog:
    """A full fleet and so many requests in the queue. A step: one request ends, one arrives, one starts."""

    def __init__(self, made: Scheduler, workload: Workload, queued: int) -> None:
        self._made = made
        self._workload = workload
        self._running: list[Ticket] = []
        self._chance = random.Random(0)
        self._now = 0.0
        while made.snapshot().queued < queued:
            made.submit(workload.request(self._now), self._now)
            self._perform()

    def coming(self) -> tuple[Ticket, RequestView]:
        """Who ends and who arrives in the next step."""
        self._now += 0.01
        running, at = self._running, self._chance.randrange(len(self._running))
        running[at], running[-1] = running[-1], running[at]
        return running.pop(), self._workload.request(self._now)

    def step(self, ending: Ticket, arriving: RequestView) -> None:
        """What is measured."""
        self._made.settled(ending, Usage(1024, 200), self._now)
        self._perform()
        self._made.submit(arriving, self._now)
        self._perform()

    def _perform(self) -> None:
        for decision in self._made.decisions(self._now):
            if isinstance(decision, Dispatch):
                self._running.append(decision.ticket)
                self._made.first_token(decision.ticket, self._now)


def steps(backlog: Backlog, clock: Clock, rounds: int) -> Iterator[float]:
    """Seconds per step."""
    for _ in range(rounds):
        ending, arriving = backlog.coming()
        began = clock()
        backlog.step(ending, arriving)
        yield clock() - began


def line(name: str, seconds: list[float]) -> str:
    """One row of figures."""
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))] * 1e6 for share in (0.5, 0.99)]
    mean = sum(seconds) / len(seconds) * 1e6
    return f"{name:<34} mean {mean:8.1f} us   p50 {at[0]:8.1f}   p99 {at[1]:8.1f}"


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--queued", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--placement", nargs="+", default=["round_robin", "least_loaded", "cache_aware"])
    parser.add_argument("--queue", default="fcfs")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    print(
        f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(
        f"seed {args.seed}, {args.workers} workers, queue {args.queue}, {args.rounds} rounds, {args.clock} clock"
    )
    clock = CLOCKS[args.clock]
    for placement in args.placement:
        made = scheduler(args.seed, args.workers, args.queue, placement)
        print(line(f"{placement}, idle", list(idle(made, Workload(args.seed), clock, args.rounds))))
        made = scheduler(args.seed, args.workers, args.queue, placement)
        timed = list(steps(Backlog(made, Workload(args.seed), args.queued), clock, args.rounds))
        print(line(f"{placement}, {args.queued} queued", timed))


if __name__ == "__main__":
    main()
