"""What the scheduler costs: microseconds and Python calls of a request on an idle fleet, and of a step under load.

    python -m benchmarks.micro.scheduler_step [--seed 1] [--workers 1 8 64] [--queued 10000] [--clients 10000]
        [--rounds 3000] [--placement fairlead] [--queue dlpm vtc] [--clock cpu|wall]

Prints its figures as they are and asserts nothing. The clock of the CPU leaves out the time in which this process
did not run. Prompts are 4 KB long and begin with one of 24 system prompts of 2 KB. Two situations:

idle     nothing runs: each request (submit, decisions, first token, settled) is placed at once and ends before the
         next one comes; with the first of the queues
queued   every worker is full and so many requests wait: each step ends one request, whose place is given to the
         next in the queue, and takes a new one in at the tail; with the most workers, for each of the queues
"""

import argparse
import gc
import math
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median

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


def lifetime(made: Scheduler, request: RequestView, now: float) -> None:
    """A request from `submit` to `settled`, alone on the fleet."""
    ticket = made.submit(request, now)
    made.decisions(now)
    made.first_token(ticket, now + 0.01)
    made.decisions(now + 0.01)
    made.settled(ticket, Usage(request.input_tokens, 200), now + 0.05)
    made.decisions(now + 0.05)


def idle(made: Scheduler, workload: Workload, clock: Clock, rounds: int) -> Iterator[float]:
    """Seconds per request, one after the other."""
    for round_ in range(rounds):
        now = round_ * 0.1
        request = workload.request(now)
        began = clock()
        lifetime(made, request, now)
        yield clock() - began


def calls(made: Scheduler, workload: Workload, rounds: int) -> Iterator[int]:
    """Calls of Python functions per request, one after the other."""
    for round_ in range(rounds):
        now = round_ * 0.1
        request, counted = workload.request(now), Counter[str]()
        sys.setprofile(lambda _frame, event, _, counted=counted: counted.update((event,)))
        try:
            lifetime(made, request, now)
        finally:
            sys.setprofile(None)
        yield counted["call"] - 1  # without that of `lifetime`


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
    return f"{name:<44} p50 {at[0]:7.1f} us   p99 {at[1]:7.1f} us"


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--placement", default=catalog.DEFAULT_PLACEMENT)
    parser.add_argument("--queue", nargs="+", default=["dlpm", "vtc"])
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    args = parser.parse_args()
    print(
        f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"seed {args.seed}, placement {args.placement}, {args.rounds} rounds, {args.clock} clock")
    clock, first = CLOCKS[args.clock], args.queue[0]
    gc.set_threshold(20_000, 20, 100)  # as the gateway sets it
    for workers in args.workers:
        name = f"{first}, idle, {workers} workers"
        made = scheduler(args.seed, workers, first, args.placement)
        print(line(name, list(idle(made, Workload(args.seed), clock, args.rounds))))
        made = scheduler(args.seed, workers, first, args.placement)
        counted = list(calls(made, Workload(args.seed), 300))
        print(f"{name:<44} Python calls: median {median(counted):g}, most {max(counted)}")
    for queue in args.queue:
        made = scheduler(args.seed, max(args.workers), queue, args.placement)
        backlog = Backlog(made, Workload(args.seed, args.clients), args.queued)
        timed = list(steps(backlog, clock, args.rounds))
        print(line(f"{queue}, {args.queued} queued, {max(args.workers)} workers", timed))


if __name__ == "__main__":
    main()
