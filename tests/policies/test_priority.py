"""Strict levels, first come first served within one, and every so often of waiting is worth a level."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view

from policies.fleet.worker import Worker
from policies.knowledge import Knowledge
from policies.model import WorkerFacts
from policies.orders.priority import Priority, Settings

SERVED = frozenset({"base", "lora"})


def worker(name, *, full=False):
    load = Worker(WorkerFacts(name, SERVED, slots=2), window_s=0.2, window_tokens=None)
    if full:
        load.requests, load.sequences = 2, 2
    return load.view()


def request(name, priority=0, arrived=0.0, **fields):
    return view(name, Wish("anna", 0, 20, 5, more=(("priority", priority), *fields.items())), float(arrived))


def queue(*requests, **fields):
    made = Priority(Settings(**fields), Knowledge())
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
    made, asked = queue(promote_s=5.0, patience_s=60.0), []
    for number, (priority, arrived, tuned) in enumerate(sorted(wanted, key=lambda wish: wish[1])):
        line = "lora" if tuned else "base"
        asked.append(request(f"r{number:02}", priority, arrived, served_name=line))
        made.push(asked[-1])

    def key(one):
        if now - one.arrived > 60.0:
            return 0, 0, one.arrived, one.id
        return 1, one.priority - (now - one.arrived) // 5.0, one.arrived, one.id

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


def test_a_level_whose_head_cannot_start_still_offers_the_others_in_it():
    made = queue(request("pinned", 0, 0.0, pinned="a"), request("free", 0, 1.0), request("low", 3, 2.0))
    offers = made.candidates([worker("a", full=True), worker("b")], 2.0)
    assert [offer.request.id for offer in offers] == ["free", "low"]


def test_levels_that_are_empty_are_not_kept():
    made = queue()
    for number in range(50):
        one = request(f"r{number}", number, served_name="lora")
        made.push(one)
        made.remove(one)
    assert (made._levels.groups, made._levels._kinds) == ({}, {})


def test_the_lowest_level_is_slow_and_not_starved():
    flood = [Wish("flood", at, 20, 4, topic=1) for at in range(120)]
    low = Wish("modest", 3, 20, 4, topic=2, more=(("priority", 6),))
    played = SteppedFleet("priority", make=lambda k: Priority(Settings(promote_s=5.0), k)).play([*flood, low])
    (started,) = [played.started[name] for name, one in played.views.items() if one.client == "modest"]
    # 6 levels are 30 seconds: as if it had come at 33. By then half of those before it have been served.
    assert 33.0 < started <= 2 * 33.0 + 10.0
