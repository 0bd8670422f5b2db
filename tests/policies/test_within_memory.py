"""What all orders under a memory limit share: several workers, room elsewhere, ageing, and no word said twice."""

import pytest
from stepped_fleet import SteppedFleet, Wish
from unit_steps import Job, naive, request, view

from policies import catalog
from policies.events import Left, Output, Placed
from policies.fleet.kv_fit import Member
from policies.knowledge import Knowledge
from policies.model import Dispatch, Outcome, Placement, PrefixKey, RequestView, Usage, WorkerFacts
from policies.orders.kit.running_batch import Residents
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

QUEUES = catalog.queue_policies()
WITHIN = ["mc_sf", "sorted_f", "svf", "amax", "amin"]
SIZED = [*WITHIN, "shortest_first"]


def queue(name, *jobs, **fields):
    made = QUEUES[name].build(QUEUES[name].settings(**fields))
    for number, job in enumerate(jobs):
        made.push(request(number, job))
    return made


def offers(made, workers, now=0.0):
    return [(offer.request.id, set(offer.keep_off)) for offer in made.candidates(workers, now)]


def busy(capacity, name):
    """A worker on which a request runs that the orders' own accounts know as well."""
    return view([Member(20, 0, 10)], capacity, name=name)


def run_on(made, *names):
    for number, name in enumerate(names, 100):
        made.on(Placed(request(number, Job(20, 10)), Placement(name), 0, 20, 0.0))
    return made


@pytest.mark.parametrize("name", WITHIN)
def test_a_request_is_kept_off_the_workers_where_it_does_not_fit(name):
    made = run_on(queue(name, Job(30, 5)), "small", "large")
    workers = [busy(59, "small"), busy(60, "large")]
    assert offers(made, workers) == [("r000", {"small"})]
    assert offers(made, workers) == [("r000", {"small"})]


@pytest.mark.parametrize("name", WITHIN)
def test_only_an_order_by_first_fit_lets_a_smaller_one_pass(name):
    """The second has the longer answer and the larger volume, but fits beside what runs on one of the workers."""
    made = run_on(queue(name, Job(30, 5), Job(20, 9)), "small", "large")
    workers = [busy(57, "small"), busy(58, "large")]
    passing = [("r000", {"small", "large"}), ("r001", {"small"})]
    assert offers(made, workers) == (passing if name == "svf" else passing[:1])


def test_a_longer_prompt_may_fit_where_a_longer_answer_does_not():
    """Beside four that grow: 4 * (10 + 30) + 40 at the end of the one, 4 * (10 + 10) + 85 of the other."""
    made = queue("svf", Job(10, 30), Job(75, 10))
    workers = [view([Member(10, 0, 40)] * 4, 180)]
    assert offers(made, workers) == [("r000", {"w0"}), ("r001", set())]


@pytest.mark.parametrize("name", WITHIN)
def test_a_failure_closes_one_worker_and_not_the_others(name):
    made = run_on(queue(name, Job(30, 5), Job(1, 40)), "small", "large")
    workers = [busy(59, "small"), busy(90, "large")]
    kept = set() if name == "svf" else {"small"}
    assert offers(made, workers) == [("r000", {"small"}), ("r001", kept)]


@pytest.mark.parametrize("name", WITHIN)
def test_an_idle_worker_and_one_of_unknown_memory_take_anything(name):
    made = run_on(queue(name, Job(900, 90)), "unknown")
    unknown = view([Member(20, 0, 10)], None, name="unknown")
    assert offers(made, [view([], 60, name="idle"), unknown]) == [("r000", set())]


@pytest.mark.parametrize("name", WITHIN)
def test_a_prefix_that_others_hold_does_not_count_again(name):
    knowledge = Knowledge()
    made = QUEUES[name].build(knowledge=knowledge)

    def sharing(number):
        key = PrefixKey(b"p" * 30 + bytes([number]) * 2, 1, 1.0)
        return RequestView(f"r{number:03}", "anna", "base", key, 32, 5, 0.0)

    running = sharing(1)
    knowledge.prefixes.insert("w0", running, 0.0)
    made.on(Placed(running, Placement("w0"), 0, 32, 0.0))
    made.push(sharing(2))
    assert offers(made, [view([Member(32, 0, 5)], 32 + 2 + 10)]) == [("r002", set())]
    assert offers(made, [view([Member(32, 0, 5)], 32 + 2 + 9)]) == [("r002", {"w0"})]


@pytest.mark.parametrize("name", SIZED)
def test_nobody_starves_behind_a_flood_of_small_ones(name):
    """A large request while small ones keep the memory full: it starts once it has waited long enough."""
    flood = [Wish("flood", at, 8, 4, topic=1) for at in range(120) for _ in range(3)]
    large = Wish("modest", 20, 100, 30, topic=2)

    def make(knowledge):
        return QUEUES[name].build(QUEUES[name].settings(patience_s=15.0), knowledge)

    fleet = SteppedFleet(name, slots=10, make=make)
    fleet.scheduler.worker_changed(WorkerFacts("w0", frozenset({"base"}), slots=10, kv_tokens=140), 0.0)
    fleet.play([*flood, large])
    (started,) = [fleet.started[one] for one, v in fleet.views.items() if v.client == "modest"]
    assert started <= 80
    assert fleet.scheduler.faults.count == 0


@pytest.mark.parametrize("name", SIZED)
def test_of_ten_thousand_only_a_few_are_looked_at(name):
    made = queue(name, *(Job(1 + number % 97, 1 + number % 89) for number in range(10_000)))
    for number in range(10):
        members = [Member(20, number, 10)]
        assert len(offers(run_on(made, "w0"), [view(members, 1000)], now=float(number))) <= 128
    assert len(made) == 10_000


# -- through the scheduler


@pytest.mark.parametrize("name", ["mc_sf", "svf"])
def test_through_the_scheduler_the_same_start_at_the_same_time(name):
    """Answers as long as predicted: what the scheduler knows of its workers is what the papers know."""
    jobs = [Job(5 + 7 * number % 26, 1 + 5 * number % 12, 3 * (number % 3)) for number in range(30)]

    def by_length(waiting):
        return sorted(waiting, key=lambda n: (jobs[n].output, jobs[n].at, n))

    def by_volume(waiting):
        volumes = [sum(job.prompt + step for step in range(1, job.output + 1)) for job in jobs]
        return sorted(waiting, key=lambda n: (volumes[n], jobs[n].at, n))

    order, skips = (by_volume, True) if name == "svf" else (by_length, False)
    assert scheduled(name, jobs, 90) == naive(jobs, 90, order=order, skips=skips)


def scheduled(name, jobs, capacity):
    """When each job starts, asked of a whole scheduler."""
    knowledge, started, running = Knowledge(), {}, {}
    made = QUEUES[name].build(QUEUES[name].settings(patience_s=1e9), knowledge)
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
        for number, leg in list(running.items()):
            leg[1] += 1
            scheduler.output(leg[0], 1, float(now))
            if leg[1] == jobs[number].output:
                scheduler.settled(leg[0], Usage(jobs[number].prompt, leg[1]), float(now))
                del running[number]
    assert not running
    return started


# -- accounts of what runs


def test_residents_are_taken_grown_and_given_back():
    kept = Residents(lambda one, generated: 10 if not generated else generated + 5)
    one = request(1, Job(20, 10), sequences=2)
    kept.on(Placed(one, Placement("w0"), 0, 20, 0.0))
    worker = view([Member(20, 0, 10)], 100)
    assert kept.batch(view([], None)) is None
    assert kept.batch(worker).capacity == 100
    assert not kept.batch(worker).fits(Member(61, 0, 10))  # 20 + 2 * 10 + 61 + 10
    assert kept.batch(worker).fits(Member(50, 0, 10))
    kept.on(Output(one, Placement("w0"), 18, 0.0))
    assert kept._by_id[one.id].answer == 10
    kept.on(Output(one, Placement("w0"), 2, 0.0))
    assert kept._by_id[one.id].answer == 15
    assert not kept.batch(worker).fits(Member(46, 0, 5))  # 20 + 2 * 15 + 46 + 5
    kept.on(Left(one, Placement("w0"), None, None, 0.0))
    kept.on(Left(one, Placement("w0"), Outcome.COMPLETED, None, 0.0))
    kept.on(Output(one, Placement("w0"), 2, 0.0))
    assert (len(kept), len(kept.batch(worker)), kept._by_worker) == (0, 0, {})
