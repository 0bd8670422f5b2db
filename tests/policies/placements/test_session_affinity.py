"""Session affinity: a conversation sticks to its worker, and finds another when it has to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish
from views import chosen, named, ranking, request, worker

from policies.events import Bound, WorkerGone
from policies.model import Placement, Reason
from policies.placements.session_affinity import SessionAffinity, Settings


def policy(**fields):
    return SessionAffinity(Settings(**fields))


def bind(made, one, name):
    made.on(Bound(one, Placement(name), 0.0))


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({"session": "s"}, {"session": "s", "parent": "p"}, {"session": "t"}),
        ({"parent": "p"}, {"parent": "p"}, {"parent": "q"}),
        ({}, {}, {"client": "ben"}),
        ({"session": "s"}, {"session": "s"}, {"session": "s", "client": "ben"}),
    ],
    ids=["by session", "by parent", "by client", "a session is its client's own"],
)
def test_a_conversation_sticks_to_its_worker_and_no_other_does(one, same, other):
    made, fleet = policy(), [worker("a", requests=50, owed=3000), worker("b")]
    bind(made, request("first", **one), "a")
    assert named(made, fleet, {"b": 900}, request("next", **same)) == "a"
    assert named(made, fleet, {"b": 900}, request("else", **other)) == "b"


def test_a_new_conversation_goes_to_the_least_loaded_worker():
    fleet = [worker("a", owed=900), worker("b", owed=100)]
    assert chosen(policy(), fleet, {"a": 900}) == ("b", Reason.LOAD)


@settings(max_examples=15, deadline=None)
@given(
    wishes=st.lists(
        st.builds(
            Wish,
            client=st.sampled_from(["anna", "ben", "cora", "dan"]),
            at=st.integers(0, 30),
            tokens=st.sampled_from([1, 60]),
            output=st.integers(1, 9),
        ),
        min_size=1,
        max_size=40,
    ),
    binding=st.sampled_from(["late", "early"]),
)
def test_on_workers_with_room_each_client_has_one_worker(wishes, binding):
    where = {}
    fleet = SteppedFleet(
        "fcfs",
        workers=3,
        slots=50,
        placement=policy(),
        binding=binding,
        on_start=lambda name, one: where.setdefault(one, name),
    )
    fleet.play(wishes)
    for client in {wish.client for wish in wishes}:
        assert len({where[name] for name, one in fleet.views.items() if one.client == client}) == 1


def test_the_others_follow_by_load_and_a_conversation_that_moves_stays_where_it_went():
    made, fleet = policy(), [worker("a"), worker("b", owed=900), worker("c", owed=100)]
    bind(made, request("first"), "b")
    order = ranking(made, fleet, {"b": 900})
    assert [(entry.worker.id, entry.reason) for entry in order] == [
        ("b", Reason.HIT),
        ("a", Reason.SPILL),
        ("c", Reason.SPILL),
    ]
    bind(made, request("second"), "c")
    assert chosen(made, fleet) == ("c", Reason.MISS)


def test_when_its_worker_is_gone_it_settles_anew():
    made = policy()
    bind(made, request("first"), "a")
    made.on(WorkerGone("a", 0.0))
    assert named(made, [worker("b", requests=9), worker("c")]) == "c"
    bind(made, request("second"), "c")
    assert named(made, [worker("b"), worker("c", requests=9)]) == "c"


def test_the_conversation_that_was_quiet_longest_is_forgotten_first():
    made = policy(conversations=2)
    for name in ("s1", "s2", "s1", "s3"):
        bind(made, request(session=name), "a")
    fleet = [worker("a", requests=9), worker("b")]
    found = {name: named(made, fleet, {}, request(session=name)) for name in ("s1", "s2", "s3")}
    assert found == {"s1": "a", "s2": "b", "s3": "a"}
    assert len(made) == 2
