import pytest

from router.control.token_ratio import TokenRatio


def test_the_scale_comes_to_what_the_worker_reports():
    scale = TokenRatio()
    start = scale.tokens_per_byte("m")
    for _ in range(200):
        scale.saw("m", 1000, 0, 500)
    assert scale.tokens_per_byte("m") == pytest.approx(0.5, abs=0.01)
    assert scale.tokens_per_byte("other") == start


def test_tiny_prompts_teach_nothing():
    scale = TokenRatio()
    before = scale.tokens_per_byte("m")
    scale.saw("m", 5, 0, 30)
    scale.saw("m", 0, 0, 30)
    assert scale.tokens_per_byte("m") == before


def test_what_media_cost_is_learned_apart_from_what_text_costs():
    scale = TokenRatio()
    assert scale.tokens_per_medium("m") == 576
    before = scale.tokens_per_byte("m")
    for _ in range(50):
        scale.saw("m", 400, 2, 100 + 2 * 1500)
    assert scale.tokens_per_byte("m") == before
    assert scale.tokens_per_medium("m") == pytest.approx(1500)
    assert scale.tokens_per_medium("other") == 576


def test_nonsense_moves_it_only_within_bounds():
    scale = TokenRatio()
    for tokens in (10**9, 0, -5):
        for _ in range(500):
            scale.saw("m", 100, 0, tokens)
            scale.saw("m", 100, 1, tokens)
        assert 0.02 <= scale.tokens_per_byte("m") <= 2.0
        assert 1 <= scale.tokens_per_medium("m") <= 65_536
