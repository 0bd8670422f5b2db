from policies.estimates.answer_length import AnswerLengths
from policies.model import PrefixKey
from router.control.token_ratio import TokenRatio
from router.control.view import count_input, prefix_key, request_view
from router.port import Facts, Identity


def facts(**more):
    return Facts(**{"id": "r", "identity": Identity("team/ann", "team", 2.0), "model": "tiny", **more})


def test_text_is_counted_by_the_ratio_and_never_as_nothing():
    assert count_input(facts(prompt=b"x" * 40), 0.25, 576) == 10
    assert count_input(facts(), 0.25, 576) == 1
    assert count_input(facts(prompt=b"x" * 40, prompt_bytes=400), 0.25, 576) == 100  # the key was cut


def test_each_medium_costs_what_media_of_its_model_do():
    assert count_input(facts(prompt=b"x" * 40, media=("a", "b")), 0.25, 576) == 10 + 2 * 576


def test_token_ids_are_the_key_and_the_count():
    known = facts(prompt=bytes(12), unit_bytes=4, input_tokens=3, salt="s")
    assert count_input(known, 0.25, 576) == 3
    assert prefix_key(known, 0.25) == PrefixKey(bytes(12), 4, 1.0, b"s")
    assert prefix_key(facts(prompt=b"ab"), 0.5) == PrefixKey(b"ab", 1, 0.5)


def test_a_request_arrived_when_its_first_byte_did():
    view = request_view(facts(age_s=2.0), AnswerLengths(), ratio=TokenRatio(), pinned=None, now=10.0)
    assert (view.arrived, view.client, view.weight) == (8.0, "team/ann", 2.0)
