"""A_min: bold by the lower end and corrected by what is seen, against a program that walks through every step."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered, request

from policies import catalog
from policies.knowledge import Knowledge
from policies.model import WorkerFacts
from policies.orders.amin import AMin, Settings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

JOBS = st.lists(
    st.builds(
        lambda prompt, lower, more, at: Job(prompt, lower + more, at, (lower, lower + more)),
        prompt=st.integers(1, 30),
        lower=st.integers(1, 6),
        more=st.integers(0, 12),
        at=st.sampled_from([0, 0, 0, 3, 7]),
    ),
    min_size=1,
    max_size=12,
)


def by_lower(jobs):
    return lambda waiting: sorted(waiting, key=lambda n: (jobs[n].lower, jobs[n].at, n))


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, capacity=st.integers(48, 120))
def test_it_starts_what_the_step_by_step_program_starts(jobs, capacity):
    queue = AMin(Settings(halves_s=inf))
    assert ordered(queue, jobs, capacity) == naive(
        jobs, capacity, order=by_lower(jobs), estimate=lambda job, done: max(job.lower, done + 1)
    )


def test_it_is_bolder_than_the_mean_and_learns_from_what_it_sees():
    jobs = [Job(10, 40, 0, (10, 60)), Job(10, 40, 0, (10, 60)), Job(10, 40, 30, (10, 60))]
    started = ordered(AMin(Settings()), jobs, 61)
    assert started[0] == started[1] == 0  # by the mean 2 * (10 + 40) would not fit
    assert started[2] == 40  # by the lower ends 2 * (10 + 11) + 10 would have, at 30


@pytest.mark.parametrize(("order", "together"), [("amin", 2), ("mc_sf", 1)])
def test_the_scheduler_holds_its_requests_to_the_lower_end(order, together):
    """Two answers of 10 to 60 tokens fit by their lower ends, and one by the mean."""
    knowledge = Knowledge()
    queue = catalog.queue_policies()[order].build(knowledge=knowledge)
    placement = catalog.placement_policies()["least_loaded"].build(knowledge=knowledge)
    scheduler = Scheduler(queue, placement, SchedulerSettings(kv_margin=0.0), knowledge)
    scheduler.worker_joined(WorkerFacts("w0", frozenset({"base"}), kv_tokens=61), 0.0)
    started = []
    for number in range(2):
        scheduler.submit(request(number, Job(10, 40, 0, (10, 60))), 0.0)
        for decision in scheduler.decisions(0.0):
            started.append(decision.request.id)
            scheduler.first_token(decision.ticket, 0.1)
    started += [decision.request.id for decision in scheduler.decisions(0.1)]
    assert len(started) == together
