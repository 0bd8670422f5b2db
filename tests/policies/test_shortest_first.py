"""Shortest answer first, until somebody has waited for long; and the backlog by size that several orders keep."""

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, request, view

from policies.orders.kit.sized import SizedBacklog
from policies.orders.shortest_first import Settings, ShortestFirst

WAITING = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=20)
WORKERS = [view([], None, name="a"), view([], None, name="b")]


def queue(*jobs, **fields):
    made = ShortestFirst(Settings(**fields))
    for number, job in enumerate(jobs):
        made.push(request(number, job))
    return made


def offered(made, now=0.0, workers=WORKERS):
    return [offer.request.id for offer in made.candidates(workers, now)]


@settings(max_examples=80, deadline=None)
@given(waiting=WAITING, now=st.sampled_from([20.0, 25.0, 100.0]))
def test_it_is_a_sort_by_predicted_output_within_the_patient(waiting, now):
    made = queue(*(Job(5, output, at) for output, at in waiting), patience_s=10.0, window=len(waiting) + 1)

    def key(number):
        output, arrived = waiting[number]
        return (0, 0, arrived, number) if now - arrived > 10.0 else (1, output, arrived, number)

    ordered = [f"r{number:03}" for number in sorted(range(len(waiting)), key=key)]
    old = any(now - arrived > 10.0 for _, arrived in waiting)
    assert offered(made, now) == ordered[: 1 if old else None]  # it could use every worker: nothing is left


def test_whoever_has_waited_long_keeps_the_younger_off_the_workers_it_could_use():
    made = queue(Job(5, 90, 0), Job(5, 1, 15), patience_s=10.0)
    made.push(request(7, Job(5, 80, 0), excluded=frozenset("b")))
    offers = list(made.candidates(WORKERS, 20.0))
    assert [(offer.request.id, set(offer.keep_off)) for offer in offers] == [("r000", set())]
    made.remove(request(0, Job(5, 90, 0)))
    offers = list(made.candidates(WORKERS, 20.0))
    assert [(offer.request.id, set(offer.keep_off)) for offer in offers] == [("r007", set()), ("r001", {"a"})]


def test_of_a_long_queue_only_a_few_are_looked_at():
    made = queue(*(Job(5, 500 - number, number) for number in range(500)), window=3, patience_s=490.0)
    assert offered(made, now=490.0) == ["r499", "r498", "r497"]
    assert offered(made, now=499.0) == ["r000"]


def test_lanes_that_no_worker_with_room_could_serve_hide_nobody():
    backlog = SizedBacklog(lambda one: one.expected_output_tokens)
    for number in range(5):
        backlog.push(request(number, Job(5, 1), pinned="full"))
    backlog.push(request(9, Job(5, 9)))
    assert [one.id for one in backlog.in_order(WORKERS, 0.0, 10.0, 3)] == ["r009"]
    assert [one.id for one in backlog.in_order([], 0.0, 10.0, 3)] == ["r000", "r001", "r002"]
    assert [one.id for one in backlog.smallest(2)] == ["r000", "r001"]


@settings(max_examples=60)
@given(
    wanted=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([None, "a"]), st.booleans()), min_size=1, max_size=30
    ),
    chance=st.randoms(use_true_random=False),
)
def test_the_backlog_is_a_sorted_list_of_who_came_and_has_not_left(wanted, chance):
    backlog, inside = SizedBacklog(lambda one: one.expected_output_tokens), {}
    for number, (output, pinned, leaves) in enumerate(wanted):
        one = request(number, Job(5, output, number), pinned=pinned)
        backlog.push(one)
        inside[one.id] = one
        if leaves:
            backlog.remove(inside.pop(chance.choice(sorted(inside))))
        by_size = sorted(inside.values(), key=lambda o: (o.expected_output_tokens, o.arrived, o.id))
        assert backlog.smallest(100) == by_size
        by_age = sorted(inside.values(), key=lambda o: (o.arrived, o.id))
        assert backlog.in_order([], 1000.0, 10.0, 100) == by_age
        assert {o.id for o in backlog} == inside.keys()
        assert len(backlog) == len(inside)
    for one in list(inside.values()):
        backlog.remove(one)
    assert backlog._lanes == {}
