"""SVF starts what a program that walks through every step would start, and beats order of length."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered, request, total_completion

from policies.orders.kit.sizes import kv_over_life
from policies.orders.mc_sf import McSf
from policies.orders.mc_sf import Settings as McSfSettings
from policies.orders.svf import Settings, Svf

JOBS = st.lists(
    st.builds(Job, prompt=st.integers(1, 30), output=st.integers(1, 12), at=st.sampled_from([0, 0, 0, 3, 7])),
    min_size=1,
    max_size=12,
)


def volume(job):
    """What it holds in each step, summed up one by one."""
    return sum(job.prompt + step for step in range(1, job.output + 1))


@given(prompt=st.integers(1, 50), output=st.integers(1, 50))
def test_volume_is_what_is_held_summed_over_all_steps(prompt, output):
    job = Job(prompt, output)
    assert kv_over_life(request(0, job)) == volume(job)


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, capacity=st.integers(42, 120))
def test_it_starts_what_the_step_by_step_program_starts(jobs, capacity):
    def smallest(waiting):
        return sorted(waiting, key=lambda n: (volume(jobs[n]), jobs[n].at, n))

    queue = Svf(Settings(halves_s=inf))
    assert ordered(queue, jobs, capacity) == naive(jobs, capacity, order=smallest, skips=True)


def test_what_does_not_fit_is_passed_by_the_next_that_does():
    jobs = [Job(70, 4), Job(60, 5), Job(20, 16)]
    assert ordered(Svf(Settings()), jobs, 100) == {0: 0, 1: 4, 2: 0}


def test_long_prompts_with_short_answers_do_not_crowd_out_many_small_requests():
    """The case against shortest-first: a few that fill the memory, many small ones whose answers are longer."""
    jobs = [Job(95, 5) for _ in range(8)] + [Job(1, 6) for _ in range(14)]
    by_length = ordered(McSf(McSfSettings(halves_s=inf)), jobs, 100)
    by_volume = ordered(Svf(Settings(halves_s=inf)), jobs, 100)
    assert total_completion(jobs, by_volume) < 0.5 * total_completion(jobs, by_length)
