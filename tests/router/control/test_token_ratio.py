import pytest

from policies.model import PrefixKey
from router.control.token_ratio import TokenRatio


def test_the_scale_comes_to_what_the_worker_reports():
    scale = TokenRatio()
    start = scale.tokens_per_byte("m")
    for _ in range(200):
        scale.saw("m", PrefixKey(b"x" * 1000), 500)
    assert scale.tokens_per_byte("m") == pytest.approx(0.5, abs=0.01)
    assert scale.tokens_per_byte("other") == start


def test_token_ids_and_tiny_prompts_teach_nothing():
    scale = TokenRatio()
    before = scale.tokens_per_byte("m")
    scale.saw("m", PrefixKey(b"x" * 400, 4, 1.0), 100)
    scale.saw("m", PrefixKey(b"hello"), 30)
    scale.saw("m", PrefixKey(b""), 30)
    assert scale.tokens_per_byte("m") == before


def test_nonsense_moves_it_only_within_bounds():
    scale = TokenRatio()
    for tokens in (10**9, 0, -5):
        for _ in range(500):
            scale.saw("m", PrefixKey(b"x" * 100), tokens)
        assert 0.02 <= scale.tokens_per_byte("m") <= 2.0
