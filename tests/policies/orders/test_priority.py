"""Strict levels, first come first served within one, and every so often of waiting is worth a level."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view
from views import full, worker

from policies.orders.priority import Priority, Settings


def request(name, priority=0, arrived=0.0, **fields):
    return view(name, Wish("anna", 0, 20, 5, more=(("priority", priority), *fields.items())), float(arrived))


def queue(*requests, **fields):
    made = Priority(Settings(**fields))
    for one in requests:
        made.push(one)
    return made


def offered(made, now=0.0, workers=("a", "b")):
    return [offer.request.id for offer in made.candidates([worker(name) for name in workers], now)]


def drained(made, now):
    served = []
    while len(made):
        first = next(made.candidates([worker("a")], now)).request
        made.remove(first)
        served.append(first)
    return served


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.integers(-2, 5), st.integers(0, 30), st.booleans()), min_size=1, max_size=25),
    now=st.sampled_from([30.0, 33.0, 200.0]),
)
def test_it_is_a_sort_by_level_less_what_waiting_is_worth(wanted, now):
    made, asked = queue(promote_s=5.0), []
    for number, (priority, arrived, pinned) in enumerate(sorted(wanted, key=lambda wish: wish[1])):
        asked.append(request(f"r{number:02}", priority, arrived, pinned="a" if pinned else None))
        made.push(asked[-1])

    def key(one):
        return one.priority - (now - one.arrived) // 5.0, one.arrived, one.id

    assert drained(made, now) == sorted(asked, key=key)


def test_the_lower_level_comes_first():
    made = queue(request("low", 9), request("high", -3), request("middle"))
    assert offered(made) == ["high", "middle", "low"]


def test_a_level_is_gained_by_waiting():
    made = queue(request("low", 1, arrived=0.0), request("high", 0, arrived=4.0), promote_s=5.0)
    assert offered(made, now=4.9) == ["high", "low"]
    assert offered(made, now=5.0) == ["low", "high"]


def test_one_that_comes_back_stands_where_it_stood():
    made = queue()
    for name, arrived in (("second", 2.0), ("third", 3.0), ("first", 1.0)):
        made.push(request(name, 1, arrived, excluded=frozenset({"b"})), again=True)
    assert [one.id for one in drained(made, 3.0)] == ["first", "second", "third"]


def test_a_level_whose_head_only_a_full_worker_can_run_still_offers_the_others_in_it():
    made = queue(request("pinned", 0, 0.0, pinned="a"), request("free", 0, 1.0), request("low", 3, 2.0))
    offers = made.candidates([worker("a", room=full()), worker("b")], 2.0)
    assert [offer.request.id for offer in offers] == ["free", "low"]


def test_all_of_a_level_are_offered_before_lower_levels():
    high = [request(f"high{number}", -5, float(number)) for number in range(10)]
    low = [request(f"low{number}", 9, float(number)) for number in range(10)]
    assert offered(queue(*low, *high), 9.0) == [one.id for one in (*high, *low)]


def test_lower_levels_leave_the_first_what_only_the_prefill_window_keeps_it_from():
    made = queue(request("high", 0), request("as high", 0, 1.0), request("low", 1, 0.0))
    assert [offer.in_turn for offer in made.candidates([worker("a")], 1.0)] == [True, True, False]


def test_so_many_of_a_level_are_offered_and_then_the_next_level():
    made = queue(*(request(f"high{number}", -5) for number in range(9)), request("low", 9), window=4)
    assert offered(made) == ["high0", "high1", "high2", "high3", "low"]


def test_a_request_reserves_a_worker_as_soon_as_a_lower_level_could_pass_it():
    made = queue(request("high", -5), request("low", 9))
    assert [offer.overdue for offer in made.candidates([worker("a")], 0.0)] == [True, False]
    alone = queue(request("one"), request("two"), patience_s=10.0)
    assert [offer.overdue for offer in alone.candidates([worker("a")], 9.0)] == [False, False]
    assert [offer.overdue for offer in alone.candidates([worker("a")], 11.0)] == [True, True]


def test_a_large_request_is_passed_by_its_own_level_and_waits_only_for_what_runs():
    """Memory for 140 tokens: a large one of the highest level, small ones behind it, and a flood below."""
    flood = [Wish("flood", at, 8, 4, topic=1, more=(("priority", 9),)) for at in range(60) for _ in range(3)]
    large = Wish("large", 20, 100, 30, topic=2, more=(("priority", -5),))
    small = [Wish("small", 21, 8, 4, topic=3, more=(("priority", -5),)) for _ in range(2)]
    fleet = SteppedFleet("priority", slots=10, kv_tokens=140).play([*flood, large, *small])
    started = {one.client: fleet.started[name] for name, one in fleet.views.items() if one.client != "flood"}
    assert started["large"] <= 26
    assert started["small"] <= 30


def test_levels_that_are_empty_are_not_kept():
    made = queue()
    for number in range(50):
        one = request(f"r{number}", number, pinned="a")
        made.push(one)
        made.remove(one)
    assert (len(made), made._levels) == (0, {})


def test_the_lowest_level_is_slow_and_not_starved():
    flood = [Wish("flood", at, 20, 4, topic=1) for at in range(120)]
    low = Wish("modest", 3, 20, 4, topic=2, more=(("priority", 6),))
    played = SteppedFleet("priority", make=lambda _: Priority(Settings(promote_s=5.0))).play([*flood, low])
    (started,) = [played.started[name] for name, one in played.views.items() if one.client == "modest"]
    # 6 levels are 30 seconds: as if it had come at 33. By then half of those before it have been served.
    assert 33.0 < started <= 2 * 33.0 + 10.0
