"""Two random choices: the less loaded of two workers that are drawn for each request."""

from collections import Counter
from random import Random

import pytest
from views import chosen, named, ranking, request, worker

from policies.knowledge import Knowledge
from policies.placements.power_of_two import PowerOfTwo, Settings


def policy(seed=0):
    return PowerOfTwo(Settings(), Knowledge(rng=Random(seed)))


def test_of_two_workers_the_less_loaded_takes_every_request():
    fleet = [worker("a", requests=5), worker("b", requests=1)]
    assert {named(policy(), fleet, {}, request(f"r{number}")) for number in range(50)} == {"b"}


def test_the_busiest_worker_is_never_better_than_what_is_drawn_with_it():
    fleet = [worker(f"w{load}", requests=load) for load in range(8)]
    counts = Counter(named(policy(), fleet, {}, request(f"r{number}")) for number in range(2000))
    assert counts["w7"] == 0
    assert [counts[f"w{load}"] for load in range(7)] == sorted(
        (counts[f"w{load}"] for load in range(7)), reverse=True
    )


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_two_different_workers_come_first_and_the_others_follow_by_load(size):
    fleet = [worker(f"w{load}", requests=load) for load in range(size)]
    for number in range(50):
        names = [entry.worker.id for entry in ranking(policy(), fleet, {}, request(f"r{number}"))]
        assert sorted(names) == [f"w{load}" for load in range(size)]
        assert names[2:] == sorted(names[2:])
        assert names[:2] == sorted(names[:2])


def test_the_draw_follows_from_the_seed():
    fleet = [worker(f"w{load}") for load in range(8)]

    def draws(seed):
        return [chosen(policy(seed), fleet, {}, request(f"r{number}")) for number in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
