from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, greedy_tokens, sentence_piece

from router.tokenization.encoder import Encoder

KINDS = {
    "byte level": byte_level,
    "blanks marked at the beginning": sentence_piece,
    "blanks marked everywhere": lambda: sentence_piece("always"),
    "tokens that reach out": greedy_tokens,
}
MADE = {name: make() for name, make in KINDS.items()}
ENCODERS = {name: Encoder(make(), 1 << 20) for name, make in KINDS.items()}

specials = st.sampled_from(
    [
        "<|start|>",
        "<|end|>",
        "<|end|>x",
        " <|end|>y",
        "<|left|>",
        "<|right|>",
        "<s>",
        "</s>",
        "<|",
        "|>",
        "DOG",
        "fox",
    ]
)
words = st.sampled_from(["hello", " ", "  ", "\n", "\n\n", "it's", "é", "中", "🙂", "12", "▁"]) | st.text(
    max_size=5
)
texts = st.lists(specials | words, max_size=14).map("".join)


def ids(data):
    return list(array("I", data))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_cut_where_that_is_safe(kind):
    encoder = ENCODERS[kind]
    assert encoder.by_pieces
    pieces = list(encoder._split("a<|start|>b<|end|> c<|start|><|start|>"))
    assert pieces == ["a", "<|start|>b", "<|end|> c", "<|start|>", "<|start|>"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_pieces_are_those_of_the_whole(kind):
    encoder, whole = ENCODERS[kind], MADE[kind]

    @settings(max_examples=120, deadline=None)
    @given(texts, st.booleans())
    def holds(text, special_tokens):
        expected = whole.encode(text, add_special_tokens=special_tokens).ids
        for _ in range(2):  # the second time from what is remembered
            assert ids(encoder.ids(text, special_tokens=special_tokens)) == expected

    holds()


def test_a_token_that_takes_blanks_with_it_is_not_cut_at():
    assert list(ENCODERS["tokens that reach out"]._split("a  <|left|>b<|right|>  c<|end|>d")) == [
        "a  <|left|>b<|right|>  c",
        "<|end|>d",
    ]


class Counting:
    """A tokenizer that says what it was given."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.encoded = []

    def encode_batch_fast(self, texts, add_special_tokens):
        self.encoded += texts
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_a_chat_that_goes_on_is_tokenized_only_at_its_end():
    tokenizer = Counting(byte_level())
    encoder = Encoder(tokenizer, 1 << 20)
    chat = "".join(f"<|start|>user\nquestion {n}<|end|>\n" for n in range(50))
    encoder.ids(chat, special_tokens=False)
    tokenizer.encoded.clear()
    encoder.ids(chat + "<|start|>assistant\nwell<|end|>\n", special_tokens=False)
    assert tokenizer.encoded == ["<|start|>assistant\nwell"]


def test_to_look_at_a_text_says_how_much_of_it_is_new_and_tokenizes_nothing():
    tokenizer = Counting(byte_level())
    encoder = Encoder(tokenizer, 1 << 20)
    tokenizer.encoded.clear()
    known = "<|start|>" + "known " * 50
    assert encoder.look(known, special_tokens=False).size == len(known)
    assert tokenizer.encoded == []
    encoder.ids(known, special_tokens=False)
    assert encoder.look(known + "<|end|>!", special_tokens=False).size == len("<|end|>!")


def test_a_first_piece_is_not_taken_for_a_later_one():
    """Where a blank is put before the text, the same words have other ids within it."""
    encoder, whole = ENCODERS["blanks marked at the beginning"], MADE["blanks marked at the beginning"]
    for text in ("<s>dog", "dog<s>dog", "dog"):
        assert ids(encoder.ids(text, special_tokens=False)) == whole.encode(text, add_special_tokens=False).ids


def test_a_tokenizer_that_differs_by_pieces_is_given_whole_texts():
    class Crooked(Counting):
        def encode_batch_fast(self, texts, add_special_tokens):
            # Ids that depend on the length of the whole text.
            found = super().encode_batch_fast(texts, add_special_tokens)
            return [type("Encoding", (), {"ids": [*e.ids, len(t) % 7]}) for e, t in zip(found, texts, strict=True)]

    encoder = Encoder(Crooked(byte_level()), 1 << 20)
    assert not encoder.by_pieces
    assert list(encoder._split("a<|start|>b")) == ["a<|start|>b"]


def test_truncation_and_padding_of_the_file_do_not_count():
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    assert len(ids(Encoder(tokenizer, 1000).ids("one two three four", special_tokens=False))) > 2


def test_special_tokens_are_found_across_the_stretches_in_which_a_text_is_searched(monkeypatch):
    monkeypatch.setattr("router.tokenization.encoder._STRETCH", 7)
    encoder = Encoder(byte_level(), 1 << 20)
    for before in range(20):
        text = "x" * before + "<|start|><|end|>yy<|start|>"
        assert "".join(encoder._split(text)) == text
        assert len(list(encoder._split(text))) == 3 + bool(before)
