"""Lanes: which workers could run a request, and what is left out because they have no room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from views import full, request, worker

from policies.model import Placement
from policies.orders.kit.lanes import Lanes, has_room, lane_of, room_of

REQUESTS = {
    "anywhere": {},
    "another name": {"line": "lora"},
    "pinned": {"pinned": "a"},
    "failed there": {"excluded": frozenset({"a"})},
    "pinned and failed there": {"pinned": "a", "excluded": frozenset({"a"})},
    "named": {"bound": Placement("a")},
    "named a pair": {"bound": Placement("a", "b")},
}


def asked(name, **fields):
    line = fields.pop("line", "base")
    one = request(name, **fields)
    one.served_name = line
    return one


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ("", set()),
        ("a", {"anywhere", "pinned", "named"}),
        ("b", {"anywhere", "failed there"}),
        ("ab", {"anywhere", "pinned", "failed there", "named", "named a pair"}),
    ],
)
def test_a_lane_has_room_where_one_of_its_workers_has(free, expected):
    workers = [worker(name) if name in free else worker(name, room=full()) for name in "ab"]
    room = room_of(workers)
    assert {
        name for name, fields in REQUESTS.items() if has_room(lane_of(asked(name, **fields)), room)
    } == expected
    lanes = Lanes()
    for name, fields in REQUESTS.items():
        lanes.push(asked(name, **fields), again=False)
    assert {name for lane in lanes.with_room(workers) for name in lane} == expected


@given(st.sampled_from(sorted(REQUESTS)), st.sampled_from(["", "a", "b", "ab"]))
def test_for_requests_without_a_name_it_is_what_the_workers_say_themselves(name, free):
    one = asked(name, **REQUESTS[name])
    room = room_of([worker(name) for name in free])
    if one.bound is None:
        assert has_room(lane_of(one), room) == any(facts.serves(one) for facts in room.values())


def test_requests_that_are_bound_to_a_full_worker_are_not_walked():
    lanes = Lanes()
    for number in range(1000):
        lanes.push(request(f"r{number}", bound=Placement(f"w{number % 10}")), again=False)
    workers = [worker(f"w{number}", room=full()) for number in range(9)] + [worker("w9")]
    (lane,) = lanes.with_room(workers)
    assert len(lane) == 100


def test_a_request_that_is_not_here_cannot_be_removed_and_that_changes_nothing():
    lanes = Lanes()
    lanes.push(request("one"), again=False)
    with pytest.raises(KeyError):
        lanes.remove(request("other"))
    assert [one.id for one in lanes] == ["one"]


def test_empty_lanes_are_not_kept():
    lanes = Lanes()
    for number in range(50):
        one = request(f"r{number}", pinned=f"worker {number}")
        lanes.push(one, again=False)
        lanes.remove(one)
    assert (len(lanes), lanes._lanes) == (0, {})
