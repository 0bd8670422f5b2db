"""Round robin: workers in turn, and the turn moves when a request's worker is settled."""

from views import chosen, ranking, request, worker

from policies.events import Bound
from policies.model import Placement, Reason
from policies.placements.round_robin import RoundRobin, Settings

FLEET = [worker("a"), worker("b"), worker("c")]


def rounds(policy, workers, times):
    names = []
    for _ in range(times):
        name, _ = chosen(policy, workers)
        names.append(name)
        policy.on(Bound(request(), Placement(name), 0.0))
    return names


def test_it_takes_workers_in_turn():
    assert rounds(RoundRobin(Settings()), FLEET, 5) == ["a", "b", "c", "a", "b"]


def test_those_that_follow_are_the_next_ones():
    policy = RoundRobin(Settings())
    rounds(policy, FLEET, 1)
    assert [entry.worker.id for entry in ranking(policy, FLEET)] == ["b", "c", "a"]


def test_it_moves_on_only_when_a_worker_is_settled():
    assert [chosen(RoundRobin(Settings()), FLEET) for _ in range(3)] == [("a", Reason.TURN)] * 3


def test_the_turn_goes_on_when_workers_leave():
    policy = RoundRobin(Settings())
    assert rounds(policy, FLEET, 2) == ["a", "b"]
    assert rounds(policy, FLEET[:2], 2) == ["a", "b"]
