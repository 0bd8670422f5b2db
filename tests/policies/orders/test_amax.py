"""A_max: the order and the test of memory by the upper end, against a program that walks through every step."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered

from policies.orders.amax import AMax, Settings


def bounded(prompt, lower, more, most, at):
    return Job(prompt, lower + more, at, (lower, lower + max(more, most)))


JOBS = st.lists(
    st.builds(
        bounded,
        prompt=st.integers(1, 30),
        lower=st.integers(1, 6),
        more=st.integers(0, 6),
        most=st.integers(0, 10),
        at=st.sampled_from([0, 0, 0, 3, 7]),
    ),
    min_size=1,
    max_size=12,
)


def by_upper(jobs):
    return lambda waiting: sorted(waiting, key=lambda n: (jobs[n].upper, jobs[n].at, n))


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, capacity=st.integers(46, 120))
def test_it_starts_what_the_step_by_step_program_starts(jobs, capacity):
    queue = AMax(Settings(halves_s=inf))
    assert ordered(queue, jobs, capacity) == naive(
        jobs, capacity, order=by_upper(jobs), estimate=lambda job, _: job.upper
    )


@settings(max_examples=60, deadline=None)
@given(jobs=JOBS, capacity=st.integers(46, 120))
def test_memory_never_overflows_while_the_intervals_hold(jobs, capacity):
    started = ordered(AMax(Settings(halves_s=inf)), jobs, capacity)
    for now in range(max(started[n] + job.output for n, job in enumerate(jobs)) + 1):
        alive = [n for n, job in enumerate(jobs) if started[n] < now <= started[n] + job.output]
        assert sum(jobs[n].prompt + now - started[n] for n in alive) <= capacity


def test_it_is_more_careful_than_the_mean():
    jobs = [Job(10, 20, 0, (10, 40)), Job(10, 20, 0, (10, 40))]
    assert ordered(AMax(Settings()), jobs, 99) == {0: 0, 1: 1}
    assert ordered(AMax(Settings()), jobs, 100) == {0: 0, 1: 0}
