"""A_min: bold by the lower end and corrected by what is seen, against a program that walks through every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered, request

from policies import catalog
from policies.events import Output, Placed
from policies.knowledge import Knowledge
from policies.model import Placement, WorkerFacts
from policies.orders.amin import AMin, Settings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

PLACEMENT = Placement("w0")
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
def test_it_starts_whom_the_step_by_step_program_starts(jobs, capacity):
    queue = AMin(Settings(raises="stepwise", patience_s=1e9), Knowledge())
    assert ordered(queue, jobs, capacity) == naive(
        jobs, capacity, order=by_lower(jobs), estimate=lambda job, done: max(job.lower, done + 1)
    )


@settings(max_examples=50, deadline=None)
@given(jobs=JOBS, capacity=st.integers(48, 120), seen=st.lists(st.integers(1, 20), min_size=10, max_size=20))
def test_what_other_answers_taught_raises_an_estimate_at_once(jobs, capacity, seen):
    knowledge = Knowledge()
    for tokens in seen:
        knowledge.lengths.record("anna", "base", 10, tokens)

    def estimate(job, done):
        given_so_far = knowledge.lengths.estimate_longer("anna", "base", job.prompt, None, done)
        return given_so_far.lower if done else job.lower

    queue = AMin(Settings(patience_s=1e9), knowledge)
    assert ordered(queue, jobs, capacity) == naive(jobs, capacity, order=by_lower(jobs), estimate=estimate)


@pytest.mark.parametrize("raises", ["stepwise", "learned"])
def test_an_estimate_rises_only_when_it_is_reached(raises):
    queue, one = AMin(Settings(raises=raises), Knowledge()), request(0, Job(10, 40, 0, (20, 60)))
    queue.on(Placed(one, PLACEMENT, 0, 10, 0.0))
    estimates = []
    for _ in range(60):
        queue.on(Output(one, PLACEMENT, 1, 0.0))
        estimates.append(queue._residents._by_id[one.id].answer)
    assert estimates[:19] == [20] * 19
    assert estimates == sorted(estimates)
    assert all(estimate > number for number, estimate in enumerate(estimates, 1))


def test_it_is_bolder_than_the_mean_and_learns_from_what_it_sees():
    jobs = [Job(10, 40, 0, (10, 60)), Job(10, 40, 0, (10, 60)), Job(10, 40, 30, (10, 60))]
    started = ordered(AMin(Settings(raises="stepwise"), Knowledge()), jobs, 61)
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
