from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from router.tokenization.pieces import _ENTRY_BYTES, Pieces

steps = st.lists(
    st.tuples(st.booleans(), st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.binary(max_size=300)), max_size=40
)


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(0, 1400))
def test_it_holds_what_was_used_last_within_its_limit(steps, limit):
    pieces, expected = Pieces(limit), OrderedDict()
    for write, digest, ids in steps:
        if write:
            pieces.keep([(digest, ids)])
            if len(ids) + _ENTRY_BYTES <= limit:
                expected.setdefault(digest, ids)
            while sum(len(kept) + _ENTRY_BYTES for kept in expected.values()) > limit:
                expected.popitem(last=False)
        else:
            assert pieces.known([digest]) == [expected.get(digest)]
            if digest in expected:
                expected.move_to_end(digest)
        assert len(pieces) == len(expected)
        assert pieces.bytes == sum(len(kept) + _ENTRY_BYTES for kept in expected.values()) <= limit
