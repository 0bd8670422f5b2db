"""MC-SF starts what a program that walks through every step would start, and when."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered

from policies.orders.mc_sf import McSf, Settings

JOBS = st.lists(
    st.builds(Job, prompt=st.integers(1, 30), output=st.integers(1, 12), at=st.sampled_from([0, 0, 0, 3, 7])),
    min_size=1,
    max_size=12,
)


def shortest(jobs):
    return lambda waiting: sorted(waiting, key=lambda n: (jobs[n].output, jobs[n].at, n))


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, capacity=st.integers(42, 120))
def test_it_starts_what_the_step_by_step_program_starts(jobs, capacity):
    queue = McSf(Settings(halves_s=inf))
    assert ordered(queue, jobs, capacity) == naive(jobs, capacity, order=shortest(jobs))


def test_a_failure_stops_those_behind_it_although_they_would_fit():
    jobs = [Job(50, 10), Job(45, 11), Job(1, 12)]
    started = ordered(McSf(Settings()), jobs, 100)
    assert started == {0: 0, 1: 10, 2: 10}


def test_it_starts_more_than_whole_reservations_would_allow():
    """132 tokens at their ends, of which never more than 102 are held at once."""
    jobs = [Job(10, 20), Job(10, 40), Job(10, 42)]
    assert ordered(McSf(Settings()), jobs, 102) == {0: 0, 1: 0, 2: 0}
