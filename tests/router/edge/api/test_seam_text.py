"""Where two legs of an answer meet."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.edge.api.seam_text import Seam, StopMatcher, align


@pytest.mark.parametrize(
    ("decoded", "emitted", "may_hold", "seam"),
    [
        ("one two", "one two", False, Seam()),
        ("one two", "one", True, Seam(held=" two")),
        ("one two", "one", False, None),
        ("one", "one two", False, Seam(overlap=" two")),
        ("one two", "one three", False, None),
        ("one<|im_end|> two", "one two", False, Seam()),
        ("one<|im_end|>", "one", False, Seam()),
        ("", "", False, Seam()),
        ("", "one", False, Seam(overlap="one")),
        ("one [INST] two", "one  two", False, Seam()),
    ],
)
def test_tokens_say_what_the_client_has_or_the_seam_is_refused(decoded, emitted, may_hold, seam):
    assert align(decoded, emitted, may_hold=may_hold) == seam


@given(st.text("abc", max_size=40), st.lists(st.integers(0, 40), max_size=6), st.booleans(), st.integers(0, 40))
def test_stop_strings_are_found_however_the_text_is_cut(text, cuts, shows, seam):
    stops = ("abca", "cc", "bab")
    ends = sorted((text.find(stop) + len(stop), place) for place, stop in enumerate(stops) if stop in text)
    whole = text
    if ends:
        end, place = ends[0]
        whole = text[: end if shows else end - len(stops[place])]
    # What a worker has told before the seam: all, or less the longest stop string but one character.
    end = ends[0][0] if ends else len(text) + 1
    seam = min(seam, end - 1, len(text))
    told = text[:seam] if shows else text[: max(0, seam - 3)]
    matcher = StopMatcher(stops, shows=shows, before=told)
    bounds = [len(told), *sorted(max(seam, cut) for cut in cuts if cut < len(text)), len(text)]
    for start, stop in pairwise(bounds):
        told += matcher.feed(text[start:stop], last=stop == len(text))
        if matcher.found is not None or stop == len(text):
            break
    assert told == whole
    assert (matcher.found is not None) == bool(ends)
