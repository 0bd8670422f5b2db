"""A prompt's fingerprint: equal beginnings have equal beginnings, other models and other words do not."""

import json
from base64 import b64decode

import pytest

from router.edge.api.fingerprint import MAX_PIECES, RECORD_BYTES, fingerprint
from router.edge.api.parsed_request import Surface, parse


def pieces(ask, line="base"):
    """(hash, length) of each piece."""
    data = b64decode(fingerprint(ask, line))
    records = [data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES)]
    return [(record[:6], int.from_bytes(record[6:], "big")) for record in records]


def completion(prompt):
    return parse(Surface.COMPLETIONS, json.dumps({"prompt": prompt}).encode())


def chat(*contents):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return parse(Surface.CHAT, json.dumps({"messages": messages}).encode())


def shared_bytes(one, other):
    """Bytes of the leading pieces that two prompts have in common."""
    total = 0
    for a, b in zip(pieces(one), pieces(other), strict=False):
        if a != b:
            break
        total += a[1]
    return total


def test_the_pieces_are_the_prompt():
    for ask in (completion("a" * 5000), chat("hello", "there", "you"), completion([5] * 700)):
        assert sum(length for _, length in pieces(ask)) == len(ask.prompt)


def test_a_conversations_next_prompt_begins_with_all_pieces_of_the_one_before():
    one, other = chat("hi", "Hello!", "x" * 777), chat("hi", "Hello!", "x" * 777, "An answer", "and on")
    assert pieces(other)[: len(pieces(one))] == pieces(one)
    assert len(pieces(one)) > 3


def test_short_messages_are_known_too():
    """Of blocks of two kilobytes there would be none."""
    assert shared_bytes(chat("hi", "Hello!", "one"), chat("hi", "Hello!", "two")) >= len(
        chat("hi", "Hello!").prompt
    )


@pytest.mark.parametrize("length", [100, 1000, 10_000, 100_000])
def test_what_two_texts_share_is_known_to_a_block_or_six_per_cent(length):
    common = "".join(chr(97 + (n * n) % 26) for n in range(length))
    found = shared_bytes(completion(common + "x" * 5000), completion(common + "y" * 5000))
    assert length - max(256, 0.0625 * length) <= found <= length


def test_quotes_inside_a_message_do_not_end_it():
    inside = chat('look: },{"role":"user"')
    assert len(pieces(inside)) == len(pieces(chat("look: ------------------")))


def test_a_piece_depends_on_all_that_comes_before_it():
    one, other = pieces(completion("a" * 256 + "c" * 64)), pieces(completion("b" * 256 + "c" * 64))
    assert one[1][0] != other[1][0]


def test_models_have_chains_of_their_own():
    ask = completion("a" * 4096)
    assert pieces(ask, "base")[0] != pieces(ask, "lora")[0]


def test_token_ids_are_cut_at_four_blocks_of_16():
    one, other = completion([7] * 192 + [1] * 100), completion([7] * 192 + [2] * 100)
    assert shared_bytes(one, other) == 192 * 4


def test_the_log_line_has_a_bound():
    assert pieces(completion("")) == []
    assert len(pieces(completion("a" * 48_000))) < 65
    assert len(pieces(completion("a" * 20_000_000))) <= MAX_PIECES
    assert len(pieces(chat(*["x"] * 5000))) == MAX_PIECES
