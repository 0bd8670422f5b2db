"""The simulator's tokenizer: reversible, as short as a real one's, and within the ids that a real one has."""

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.simulator.tokens import at_least, detokenize, token_bytes, tokenize

texts = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\r\f\vab~!\x7f\x00\u00e9\u6d77")), max_size=60
)


@settings(max_examples=80, deadline=None)
@given(texts)
def test_every_text_comes_back_from_ids_that_fit_into_31_bits(text):
    ids = tokenize(text)
    assert detokenize(ids) == text
    assert all(0 < token < 1 << 31 for token in ids)
    assert len(ids) >= at_least(text)


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_different_texts_have_different_ids(one, other):
    assert (tokenize(one) == tokenize(other)) == (one == other)


def test_english_takes_about_a_token_for_four_bytes():
    text = "The tide rises twice a day, and the moon is what makes it do so."
    assert 3.0 <= len(text) / len(tokenize(text)) <= 5.0


def test_a_word_keeps_its_id_wherever_it_stands():
    assert tokenize("the sea the")[2] == tokenize("a the")[1]
    assert len({tuple(tokenize(space + "sea")) for space in ("", " ", "\n", "\t", "\r", "\f", "\v")}) == 7


@given(st.integers(-5, 1 << 40))
@settings(max_examples=80, deadline=None)
def test_any_number_is_accepted_as_an_id(number):
    assert token_bytes(number)
