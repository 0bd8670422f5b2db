"""What equal parties get of a fleet through the whole scheduler, however many names stand below them."""

import pytest
from stepped_fleet import SteppedFleet, Wish


def served(queue, wishes, **fields):
    """Service of each organisation while both have requests that wait."""
    fleet = SteppedFleet(queue, workers=4, slots=4, **fields)
    measured = fleet.play(wishes).measured
    services = {}
    for service, waiting in measured.samples:
        if {name.split("/")[0] for name in waiting} >= {"one", "many"}:
            services = service
    totals = {"one": 0.0, "many": 0.0}
    for name, service in services.items():
        totals[name.split("/")[0]] += service
    return totals


@pytest.mark.parametrize("queue", ["dlpm", "vtc"])
@pytest.mark.parametrize("users", [1, 30, 64])
def test_two_equal_keys_get_the_same_although_one_draws_its_user_from_many_names(queue, users):
    one = [Wish("one/u", 0, 60, 8, topic=n % 7) for n in range(700)]
    many = [Wish(f"many/user {n * 37 % users}", 0, 60, 8, topic=n % 7) for n in range(700)]
    totals = served(queue, [wish for pair in zip(one, many, strict=True) for wish in pair])
    share = totals["one"] / sum(totals.values())
    assert sum(totals.values()) > 20_000
    assert 0.47 < share < 0.53


@pytest.mark.parametrize("queue", ["dlpm", "vtc"])
def test_with_each_name_a_party_of_its_own_the_one_gets_much_less(queue):
    """The measurement sees it: the same requests, each name a party of its own."""
    wishes = [Wish("one", 0, 60, 8, topic=n % 7) for n in range(700)]
    wishes += [Wish(f"many{n * 37 % 30}", 0, 60, 8, topic=n % 7) for n in range(700)]
    fleet = SteppedFleet(queue, workers=4, slots=4).play(wishes)
    services = [service for service, waiting in fleet.measured.samples if len(waiting) == 31][-1]
    assert services["one"] / sum(services.values()) < 0.2
