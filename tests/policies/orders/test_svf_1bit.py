"""1-bit SVF starts what SVF would start if every answer were as long as its kind is taken to be."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered, request

from policies import catalog
from policies.knowledge import Knowledge
from policies.model import WorkerFacts
from policies.orders.svf_1bit import OneBitSvf, Settings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

KINDS = Settings(threshold_tokens=6, short_tokens=3, long_tokens=10, halves_s=inf)
JOBS = st.lists(
    st.builds(Job, prompt=st.integers(1, 30), output=st.integers(1, 12), at=st.sampled_from([0, 0, 0, 3, 7])),
    min_size=1,
    max_size=12,
)


def taken(job):
    return 10 if job.output > 6 else 3


def volume(job):
    """What its kind holds in each step, summed up one by one."""
    return sum(job.prompt + step for step in range(1, taken(job) + 1))


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, capacity=st.integers(42, 120))
def test_it_starts_what_the_step_by_step_program_starts(jobs, capacity):
    def smallest(waiting):
        return sorted(waiting, key=lambda n: (volume(jobs[n]), jobs[n].at, n))

    assert ordered(OneBitSvf(KINDS), jobs, capacity) == naive(
        jobs, capacity, order=smallest, skips=True, estimate=lambda job, done: max(taken(job), done + 1)
    )


def test_answers_of_one_kind_go_by_their_prompts_alone():
    jobs = [Job(60, 1), Job(50, 6), Job(40, 2)]
    assert ordered(OneBitSvf(KINDS), jobs, 65) == {2: 0, 1: 2, 0: 8}


def test_a_long_answer_gives_way_to_a_longer_prompt_with_a_short_one():
    jobs = [Job(20, 7), Job(30, 6)]
    assert ordered(OneBitSvf(KINDS), jobs, 42) == {1: 0, 0: 6}
    assert volume(jobs[1]) < volume(jobs[0])


@pytest.mark.parametrize(("expected", "most", "estimate"), [(192, None, 64), (193, None, 512), (193, 300, 300)])
def test_the_bit_is_all_that_it_takes_from_the_estimate(expected, most, estimate):
    one = replace(request(0, Job(10, expected)), max_output_tokens=most)
    assert OneBitSvf(Settings()).estimate(one) == estimate


def test_the_scheduler_reserves_what_the_kind_is_taken_to_be():
    """Two answers of 20 expected tokens fit as such, and not as 64."""
    started = {}
    for name in ("svf", "svf_1bit"):
        knowledge = Knowledge()
        queue = catalog.queue_policies()[name].build(knowledge=knowledge)
        placement = catalog.placement_policies()["least_loaded"].build(knowledge=knowledge)
        scheduler = Scheduler(queue, placement, SchedulerSettings(kv_margin=0.0), knowledge)
        scheduler.worker_joined(WorkerFacts("w0", frozenset({"base"}), kv_tokens=100), 0.0)
        for number in range(2):
            scheduler.submit(request(number, Job(10, 20)), 0.0)
        started[name] = 0
        for _ in range(2):
            for decision in scheduler.decisions(0.1):
                scheduler.first_token(decision.ticket, 0.1)
                started[name] += 1
    assert started == {"svf": 2, "svf_1bit": 1}
