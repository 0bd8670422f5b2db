"""Reservations: one worker for a request that fits nowhere, and never a whole fleet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish
from views import request, worker

from policies.model import RejectReason
from policies.orders import dlpm, vtc
from policies.scheduler.reservations import Reservations

WORKERS, SLOTS = 8, 8

# -- the table


def test_the_worker_that_needs_the_least_to_end_is_reserved():
    made, one = Reservations(), request("large")
    made.reserve(one, [worker("a", requests=3), worker("b", requests=1), worker("c", requests=2)], 3)
    assert made.of(one) == "b"
    assert (made.blocked(one), made.blocked(request("other"))) == (frozenset(), {"b"})


@pytest.mark.parametrize(("fleet_size", "most"), [(1, 1), (8, 1), (15, 1), (16, 2), (64, 8)])
def test_at_most_an_eighth_of_the_fleet_is_reserved_and_one_worker_always_may_be(fleet_size, most):
    made, workers = Reservations(), [worker(f"w{number}") for number in range(fleet_size)]
    for number in range(fleet_size + 1):
        made.reserve(request(f"r{number}"), workers, fleet_size)
    assert len(made) == most


def test_a_request_whose_worker_serves_it_no_longer_reserves_another_one():
    made, one = Reservations(), request("large")
    made.reserve(one, [worker("a"), worker("b")], 2)
    made.reserve(one, [worker("a"), worker("b")], 2)
    assert (made.of(one), len(made)) == ("a", 1)
    made.reserve(one, [worker("b")], 2)
    assert (made.of(one), made.blocked(request("other"))) == ("b", {"b"})


STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "release", "leaves"]), st.integers(0, 5), st.integers(0, 3))
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_a_request_holds_one_worker_and_a_worker_is_held_for_one_request(steps):
    made, workers = Reservations(), [worker(f"w{number}") for number in range(4)]
    for what, number, at in steps:
        one = request(f"r{number}")
        if what == "reserve":
            made.reserve(one, workers, 32)
        elif what == "release":
            made.release(one)
        else:
            made.remove_worker(f"w{at}")
        held = [made.of(request(f"r{n}")) for n in range(6)]
        reserved = [name for name in held if name is not None]
        assert len(set(reserved)) == len(reserved) == len(made) <= 4
        assert made.blocked(request("other")) == set(reserved)
    for number in range(6):
        made.release(request(f"r{number}"))
    assert (len(made), made.blocked(request("other"))) == (0, frozenset())


# -- a fleet


class Steady:
    """Eight workers with eight slots, more small requests than they can serve, and what ran least meanwhile."""

    def __init__(self, queue, **fields):
        self.fleet = SteppedFleet(queue, workers=WORKERS, slots=SLOTS, **fields)
        self.fleet.checks.append(self.check)
        self.least = WORKERS * SLOTS
        self.kept = 0

    def check(self, fleet):
        small = [one for one in fleet.scheduler.waiting() if one.sequences == 1 and one.id not in fleet.large]
        if len(small) > 2 * WORKERS * SLOTS and fleet.now > 0:
            self.least = min(self.least, fleet.sequences)
        self.kept = max(self.kept, len(fleet.scheduler._matcher.reservations))

    def play(self, *large, rejected=()):
        traffic = [Wish(f"c{n % 5}", max(0, n - 200) // 10, 20, 3 + n % 9, n % 4) for n in range(1000)]
        wishes = sorted([*traffic, *large], key=lambda wish: wish.at)
        self.fleet.large = {f"r{at:04}" for at, wish in enumerate(wishes) if wish in large}
        self.fleet.play(wishes, rejected=self.fleet.large if rejected else ())
        return self

    @property
    def started(self):
        return sorted(self.fleet.started[name] for name in self.fleet.large & self.fleet.started.keys())


def large(at=5, *, sequences=1, tokens=20, client="large", **fields):
    return Wish(client, at, tokens, 4, more=(("sequences", sequences), *fields.items()))


@pytest.mark.parametrize("queue", ["fcfs", "dlpm", "vtc", "lpm", "priority", "svf"])
def test_a_request_larger_than_a_worker_drains_one_worker_and_not_the_fleet(queue):
    played = Steady(queue).play(large(sequences=9))
    assert played.least >= 56
    assert played.kept <= 1
    assert len(played.started) == 1


@pytest.mark.parametrize("queue", ["fcfs", "dlpm", "vtc", "priority"])
def test_it_is_served_while_small_requests_still_wait(queue):
    played = Steady(queue).play(large(sequences=9))
    assert played.kept == 1
    assert played.started[0] < 60, "traffic comes for 80 steps"
    assert max(played.fleet.started.values()) > 80


@pytest.mark.parametrize("queue", ["fcfs", "dlpm"])
def test_several_of_them_are_served_one_after_the_other(queue):
    played = Steady(queue).play(*(large(5 + n, sequences=9) for n in range(4)))
    assert played.least >= 56
    assert played.kept == 1
    assert len(played.started) == 4


@pytest.mark.parametrize(
    ("kv_tokens", "fields"),
    [(1000, {"tokens": 2000, "exact": True}), (None, {"sequences": 10**9})],
    ids=["a prompt that no worker can hold", "a thousand million answers"],
)
@pytest.mark.parametrize("queue", ["fcfs", "dlpm"])
def test_what_no_worker_can_ever_hold_is_rejected_at_once_and_drains_nothing(queue, kv_tokens, fields):
    played = Steady(queue, kv_tokens=kv_tokens).play(large(**fields), rejected=True)
    assert set(played.fleet.rejected.values()) == {RejectReason.TOO_LARGE}
    assert played.least == 64
    assert played.kept == 0


@pytest.mark.parametrize("queue", ["fcfs", "dlpm"])
def test_where_its_size_is_an_estimate_an_engine_says_so_at_once(queue):
    played = Steady(queue, kv_tokens=1000).play(large(tokens=2000))
    alike = Steady(queue, kv_tokens=1000).play(large())
    assert played.started[0] <= alike.started[0] + 1, "it waits for its turn, not for room"
    assert played.kept == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda knowledge: dlpm.Dlpm(dlpm.Settings(patience_s=1e9), knowledge),
        lambda knowledge: vtc.Vtc(vtc.Settings(patience_s=1e9), knowledge),
    ],
    ids=["dlpm", "vtc"],
)
def test_a_client_with_credit_whose_request_fits_nowhere_does_not_stop_the_others(make):
    """Without patience it reserves nothing either."""
    played = Steady(None, make=make).play(large(sequences=9))
    assert played.kept == 0
    assert played.least >= 56
