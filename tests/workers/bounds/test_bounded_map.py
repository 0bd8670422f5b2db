"""A bounded map against a plain list of what was set when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.bounds.bounded_map import BoundedMap


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 6), st.booleans())))
def test_it_holds_what_was_set_or_refreshed_last(most, steps):
    made, order = BoundedMap(most), []
    for key, sets in steps:
        if sets or key in order:
            order = [other for other in order if other != key] + [key]
            order = order[-most:]
        if sets:
            made[key] = str(key)
        else:
            assert made.refresh(key) == (str(key) if key in order else None)
        assert list(made) == order


def test_to_read_an_entry_does_not_keep_it():
    made = BoundedMap(2)
    made["a"] = made["b"] = 1
    assert made["a"] == made.get("a") == 1
    made["c"] = 1
    assert list(made) == ["b", "c"]


def test_a_map_without_room_is_refused():
    with pytest.raises(ValueError):
        BoundedMap(0)
