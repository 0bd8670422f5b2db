"""A seeded choice: alike for one request, even over many."""

from collections import Counter

from views import chosen, ranking, request, worker

from policies.knowledge import Knowledge
from policies.model import Reason
from policies.placements.random_choice import RandomChoice, Settings

FLEET = [worker(name) for name in "abcd"]


def test_workers_are_drawn_evenly_whatever_they_hold_and_have_to_do():
    policy = RandomChoice(Settings(), Knowledge())
    fleet = [worker("a", requests=90), *FLEET[1:]]
    draws = Counter(chosen(policy, fleet, {"b": 900}, request(f"r{number}")) for number in range(4000))
    assert draws.keys() == {(name, Reason.CHANCE) for name in "abcd"}
    assert max(draws.values()) < 1.2 * min(draws.values())


def test_one_request_has_one_draw():
    policy = RandomChoice(Settings(), Knowledge())
    assert ranking(policy, FLEET) == ranking(policy, FLEET)
