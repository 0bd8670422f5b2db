"""Answer lengths are learned from the particular to the general, bounded by the request, and checked for truth."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.estimates import answer_length as lengths
from policies.estimates.answer_length import AnswerLengths, Length


def taught(*tokens, client="anna", served_name="base", prompt=100):
    known = AnswerLengths()
    for count in tokens:
        known.record(client, served_name, prompt, count)
    return known


def expected(known, client="anna", served_name="base", prompt=100, most=None):
    return known.estimate(client, served_name, prompt, most)


def test_before_any_answer_the_prior_speaks():
    assert expected(AnswerLengths()) == Length(16, 256, 2048)


def test_an_unknown_client_is_expected_to_be_like_everybody():
    known = taught(*[1000] * 100)
    assert expected(known, client="ben").expected == pytest.approx(1000, rel=0.2)


def test_an_unknown_model_is_expected_to_be_like_all_models():
    known = taught(*[1000] * 100)
    assert expected(known, client="ben", served_name="other").expected == pytest.approx(1000, rel=0.2)


def test_each_client_has_an_estimate_of_its_own():
    known = AnswerLengths()
    for _ in range(100):
        known.record("brief", "base", 100, 10)
        known.record("wordy", "base", 100, 900)
    assert expected(known, client="brief").expected == pytest.approx(10, rel=0.2)
    assert expected(known, client="wordy").expected == pytest.approx(900, rel=0.2)


def test_long_prompts_of_a_client_have_an_estimate_of_their_own():
    known = AnswerLengths()
    for _ in range(100):
        known.record("anna", "base", 50, 800)
        known.record("anna", "base", 20_000, 15)
    assert expected(known, prompt=60).expected == pytest.approx(800, rel=0.2)
    assert expected(known, prompt=17_000).expected == pytest.approx(15, rel=0.2)


def test_recent_answers_weigh_more():
    assert expected(taught(*[10] * 100, *[500] * 100)).expected > 400


def test_no_more_is_expected_than_the_request_allows():
    assert expected(taught(*[1000] * 50), most=16) == Length(16, 16, 16)


def test_at_least_one_token_is_expected_unless_none_is_allowed():
    known = taught(*[0] * 100)
    assert expected(known).expected == 1
    assert expected(known, most=0) == Length(0, 0, 0)


def test_the_interval_holds_about_what_it_promises():
    draw = random.Random(1)
    known = AnswerLengths()
    for _ in range(3000):
        tokens = min(4000, draw.lognormvariate(5, 1))
        known.record("anna", "base", 100, tokens, known.estimate("anna", "base", 100, None))
    assert known.calibration.share == pytest.approx(0.87, abs=0.07)


def test_an_answer_that_is_already_long_is_expected_to_be_longer():
    known = taught(*([20] * 50 + [1500] * 50))
    assert expected(known).expected < 1200
    given_so_far = known.estimate_longer("anna", "base", 100, None, 400)
    assert given_so_far.lower > 400
    assert given_so_far.expected == pytest.approx(1500, rel=0.2)


def test_an_answer_longer_than_any_before_is_expected_to_go_on():
    known = taught(*[20] * 50)
    assert known.estimate_longer("anna", "base", 100, None, 5000).expected > 5000
    assert known.estimate_longer("anna", "base", 100, 5001, 5000) == Length(5001, 5001, 5001)


def test_what_was_used_least_recently_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(lengths, "_MAX_KEYS", 8)
    known = AnswerLengths()
    for number in range(50):
        known.record(f"client {number}", "base", 100, 10)
    assert len(known) == 8
    assert ("client 49", "base") in known._histograms
    assert () in known._histograms


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1e6), max_size=60), st.one_of(st.none(), st.integers(0, 10**6)))
def test_an_estimate_is_an_interval_around_its_mean_and_within_the_limit(seen, most):
    known = taught(*seen)
    for length in (expected(known, most=most), known.estimate_longer("anna", "base", 100, most, 77)):
        assert 0 <= length.lower <= length.expected <= length.upper
        if most is not None:
            assert length.upper <= most


def test_a_long_life_does_not_overflow():
    known = taught(*[100] * 5000)
    assert expected(known).expected == pytest.approx(100, rel=0.2)
