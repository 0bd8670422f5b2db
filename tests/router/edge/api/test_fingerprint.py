"""A prompt's fingerprint: equal beginnings have equal beginnings, other lines and other words do not."""

import json

from router.edge.api.fingerprint import fingerprint
from router.edge.api.parsed_request import Surface, parse


def prints(prompt, line="base"):
    return fingerprint(parse(Surface.COMPLETIONS, json.dumps({"prompt": prompt}).encode()), line)


def test_a_longer_prompt_continues_the_chain_of_its_beginning():
    short, long = prints("a" * 4096), prints("a" * 4096 + "b" * 4096)
    assert (len(short), len(long)) == (2, 4)
    assert long[:2] == short


def test_a_block_depends_on_all_that_comes_before_it():
    assert prints("a" * 2048 + "c" * 2048)[1] != prints("b" * 2048 + "c" * 2048)[1]


def test_lines_have_chains_of_their_own():
    assert prints("a" * 4096, "base") != prints("a" * 4096, "lora")


def test_token_ids_make_a_block_of_512():
    assert len(prints(list(range(1, 1030)))) == 2


def test_what_is_shorter_than_a_block_has_none_and_a_long_prompt_has_a_bound():
    assert prints("hello") == []
    assert len(prints("a" * 10_000_000)) == 128
