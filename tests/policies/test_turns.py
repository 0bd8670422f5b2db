"""Turns against a list that is sorted anew for every question."""

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.orders.kit.turns import Turns

CLIENTS = ["anna", "ben", "cora", "dora", "emil"]
PLACES = st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 1.0]), st.sampled_from(["r1", "r2"]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(CLIENTS), st.integers(0, 4), PLACES),
        st.tuples(st.just("drop"), st.sampled_from(CLIENTS)),
        st.tuples(st.just("advance"), st.integers(0, 2)),
        st.tuples(st.just("ask"), st.sets(st.sampled_from(CLIENTS)), st.integers(1, 4)),
    ),
    max_size=40,
)


def expected(turns, now, among, most):
    """(round, place, client) of everybody, sorted anew."""
    left = [(max(round_, now), place, client) for client, (round_, place) in turns.items() if client in among]
    first = min((round_ for round_, _, _ in left), default=None)
    return [client for round_, _, client in sorted(left) if round_ == first][:most]


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_it_answers_as_if_everything_were_sorted_anew(steps):
    made, turns, now = Turns(), {}, 0
    for kind, *step in [*steps, ("ask", set(CLIENTS), 5)]:
        if kind == "put":
            client, ahead, place = step
            made.put(client, now + ahead, place)
            turns[client] = (now + ahead, place)
        elif kind == "drop":
            made.drop(step[0])
            turns.pop(step[0], None)
        elif kind == "advance":
            now += step[0]
            made.advance(now)
        else:
            assert made.first(*step) == expected(turns, now, *step)
        assert len(made) == len(turns)
        assert sorted(made._due) == made._due
        assert all(round_ > now for round_, _, _ in made._later)
