"""What a gateway without a tokenizer sees."""

from array import array
from itertools import pairwise

from router.lab.driver import replay
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.text_keys import prompt_text
from router.lab.workload import Request
from router.lab.workloads.open_workload import open_workload


def texts(wanted, seed=0):
    traffic = open_workload(wanted, seed=seed)
    return [(request, prompt_text(request, traffic.block_tokens)) for request in traffic.requests]


def shared(one, other):
    """Length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_the_next_turn_begins_with_the_whole_text_of_the_turn_before():
    by_session = {}
    for request, text in texts("chat:requests=200"):
        by_session.setdefault(request.session, []).append(text)
    turns = [pair for session in by_session.values() for pair in pairwise(session)]
    assert len(turns) > 50
    assert all(after.startswith(before) and len(after) > len(before) for before, after in turns)


def test_programs_share_no_text_but_what_they_share_in_tokens():
    by_start = {}
    for request, text in texts("agents:requests=100,kinds=2"):
        by_start.setdefault(request.key[:8], []).append(text)
    assert len(by_start) == 2
    (one, *_), (other, *_) = by_start.values()
    assert shared(one, other) < 4
    for same in by_start.values():
        assert min(shared(same[0], each) for each in same) > 8000


def test_a_token_has_four_bytes_on_average_and_prompts_differ_in_it():
    ratios = [len(text) / request.input_tokens for request, text in texts("poisson:requests=300,shared=0")]
    assert 3.9 < sum(ratios) / len(ratios) < 4.1
    assert min(ratios) < 3.4
    assert max(ratios) > 4.6


def test_a_prompt_that_is_known_by_its_blocks_only_shares_them_as_text():
    def text(units, tokens):
        return prompt_text(Request(0.0, "a", array("Q", units).tobytes(), tokens, 1), 16)

    assert text([5, 6], 40).startswith(text([5, 6], 32))
    assert not text([5, 7], 32).startswith(text([5], 17))


def test_the_replay_finds_nearly_the_hits_that_exact_tokens_find():
    traffic = open_workload("agents:requests=300")
    hits = {}
    for keys in ("tokens", "text"):
        setup = make_setup(workers=3, keys=keys)
        report = summarize(replay(traffic, setup), setup)
        assert report["keys"] == keys
        hits[keys] = report["prefix_hit_ratio"]
    assert hits["text"] > 0.9 * hits["tokens"] > 0.5
