import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.edge.api.members import appended, changed, members
from router.edge.pieces import Pieces

odd = st.text('ab"\\{}[],: é\n', max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd, inner, max_size=4),
    max_leaves=15,
)
objects = st.dictionaries(odd, values, max_size=6)
spacing = st.sampled_from([None, 1, " \n", "\t"])
changes = st.dictionaries(odd, st.sampled_from([None, b"1", b'{"x":[]}']), max_size=3)


def written(fields, indent, *, escaped):
    return b" " + json.dumps(fields, ensure_ascii=escaped, indent=indent).encode() + b" \n"


@settings(max_examples=80)
@given(objects, spacing, st.booleans())
def test_each_member_stands_where_it_is_said_to(fields, indent, escaped):
    text = written(fields, indent, escaped=escaped)
    found = members(text)
    assert [member.name for member in found] == list(fields)
    for member in found:
        assert json.loads(text[member.start : text.rindex(b":", member.start, member.value)]) == member.name
        assert json.loads(text[member.value : member.end]) == fields[member.name]


@settings(max_examples=80)
@given(objects, spacing, st.booleans(), changes, st.integers(1, 9))
def test_what_is_meant_is_changed_and_the_rest_is_the_same_in_one_piece_or_in_many(
    fields, indent, escaped, wished, size
):
    text = written(fields, indent, escaped=escaped)
    kept = {name: value for name, value in fields.items() if name not in wished}
    new = {name: json.loads(value) for name, value in wished.items() if value is not None}
    assert json.loads(changed(text, members(text), wished)) == kept | new
    pieces = Pieces([text[at : at + size] for at in range(0, len(text), size)])
    assert b"".join(changed(pieces, members(text), wished)) == changed(text, members(text), wished)
    more = {name: value for name, value in wished.items() if value is not None and name not in fields}
    if more:
        longer = appended(text, more)
        assert json.loads(longer) == fields | {name: json.loads(value) for name, value in more.items()}
        assert b"".join(appended(pieces, more)) == longer
        assert longer.startswith(text[: text.rindex(b"}")].rstrip())


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (b'{"a":1,"b":2}', b'{"b":2}'),
        (b'{ "b" : 2 , "a" : 1 }', b'{ "b" : 2 }'),
        (b'{"a":1}', b"{}"),
        (b'{"a":1,"a":2}', b"{}"),
        (b'{"\\u0061":1,"b":1E400}', b'{"b":1E400}'),
        (b'{"b":[1.50,"\\ud83d\\ude00\\/"],"a":{"a":{}}}', b'{"b":[1.50,"\\ud83d\\ude00\\/"]}'),
        (b'{"b":' + b"[" * 900 + b"]" * 900 + b',"a":0}', b'{"b":' + b"[" * 900 + b"]" * 900 + b"}"),
    ],
)
def test_a_member_is_taken_out_under_all_its_spellings_and_no_other_byte_changes(text, after):
    assert changed(text, members(text), {"a": None}) == after


def test_of_a_member_that_comes_twice_the_last_one_counts_as_in_every_parser():
    text = b'{"model":"x", "n":1, "model" : "y"}'
    assert changed(text, members(text), {"model": b'"z"'}) == b'{"n":1, "model" : "z"}'


def test_a_body_that_ends_in_blanks_is_appended_to():
    text = b'{"a":1' + b" " * 500 + b"}" + b"\n" * 500
    assert json.loads(appended(text, {"b": b"2"})) == {"a": 1, "b": 2}
    assert json.loads(appended(b"{" + b" " * 500 + b"}", {"b": b"2"})) == {"b": 2}
