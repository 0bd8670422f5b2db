"""Answers made of words: what one prompt is answered, the same on every worker with the same seed.

As with a real model, what comes next depends on all tokens before, and on nothing else: a prompt of token ids that
ends in the beginning of an answer is answered with the rest of it (`going_on`). And as with vLLM's detokenizer,

- text waits for the end of its character: a token may show nothing, or the end of one character while it holds the
  beginning of the next;
- while there are stop strings, as many characters are held back as the longest of them has, less one; the ids of
  the tokens run ahead;
- a prompt whose last character is cut comes out, all of it, with the first token of its answer.
"""

import codecs
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Literal, get_args
from zlib import crc32

from workers.simulator.tokens import detokenize, token_bytes, tokenize

# Each is one piece with the space before it, so that an answer sent back as part of a later prompt has the token
# ids that it had when it was generated, and hits the same cache blocks.
_WORDS = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all
were when we can said use an each she do how if will up out then them so some her make like him into time has look
two more go see no way who oil its now find long down day did get come made may part over new take only work know
year live me back give most very our good just name form help low line turn same mean tell boy want show also set
put end does home read hand port add even land here must big high such act why
"""
_STOPS = ("a.", "us.", "it.", "so,", "me,", "on,", "all,", "now,")
WORDS = tuple(" " + word for word in (*_WORDS.split(), *_STOPS))
_CHINESE = """
的 一 是 不 了 人 我 在 有 他 这 中 大 来 上 国 个 到 说 们 海 潮 月亮 因为 所以 时间 问题 今天 明天 朋友 学习 语言
模型 回答 可以 没有 我们 他们 什么 知道 世界 城市 河流 山 风 雨 书 。
"""
_EMOJI = "😀 🎉 🌊🌙 👩‍🚀 🏳️‍🌈 🐟🐠🐡 é 🇩🇪 ñandú 🚀 ☂️ 𝄞 🧮🔢 ~ ok 🙂 🙃🙂 🥳"

Vocabulary = Literal["english", "chinese", "emoji"]
VOCABULARIES: tuple[str, ...] = get_args(Vocabulary)
_BY_VOCABULARY: dict[Vocabulary, tuple[str, ...]] = {
    "english": WORDS,
    "chinese": tuple(_CHINESE.split()),
    "emoji": tuple(_EMOJI.split()),
}
_WORD_IDS = tuple(tokenize(word)[0] for word in WORDS)
_SPELLINGS = {name: tuple(tuple(tokenize(word)) for word in words) for name, words in _BY_VOCABULARY.items()}
_ALPHABETS = {name: frozenset(token for word in words for token in word) for name, words in _SPELLINGS.items()}
"""Every token that answers in this vocabulary may have."""

_LONGEST = 16_384
"""Tokens of an answer that a prompt may hold and be gone on from."""
_ID = Struct("<Q")
_ID_MASK = (1 << 64) - 1


class _Spelled:
    """The tokens of an answer with the text that has come with each, as far as it was asked for."""

    __slots__ = ("_decoder", "ends", "text")

    def __init__(self, before: bytes) -> None:
        """`before`: what is already in the detokenizer; it comes out with the first token."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = self._decoder.decode(before)
        self.ends = [0]
        """Characters after so many tokens."""

    def add(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            self.text += self._decoder.decode(token_bytes(token_id))
            self.ends.append(len(self.text))


class Reply:
    """The text of one answer, known from the start but computed only where it is asked for.

    `total` tokens in all. An answer that ends by itself has an end-of-text token, which counts but shows nothing.
    """

    __slots__ = (
        "_fixed",
        "_held",
        "_key",
        "_most",
        "_said",
        "_spelled",
        "_tokens",
        "_vocabulary",
        "_words_used",
        "ended_by_stop",
        "silent",
        "stop_string",
        "total",
    )

    def __init__(
        self,
        key: int,
        total: int,
        *,
        ended_by_stop: bool,
        fixed: Sequence[int] | None = None,
        vocabulary: Vocabulary = "english",
        said: int = 0,
        before: bytes = b"",
    ) -> None:
        """`said`: tokens of it that the prompt holds. `before`: a prompt that ends inside a character."""
        self._key = key
        self._fixed = fixed
        self._vocabulary: Vocabulary = vocabulary
        self._said = said
        self._tokens: list[int] = []
        """Of a vocabulary whose words have several, from the very beginning of the answer."""
        self._words_used = 0
        self._spelled = _Spelled(before) if before or vocabulary != "english" else None
        """None: each token is a word, or the answer is fixed."""
        self._held = 0
        """Characters that are held back before the end."""
        self._most: int | None = None
        """Characters that are shown in all; None: every one."""
        self.total = total
        self.ended_by_stop = ended_by_stop
        self.silent = int(ended_by_stop and total > 1)
        self.stop_string: str | None = None

    def ids(self, start: int, stop: int) -> list[int]:
        """Ids of the output tokens start..stop, the end-of-text token included."""
        shown = self.total - self.silent
        ids = self._shown_ids(start, min(stop, shown))
        return ids + [0] * (min(stop, self.total) - max(start, shown))

    def text(self, start: int, stop: int, *, ended: bool = False) -> str:
        """Text that comes with the output tokens start..stop; `ended`: none follow, so nothing is held back."""
        stop = min(stop, self.total - self.silent)
        if self._spelled is None:
            if self._fixed is not None:
                return detokenize(self._fixed[start:stop])
            key, count, said = self._key, len(WORDS), self._said
            return "".join([WORDS[hash((key, at)) % count] for at in range(said + start, said + stop)])
        spelled = self._spell(self._spelled, stop)
        return spelled.text[self._reached(spelled, start, ended=False) : self._reached(spelled, stop, ended=ended)]

    def stop_at(self, stops: Sequence[str], *, include: bool, after: int) -> None:
        """End with the token that completes one of the stop strings, which is shown only if `include` says so.

        `after`: tokens in which stop strings are not looked for.
        """
        stops = [stop for stop in stops if stop]
        if not stops:
            return
        self._spelled = self._spelled or _Spelled(b"")
        self._held = 0 if include else max(map(len, stops)) - 1
        shown = self.total - self.silent
        spelled = self._spell(self._spelled, shown)
        found: list[tuple[int, int, int]] = []
        for place, stop in enumerate(stops):
            new = spelled.ends[min(after, shown)]
            at = spelled.text.find(stop, max(0, new - len(stop) + 1), spelled.ends[shown])
            if at >= 0:
                tokens = next(n for n in range(shown + 1) if spelled.ends[n] >= at + len(stop))
                found.append((tokens, place, at))
        if found:
            tokens, place, at = min(found)
            self.stop_string = stops[place]
            self._most = at + len(stops[place]) if include else at
            self.total, self.silent, self.ended_by_stop = tokens, 0, True

    def _shown_ids(self, start: int, stop: int) -> list[int]:
        if stop <= start:
            return []
        if self._fixed is not None:
            return list(self._fixed[start:stop])
        key, said = self._key, self._said
        if self._vocabulary == "english":
            count = len(WORDS)
            return [_WORD_IDS[hash((key, at)) % count] for at in range(said + start, said + stop)]
        words = _SPELLINGS[self._vocabulary]
        while len(self._tokens) < said + stop:
            self._tokens += words[hash((key, self._words_used)) % len(words)]
            self._words_used += 1
        return self._tokens[said + start : said + stop]

    def _spell(self, spelled: _Spelled, stop: int) -> _Spelled:
        known = len(spelled.ends) - 1
        if known < stop:
            spelled.add(self._shown_ids(known, stop))
        return spelled

    def _reached(self, spelled: _Spelled, tokens: int, *, ended: bool) -> int:
        """Characters that have been shown after so many tokens."""
        reached = spelled.ends[min(tokens, len(spelled.ends) - 1)] - (0 if ended else self._held)
        return max(0, reached if self._most is None else min(reached, self._most))


def reply_key(seed: int, choice: int, prompt: Sequence[int]) -> int:
    """What all of an answer follows from."""
    return hash((seed, choice, _digest(prompt)))


def going_on(prompt: Sequence[int], seed: int, vocabulary: Vocabulary) -> tuple[int, int]:
    """How many tokens of an answer this prompt ends in, and the key of that answer.

    Where several would do, the longest: so a prompt and the same one with more of its answer are gone on alike.
    """
    alphabet = _ALPHABETS[vocabulary]
    first = len(prompt)
    while first > 1 and len(prompt) - first < _LONGEST and prompt[first - 1] in alphabet:
        first -= 1
    digest = _digest(prompt[:first])
    for at in range(first, len(prompt)):
        key, said = hash((seed, 0, digest)), len(prompt) - at
        reply = Reply(key, said, ended_by_stop=False, vocabulary=vocabulary)
        if reply.ids(0, 1) == [prompt[at]] and reply.ids(0, said) == list(prompt[at:]):
            return said, key
        digest = crc32(_ID.pack(prompt[at] & _ID_MASK), digest)
    return 0, hash((seed, 0, digest))


def cut_off(prompt: Sequence[int]) -> bytes:
    """The prompt's bytes if they end inside a character, else nothing."""
    tail = b"".join(map(token_bytes, prompt[-4:]))
    if tail.decode(errors="ignore") == tail.decode(errors="replace") or not _ends_inside(tail):
        return b""
    return b"".join(map(token_bytes, prompt))


def _ends_inside(text: bytes) -> bool:
    """Whether it ends in the beginning of a character of UTF-8."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # no continuation: it begins a character
            size = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
            return size > back
    return False


def _digest(prompt: Sequence[int]) -> int:
    try:
        ids = array("Q", prompt)
    except OverflowError:
        ids = array("Q", [token & _ID_MASK for token in prompt])
    return crc32(ids.tobytes())
