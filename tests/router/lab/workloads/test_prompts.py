"""The forest of prompts against a forest of written-out tokens."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.lab.workloads.prompts import NO_PARENT, Prompts

GROWTHS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), min_size=1, max_size=30)


def units(key):
    return array("Q", key).tolist()


def shared(one, other):
    """How many leading items two sequences have in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@settings(max_examples=150, deadline=None)
@given(GROWTHS, st.integers(1, 16))
def test_two_prompts_share_exactly_the_full_blocks_of_their_common_tokens(growths, size):
    prompts, written = Prompts(size), []
    for number, (chosen, tokens) in enumerate(growths):
        parent = chosen - 1 if chosen <= len(written) else NO_PARENT
        before = [] if parent == NO_PARENT else written[parent]
        assert prompts.grow(parent, tokens) == number
        written.append(before + [(number, index) for index in range(tokens)])
    keys = [units(prompts.key(node)) for node in range(len(written))]
    for node, text in enumerate(written):
        assert prompts.tokens(node) == len(text)
        assert len(keys[node]) == len(text) // size
        for other, other_text in enumerate(written):
            assert shared(keys[node], keys[other]) == shared(text, other_text) // size


def test_the_units_of_a_node_are_the_end_of_its_key():
    prompts = Prompts(16)
    prompt = prompts.grow(NO_PARENT, 40)
    reply = prompts.grow(prompt, 30)
    assert prompts.key(reply) == prompts.key(prompt) + prompts.own_key(reply)
    assert len(units(prompts.own_key(reply))) == 70 // 16 - 40 // 16


def test_named_blocks_keep_their_names_and_the_rest_is_new():
    prompts = Prompts(10)
    first, second = prompts.name([7, 8], 45), prompts.name([7, 8], 45)
    assert units(prompts.key(first))[:2] == units(prompts.key(second))[:2] == [7, 8]
    assert len(units(prompts.key(first))) == 4
    assert not set(units(prompts.key(first))[2:]) & set(units(prompts.key(second))[2:])
    assert prompts.tokens(first) == 45


def test_the_name_of_a_partial_block_is_not_in_the_key():
    prompts = Prompts(10)
    assert units(prompts.key(prompts.name([1, 2, 3], 29))) == [1, 2]
    assert units(prompts.key(prompts.name([1], 5))) == []


@pytest.mark.parametrize("bad", [[1, -1], [1, 2**64], [1, "x"], [1, 1.5]])
def test_a_unit_that_is_no_8_byte_number_leaves_nothing_behind(bad):
    prompts = Prompts(1)
    prompts.name([1, 2], 2)
    with pytest.raises((TypeError, OverflowError)):
        prompts.name(bad, 2)
    assert units(prompts.key(prompts.name([3, 4], 2))) == [3, 4]
