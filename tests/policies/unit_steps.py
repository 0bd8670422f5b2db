"""One worker in the unit steps of the papers on memory: a real order, and beside it a program without ideas.

Both answer when each job starts. `ordered` offers the real order's candidates to the worker as the matcher does,
and counts lengths as the scheduler does: by the order's estimate, raised when an answer reaches it. `naive`
walks through every step and sums up what is held.
"""

from dataclasses import dataclass, replace

from views import worker

from policies.estimates.answer_length import Length
from policies.events import Left, Output, Placed, Queued
from policies.fleet.kv_fit import Batch, Member
from policies.model import Outcome, Placement, PrefixKey, RequestView, Usage

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


def ordered(order, jobs, capacity, raises=lambda job, done: done + 1):
    """When each job starts, by its number; `raises` is the new estimate of an answer that has reached its own."""
    placement, running, estimates, started = Placement(WORKER), {}, {}, {}
    asked = {number: estimated(order, request(number, job)) for number, job in enumerate(jobs)}
    for now in range(sum(job.output for job in jobs) + max(job.at for job in jobs) + 1):
        for number, one in asked.items():
            if jobs[number].at == now:
                order.push(one)
                order.on(Queued(one, now))
        while True:
            members = [Member(asked[n].input_tokens, done, estimates[n] - done) for n, done in running.items()]
            number = _next(order, members, capacity, now)
            if number is None:
                break
            order.remove(asked[number])
            order.on(Placed(asked[number], placement, 0, jobs[number].prompt, now))
            running[number], started[number] = 0, now
            estimates[number] = asked[number].expected_output_tokens
        for number in list(running):
            running[number] += 1
            if running[number] >= estimates[number]:
                estimates[number] = raises(jobs[number], running[number])
            order.on(Output(asked[number], placement, 1, now))
        for number in [n for n, done in running.items() if done == jobs[n].output]:
            del running[number]
            usage = Usage(jobs[number].prompt, jobs[number].output)
            order.on(Left(asked[number], placement, Outcome.COMPLETED, usage, now))
    assert len(order) == 0
    return started


def estimated(order, one):
    """The request as the scheduler hands it to the order."""
    return replace(one, expected_output_tokens=order.estimate(one))


def _next(order, members, capacity, now):
    """The first candidate that fits, by number."""
    batch = Batch(members, capacity)
    for offer in order.candidates([worker(WORKER, kv_tokens=capacity)], float(now)):
        one = offer.request
        if not members or batch.fits(Member(one.input_tokens, 0, one.expected_output_tokens)):
            return int(one.id[1:])
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
    members = [*batch.values(), newcomer]
    return any(
        sum(held + step for held, left in members if left >= step) > capacity for step in range(1, newcomer[1] + 1)
    )


def total_completion(jobs, started):
    """The sum of all latencies."""
    return sum(started[n] + job.output - job.at for n, job in enumerate(jobs))
