"""First come, first served: oldest first over all lanes, and a worker is reserved for what has waited long."""

from hypothesis import given, settings
from hypothesis import strategies as st
from views import full, request, worker

from policies.orders.fcfs import Fcfs, Settings


def queue(*requests, **fields):
    made = Fcfs(Settings(**fields))
    for one in requests:
        made.push(one)
    return made


def offered(made, now=0.0, workers=("a", "b")):
    return [(offer.request.id, offer.overdue) for offer in made.candidates([worker(w) for w in workers], now)]


def names(made):
    return [name for name, _ in offered(made)]


def test_the_oldest_comes_first_over_all_lanes():
    made = queue(request("pinned", arrived=2.0, pinned="a"), request("first"), request("last", arrived=3.0))
    assert names(made) == ["first", "pinned", "last"]


def test_what_has_waited_long_reserves_a_worker():
    made = queue(request("old"), request("young", arrived=5.0), patience_s=1.0)
    assert offered(made, now=1.0) == [("old", False), ("young", False)]
    assert offered(made, now=5.5) == [("old", True), ("young", False)]


def test_later_requests_leave_the_first_what_only_the_prefill_window_keeps_it_from():
    made = queue(request("first"), request("second", arrived=1.0), request("third", arrived=2.0, pinned="a"))
    assert [offer.in_turn for offer in made.candidates([worker("a")], 2.0)] == [True, False, False]
    assert all(offer.may_pass for offer in made.candidates([worker("a")], 2.0))


def test_so_many_of_a_lane_are_offered_and_no_more():
    made = queue(window=3)
    for number in range(9):
        made.push(request(f"r{number}", arrived=float(number), pinned="a" if number == 5 else None))
    assert names(made) == ["r0", "r1", "r2", "r5"]


def test_lanes_whose_workers_are_full_are_left_out():
    made = queue(request("pinned", pinned="a"), request("anywhere", arrived=1.0))
    offers = made.candidates([worker("a", room=full()), worker("b")], 2.0)
    assert [offer.request.id for offer in offers] == ["anywhere"]


def test_requests_that_come_back_in_any_order_stand_in_order_of_arrival():
    """Otherwise those whose worker failed last would push the oldest back, for as long as workers fail."""
    made = queue()
    for name, arrived in (("second", 2.0), ("third", 3.0), ("first", 1.0)):
        made.push(request(name, arrived=arrived, excluded=frozenset({"b"})), again=True)
    assert names(made) == ["first", "second", "third"]


WAITING = st.lists(
    st.tuples(st.sampled_from([None, "a", "b"]), st.booleans(), st.booleans()), min_size=1, max_size=30
)


@settings(max_examples=50)
@given(wanted=WAITING, chance=st.randoms(use_true_random=False))
def test_it_is_a_list_by_arrival_of_what_was_pushed_and_not_removed(wanted, chance):
    made, inside = queue(), {}
    for number, (pinned, again, leaves) in enumerate(wanted):
        one = request(f"r{number:02}", arrived=float(number), pinned=pinned)
        made.push(one, again=again)
        inside[one.id] = one
        if leaves:
            made.remove(inside.pop(chance.choice(sorted(inside))))
        assert len(made) == len(inside)
        assert {one.id for one in made.waiting()} == inside.keys()
        assert names(made) == sorted(inside)
