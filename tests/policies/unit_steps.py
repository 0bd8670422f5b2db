"""One worker in the unit steps of the papers on memory: a real order, and beside it a program without ideas.

Both answer when each job starts. `ordered` asks the real order, and tells it what it would hear from a scheduler;
`naive` walks through every step and sums up what is held.
"""

from dataclasses import dataclass, replace

from policies.estimates.answer_length import Length
from policies.events import Left, Output, Placed, Queued
from policies.fleet.capacity import Room
from policies.fleet.kv_fit import Batch, Member
from policies.fleet.worker import Worker
from policies.model import Outcome, Placement, PrefixKey, RequestView, Usage, WorkerFacts

WORKER = "w0"


@dataclass(frozen=True)
class Job:
    """Tokens in, tokens out, when it comes, and what is known of its answer beforehand."""

    prompt: int
    output: int
    at: int = 0
    bounds: tuple[int, int] | None = None

    @property
    def lower(self):
        return self.bounds[0] if self.bounds else self.output

    @property
    def upper(self):
        return self.bounds[1] if self.bounds else self.output


def request(number, job, **fields):
    return RequestView(
        id=f"r{number:03}",
        client="anna",
        served_name="base",
        key=PrefixKey(),
        input_tokens=job.prompt,
        expected_output_tokens=job.output,
        arrived=float(job.at),
        length=Length(job.lower, job.output, job.upper) if job.bounds else None,
        streams=True,
        **fields,
    )


def view(members, capacity, *, name=WORKER, served_names=("base",)):
    """A worker with all the room in the world but for its memory."""
    bare = Worker(
        WorkerFacts(name, frozenset(served_names), kv_tokens=capacity), window_s=0.2, window_tokens=None
    ).view()
    batch = None if capacity is None else Batch(members, capacity)
    room = Room(not members, True, 10**9, None, capacity, 0.0, capacity, batch)
    return replace(bare, room=room)


def ordered(queue, jobs, capacity):
    """When each job starts under an order, by its number."""
    placement, running, started = Placement(WORKER), {}, {}
    asked = {number: request(number, job) for number, job in enumerate(jobs)}
    for now in range(sum(job.output for job in jobs) + max(job.at for job in jobs) + 1):
        for number, one in asked.items():
            if jobs[number].at == now:
                queue.push(one)
                queue.on(Queued(one, now))
        while (number := _next(queue, asked, running, capacity, now)) is not None:
            queue.remove(asked[number])
            queue.on(Placed(asked[number], placement, 0, jobs[number].prompt, now))
            running[number], started[number] = 0, now
        for number in list(running):
            running[number] += 1
            queue.on(Output(asked[number], placement, 1, now))
        for number in [n for n, done in running.items() if done == jobs[n].output]:
            del running[number]
            usage = Usage(jobs[number].prompt, jobs[number].output)
            queue.on(Left(asked[number], placement, Outcome.COMPLETED, usage, now))
    assert len(queue) == 0
    return started


def _next(queue, asked, running, capacity, now):
    """Whom the order starts first, if anybody."""
    members = [
        Member(asked[n].input_tokens, done, asked[n].expected_output_tokens - done) for n, done in running.items()
    ]
    for offer in queue.candidates([view(members, capacity)], float(now)):
        if WORKER not in offer.keep_off:
            return int(offer.request.id[1:])
    return None


def naive(jobs, capacity, *, order, skips=False, estimate=lambda job, done: job.output):
    """The same by going through every step. `order(waiting)` sorts numbers; `estimate` is of a whole answer."""
    running, started, estimates = {}, {}, {}
    for now in range(sum(job.output for job in jobs) + max(job.at for job in jobs) + 1):
        goes_on = True
        while goes_on:
            goes_on = False
            for number in order([n for n, job in enumerate(jobs) if job.at <= now and n not in started]):
                length = estimate(jobs[number], 0)
                batch = {n: (jobs[n].prompt + done, estimates[n] - done) for n, done in running.items()}
                if not running or not overflows(batch, (jobs[number].prompt, length), capacity):
                    running[number], started[number], estimates[number] = 0, now, length
                    goes_on = True
                if goes_on or not skips:
                    break
        for number in list(running):
            running[number] += 1
            if running[number] >= estimates[number]:
                estimates[number] = estimate(jobs[number], running[number])
            if running[number] == jobs[number].output:
                del running[number]
    return started


def overflows(batch, newcomer, capacity):
    """Whether memory overflows at any step up to the newcomer's last one."""
    everybody = [*batch.values(), newcomer]
    return any(
        sum(held + step for held, left in everybody if left >= step) > capacity
        for step in range(1, newcomer[1] + 1)
    )


def total_completion(jobs, started):
    """The sum of all latencies."""
    return sum(started[n] + job.output - job.at for n, job in enumerate(jobs))
