"""First come, first served: within a lane always, between lanes as far as workers allow and patience lasts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fleet.worker import Worker
from policies.model import PrefixKey, RequestView, WorkerFacts
from policies.orders.fcfs import Fcfs, Settings

SERVED = frozenset({"base", "lora"})


def request(name, arrived=0.0, **fields):
    values = {"served_name": "base", **fields}
    return RequestView(
        id=name,
        client="anna",
        key=PrefixKey(),
        input_tokens=9,
        expected_output_tokens=9,
        arrived=arrived,
        **values,
    )


def worker(name, served_names=SERVED):
    return Worker(WorkerFacts(name, served_names), window_s=0.2, window_tokens=None).view()


def queue(*requests, patience_s=1.0):
    made = Fcfs(Settings(patience_s))
    for one in requests:
        made.push(one)
    return made


def candidates(made, now=0.0, workers=("a", "b")):
    """Those that may start whatever the others do."""
    asked = made.candidates([worker(name) for name in workers], now)
    return [(c.request.id, set(c.keep_off)) for c in asked if c.behind is None]


def in_line(made, now=0.0):
    """Everybody who is looked at, with the one behind whom they stand and the workers they keep off."""
    asked = made.candidates([worker("a"), worker("b")], now)
    return [(c.request.id, c.behind and c.behind.id, set(c.keep_off)) for c in asked]


def test_the_oldest_comes_first():
    made = queue(request("first"), request("second"))
    assert candidates(made) == [("first", set())]


def test_who_stands_behind_may_start_only_past_the_one_before():
    made = queue(request("first"), request("second"), request("third"))
    assert in_line(made) == [("first", None, set()), ("second", "first", set()), ("third", "second", set())]


def test_nobody_passes_one_who_has_waited_long():
    made = queue(request("old", 0.0), request("young", 5.0))
    assert in_line(made, now=5.0) == [("old", None, set()), ("young", "old", {"a", "b"})]


def test_so_many_of_a_lane_are_looked_at_and_no_more():
    made = Fcfs(Settings(window=3))
    for number in range(9):
        made.push(request(f"r{number}", float(number), served_name="lora" if number == 5 else "base"))
    assert [name for name, *_ in in_line(made)] == ["r0", "r1", "r2", "r5"]


def test_each_lane_has_a_candidate_and_the_oldest_head_goes_first():
    made = queue(
        request("tuned", 2.0, served_name="lora"),
        request("base", 1.0),
        request("later", 3.0),
        request("pinned", 4.0, pinned="a"),
    )
    assert [name for name, _ in candidates(made, now=4.0, workers=())] == ["base", "tuned", "pinned"]


def test_who_has_waited_long_keeps_the_younger_off_its_workers():
    made = queue(request("old", 0.0, pinned="a"), request("young", 5.0))
    assert candidates(made, now=1.0) == [("old", set()), ("young", set())]
    assert candidates(made, now=1.5) == [("old", set()), ("young", {"a"})]


def test_nobody_is_kept_off_workers_that_the_older_cannot_use():
    made = queue(request("old", 0.0, excluded=frozenset({"b"})), request("young", 5.0))
    assert candidates(made, now=9.0) == [("old", set()), ("young", {"a"})]


def test_a_request_that_comes_back_stands_before_those_that_came_later():
    made = queue(request("second", 2.0), request("third", 3.0))
    made.push(request("first", 1.0), again=True)
    assert [name for name, _ in candidates(made)] == ["first"]


def test_requests_that_come_back_in_any_order_stand_in_order_of_arrival():
    """Otherwise those whose worker failed last would push the oldest back, for as long as workers fail."""
    made = queue()
    for name, arrived in (("second", 2.0), ("third", 3.0), ("first", 1.0)):
        made.push(request(name, arrived, excluded=frozenset({"b"})), again=True)
    served = []
    while len(made):
        head = next(made.candidates([worker("a")], 9.0)).request
        served.append(head.id)
        made.remove(head)
    assert served == ["first", "second", "third"]


def test_asking_takes_nobody_out():
    made = queue(request("first"), request("second"))
    assert candidates(made) == candidates(made)
    assert len(made) == 2


def test_empty_lanes_are_not_kept():
    made = queue()
    for number in range(50):
        one = request(f"r{number}", pinned=f"worker {number}")
        made.push(one)
        made.remove(one)
    assert made._lanes == {}


REQUESTS = st.lists(
    st.tuples(st.sampled_from(sorted(SERVED)), st.sampled_from([None, "a"]), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(max_examples=50)
@given(REQUESTS, st.randoms(use_true_random=False))
def test_it_holds_exactly_what_was_pushed_and_not_removed(wanted, chance):
    made, inside = queue(), {}
    for number, (line, pinned, again) in enumerate(wanted):
        one = request(f"r{number}", float(number), served_name=line, pinned=pinned)
        made.push(one, again=again)
        inside[one.id] = one
        if chance.random() < 0.4:
            made.remove(inside.pop(chance.choice(sorted(inside))))
        assert {one.id for one in made.waiting()} == inside.keys()
        assert len(made) == len(inside)
        heads = [c.request for c in made.candidates([], 0.0) if c.behind is None]
        lanes = {(one.served_name, one.pinned): one for one in reversed(inside.values())}
        assert heads == sorted(lanes.values(), key=lambda one: one.arrived)
