"""A full queue turns away the newest request of the party that holds most of it, by weight, level by level."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import request

from policies.scheduler.queue_bound import QueueBound


def asked(name, *party, arrived=0.0, **fields):
    return request(name, "/".join(party), arrived=arrived, party=party, **fields)


def filled(*requests):
    bound = QueueBound()
    for one in requests:
        bound.add(one)
    return bound


def test_a_flood_that_fills_the_queue_makes_room_for_a_party_that_was_never_served():
    bound = filled(*(request(f"f{number}", "flood", arrived=float(number)) for number in range(4096)))
    bound.add(request("first", "anna", arrived=5000.0))
    assert bound.to_reject().id == "f4095"


def test_the_flood_is_turned_away_itself_when_it_is_the_newcomer():
    bound = filled(request("a", "anna"), *(request(f"f{number}", "flood") for number in range(10)))
    bound.add(request("newest", "flood", arrived=1.0))
    assert bound.to_reject().id == "newest"


def test_among_parties_with_as_many_requests_the_newcomer_is_turned_away():
    bound = filled(*(request(f"r{number}", f"client {number}") for number in range(4096)))
    bound.add(request("newest", "anna"))
    assert bound.to_reject().id == "newest"


def test_who_pays_for_four_times_as_much_may_have_four_times_as_many():
    bound = filled(*(request(f"h{number}", "heavy", weight=4.0) for number in range(12)))
    bound.add(request("l0", "light"))
    bound.add(request("l1", "light"))
    bound.add(request("l2", "light"))
    assert bound.to_reject().id == "l2"
    bound.add(request("h12", "heavy", weight=4.0))
    assert bound.to_reject().id == "h12"


def test_accounts_are_compared_first_and_then_users_inside_the_largest():
    """The key with thirty users holds more, though each of its users holds less than anna does."""
    users = [asked(f"u{number}", "acme", f"user {number % 30}", arrived=1.0) for number in range(60)]
    bound = filled(*users, asked("more", "acme", "user 7"), *(asked(f"a{n}", "anna") for n in range(20)))
    assert bound.to_reject().id == "u37"
    assert bound.to_reject().party == ("acme", "user 7")


def test_a_request_that_came_back_is_as_old_as_it_was():
    bound = filled(request("young", arrived=5.0), request("younger", arrived=6.0), request("back", arrived=1.0))
    assert bound.to_reject().id == "younger"


def test_what_was_not_added_cannot_be_removed_and_nothing_can_be_turned_away_of_nothing():
    bound = filled(request("one"))
    with pytest.raises(KeyError):
        bound.remove(request("other"))
    assert len(bound) == 1
    bound.remove(request("one"))
    with pytest.raises(IndexError):
        bound.to_reject()


PARTIES = [("anna",), ("acme",), ("acme", "ann"), ("acme", "ben"), ("bolt", "lab", "cleo"), ("bolt", "lab", "dan")]
WEIGHTS = {"anna": 0.5, "acme": 2.0, "bolt": 1.0}


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), min_size=1, max_size=40),
    chance=st.randoms(use_true_random=False),
)
def test_it_turns_away_what_counting_everything_anew_would(steps, chance):
    bound, inside = QueueBound(), {}
    for number, (party, arrived, leaves) in enumerate(steps):
        one = asked(
            f"r{number:02}", *PARTIES[party], arrived=float(arrived), weights=(WEIGHTS[PARTIES[party][0]],)
        )
        bound.add(one)
        inside[one.id] = one
        if leaves:
            bound.remove(inside.pop(chance.choice(sorted(inside))))
        assert len(bound) == len(inside)
        if inside:
            check(list(inside.values()), bound.to_reject())
    for one in inside.values():
        bound.remove(one)
    assert (bound._root.children, bound._root.seats, bound._root.count) == ({}, [], 0)


def check(waiting, rejected):
    """At each level its party holds as much as any, and in the end it is the newest of its party."""
    for depth in range(len(rejected.party) + 1):
        above = rejected.party[:depth]
        level = [one for one in waiting if one.party[:depth] == above]
        loads = {}
        for one in level:
            if len(one.party) > depth:
                name = one.party[depth]
                loads[name] = loads.get(name, 0.0) + 1 / (WEIGHTS[name] if depth == 0 else 1.0)
        if depth < len(rejected.party):
            assert loads[rejected.party[depth]] == pytest.approx(max(loads.values()))
        else:
            own = [one for one in level if one.party == above]
            assert len(own) >= max(loads.values(), default=0)
            assert rejected.arrived == max(one.arrived for one in own)
