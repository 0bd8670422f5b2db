"""What all orders by size share: ageing by halves, lanes, first fit or not, the scheduler's test of memory."""

from itertools import pairwise
from math import inf, log2
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish
from unit_steps import Job, naive, request
from views import full, worker

from policies import catalog
from policies.knowledge import Knowledge
from policies.model import Dispatch, Usage, WorkerFacts
from policies.orders.kit.sizes import SizedOrder, expected
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

QUEUES = catalog.queue_policies()
STOPPING = ["mc_sf", "amax", "amin", "sorted_f"]
SKIPPING = ["svf", "shortest_first"]
SIZED = [*STOPPING, *SKIPPING]


def queue(name, *jobs, **fields):
    made = QUEUES[name].build(QUEUES[name].settings(**fields))
    for number, job in enumerate(jobs):
        made.push(request(number, job))
    return made


def by_length(*requests, **fields):
    made = SizedOrder(expected, **{"skips": True, "halves_s": 60.0, "window": 100, **fields})
    for one in requests:
        made.push(one)
    return made


def offered(made, now=0.0, workers=None):
    workers = [worker("a"), worker("b")] if workers is None else workers
    return [offer.request.id for offer in made.candidates(workers, now)]


# -- ageing


@settings(max_examples=100, deadline=None)
@given(
    waiting=st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 600)), min_size=1, max_size=20),
    now=st.sampled_from([600.0, 700.0, 10_000.0]),
)
def test_it_is_a_sort_by_sizes_that_halve_with_waiting(waiting, now):
    made = by_length(*(request(n, Job(5, size, at)) for n, (size, at) in enumerate(waiting)))

    def halved(name):
        size, at = waiting[int(name[1:])]
        return log2(size) - (now - at) / 60.0

    order = [halved(name) for name in offered(made, now)]
    assert all(one <= other + 1e-9 for one, other in pairwise(order))


@pytest.mark.parametrize(("name", "halvings"), [("shortest_first", log2(16)), ("svf", log2((8 * 16 + 136) / 9))])
def test_a_request_is_overtaken_only_by_those_that_arrive_soon_after_it(name, halvings):
    """By those of the smallest size: as long as its own size takes to halve down to theirs."""
    until = int(halvings * 60.0)
    made = queue(name, Job(8, 16), Job(8, 1, until - 1), Job(8, 1, until + 1), halves_s=60.0)
    assert offered(made, until + 1.0) == ["r001", "r000", "r002"]


@pytest.mark.parametrize("name", SIZED)
def test_under_a_backlog_of_minutes_an_order_by_size_stays_one(name):
    """Twice as much work as one worker can do, for ten minutes: answers of 5 tokens, and every tenth one of 60."""
    wishes = [Wish("anna", at, 4, 60 if at % 10 == 0 else 5, topic=at % 50) for at in range(600)]
    latency = {}
    for order in (name, "fcfs"):
        fleet = SteppedFleet(order, slots=5).play(wishes)
        names = sorted(fleet.views)
        latency[order] = median(fleet.started[n] + w.output - w.at for n, w in zip(names, wishes, strict=True))
    assert latency["fcfs"] > 300
    assert latency[name] < 0.1 * latency["fcfs"]


@pytest.mark.parametrize("name", SIZED)
def test_no_request_starves_behind_a_flood_of_small_ones(name):
    """A large request while small ones keep the memory full: it starts once its size has halved often enough."""
    flood = [Wish("flood", at, 8, 4, topic=1) for at in range(400) for _ in range(3)]
    large = Wish("modest", 20, 100, 30, topic=2)

    def make(knowledge):
        return QUEUES[name].build(QUEUES[name].settings(halves_s=15.0), knowledge)

    fleet = SteppedFleet(name, slots=10, make=make, kv_tokens=140).play([*flood, large])
    (started,) = [fleet.started[one] for one, v in fleet.views.items() if v.client == "modest"]
    assert started <= 20 + 15 * log2((100 * 30 + 465) / (8 * 4 + 10)) + 60
    assert fleet.scheduler.faults.count == 0


def test_only_the_first_of_a_lane_reserves_a_worker_and_not_before_it_has_waited():
    made = by_length(request(0, Job(5, 1)), request(1, Job(5, 9)), request(2, Job(5, 90), pinned="a"))
    assert [(offer.request.id, offer.overdue) for offer in made.candidates([worker("a")], 59.0)] == [
        ("r000", False),
        ("r001", False),
        ("r002", False),
    ]
    assert [offer.overdue for offer in made.candidates([worker("a")], 60.0)] == [True, False, True]


# -- lanes, and what is offered


@pytest.mark.parametrize("name", SIZED)
def test_only_an_order_by_first_fit_offers_what_is_behind_the_first(name):
    made = queue(name, Job(30, 5), Job(20, 9), Job(10, 30))
    assert len(offered(made)) == (3 if name in SKIPPING else 1)


@pytest.mark.parametrize("name", SIZED)
def test_requests_that_other_workers_could_run_are_offered_as_well(name):
    made = queue(name, Job(30, 5), Job(30, 5))
    made.push(request(2, Job(30, 9), pinned="b"))
    assert {"r000", "r002"} <= set(offered(made))
    assert offered(made, workers=[worker("a"), worker("b", room=full())])[0] == "r000"
    assert "r002" not in offered(made, workers=[worker("a"), worker("b", room=full())])


@pytest.mark.parametrize("name", SIZED)
def test_of_ten_thousand_only_a_few_are_offered(name):
    made = queue(name, *(Job(1 + number % 97, 1 + number % 89) for number in range(10_000)))
    assert len(offered(made)) <= 64
    assert len(made) == 10_000


@settings(max_examples=60)
@given(
    wanted=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([None, "a"]), st.booleans()), min_size=1, max_size=30
    ),
    chance=st.randoms(use_true_random=False),
)
def test_it_is_a_sorted_list_of_what_came_and_has_not_left(wanted, chance):
    made, inside = by_length(halves_s=inf), {}
    for number, (output, pinned, leaves) in enumerate(wanted):
        one = request(number, Job(5, output, number), pinned=pinned)
        made.push(one)
        inside[one.id] = one
        if leaves:
            made.remove(inside.pop(chance.choice(sorted(inside))))
        by_size = sorted(inside.values(), key=lambda o: (o.expected_output_tokens, o.arrived, o.id))
        assert made.smallest(100) == by_size
        assert offered(made) == [one.id for one in by_size]
        assert {o.id for o in made.waiting()} == inside.keys()
        assert len(made) == len(inside)
    for one in list(inside.values()):
        made.remove(one)
    assert (made._lanes, made._ranks) == ({}, {})


# -- through the scheduler


@pytest.mark.parametrize("name", ["mc_sf", "svf"])
def test_through_the_scheduler_the_same_start_at_the_same_time(name):
    """Answers as long as predicted: what the scheduler knows of its workers is what the papers know."""
    jobs = [Job(5 + 7 * number % 26, 1 + 5 * number % 12, 3 * (number % 3)) for number in range(30)]

    def shortest(waiting):
        return sorted(waiting, key=lambda n: (jobs[n].output, jobs[n].at, n))

    def by_volume(waiting):
        volumes = [sum(job.prompt + step for step in range(1, job.output + 1)) for job in jobs]
        return sorted(waiting, key=lambda n: (volumes[n], jobs[n].at, n))

    order, skips = (by_volume, True) if name == "svf" else (shortest, False)
    assert scheduled(name, jobs, 90) == naive(jobs, 90, order=order, skips=skips)


def scheduled(name, jobs, capacity):
    """When each job starts, asked of a whole scheduler."""
    knowledge, started, running = Knowledge(), {}, {}
    made = QUEUES[name].build(QUEUES[name].settings(halves_s=inf), knowledge)
    bounds = SchedulerSettings(prefill_window_tokens=10**9, hold_s=0.0, kv_margin=0.0)
    scheduler = Scheduler(made, LeastLoaded(LeastLoadedSettings()), bounds, knowledge)
    scheduler.worker_joined(WorkerFacts("w0", frozenset({"base"}), kv_tokens=capacity), 0.0)
    for now in range(200):
        for number, job in enumerate(jobs):
            if job.at == now:
                scheduler.submit(request(number, job), float(now))
        for decision in scheduler.decisions(float(now)):
            assert isinstance(decision, Dispatch)
            number = int(decision.request.id[1:])
            started[number], running[number] = now, [decision.ticket, 0]
        for number, attempt in list(running.items()):
            attempt[1] += 1
            scheduler.output(attempt[0], 1, float(now))
            if attempt[1] == jobs[number].output:
                scheduler.settled(attempt[0], Usage(jobs[number].prompt, attempt[1]), float(now))
                del running[number]
    assert not running
    return started
