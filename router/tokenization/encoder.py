"""Text -> token ids, piece by piece, so that what has been tokenized before is not tokenized again.

A tokenizer cuts its special tokens out of a text before anything else happens to it; nothing on one side of such a
token can change the ids on the other. So a text may be cut before each of them, and every piece, which begins with
its special token, gives the same ids alone as within the whole. That holds for tokens which take nothing of their
surroundings with them (no stripping of blanks, no word boundaries, no normalizing); others are not cut at.
Whether it is true of a tokenizer at hand is tried on samples; if not, texts are tokenized whole.

Ids are kept as bytes, 4 each, little-endian.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_128_digest

from router.tokenization.pieces import Pieces

_STRETCH = 1 << 16
"""Characters that are searched for special tokens at a time."""
_SAMPLE = ("Good morning", "  two blanks\n\n", "", "\tüé 中文 🙂", "a" * 40, " ", "x\n", "12345 it's")


@dataclass(frozen=True, slots=True)
class Look:
    """A text in pieces, with the ids of those that are known. Without `digests` it is to be tokenized whole."""

    text: str
    found: list[bytes | None]
    pieces: list[str]
    digests: list[bytes]
    special_tokens: bool

    @property
    def new(self) -> list[int]:
        """Which pieces are not known."""
        return [number for number, ids in enumerate(self.found) if ids is None]

    @property
    def size(self) -> int:
        """Characters that are to be tokenized."""
        return sum(len(self.pieces[number]) for number in self.new)


class Encoder:
    """A tokenizer of `tokenizers`, asked by pieces. Thread-safe; the interpreter is free while it works."""

    def __init__(self, tokenizer: Any, cache_bytes: int) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.pieces = Pieces(cache_bytes)
        self._cuts = _cuts(tokenizer)
        self._longest = len(self._cuts[0].pattern) if self._cuts is not None else 0
        """No special token is longer than all of them together."""
        self._before, self._after = self._frame()
        if not all(self._agrees(text) for text in self._samples()):
            self._cuts = None

    @property
    def by_pieces(self) -> bool:
        """Whether texts are cut at all."""
        return self._cuts is not None

    def look(self, text: str, *, special_tokens: bool) -> "Look":
        """What is known of a text: cheap, even where it is long."""
        if special_tokens and self._before is None:
            # What is added is no fixed frame, so it cannot be added to pieces.
            return Look(text, [None], [text], [], special_tokens=True)
        pieces = list(self._split(text))
        digests = [xxh3_128_digest(piece.encode("utf-8", "surrogatepass")) for piece in pieces]
        return Look(text, self.pieces.known(digests), pieces, digests, special_tokens)

    def finish(self, look: "Look") -> bytes:
        """The ids of the text, after tokenizing what is new of it."""
        if not look.digests:
            return self._whole(look.text)
        found, new = look.found, look.new
        if new:
            made = self._encode([look.pieces[number] for number in new])
            for number, ids in zip(new, made, strict=True):
                found[number] = ids
            self.pieces.keep((look.digests[number], ids) for number, ids in zip(new, made, strict=True))
        body = b"".join(ids for ids in found if ids is not None)
        return b"".join((self._before or b"", body, self._after)) if look.special_tokens else body

    def ids(self, text: str, *, special_tokens: bool) -> bytes:
        """Both at once."""
        return self.finish(self.look(text, special_tokens=special_tokens))

    def _whole(self, text: str) -> bytes:
        return _bytes(self._tokenizer.encode_batch_fast([text], add_special_tokens=True)[0])

    def _encode(self, pieces: Sequence[str]) -> list[bytes]:
        # The batch call releases the GIL, which `encode` does not; "fast": offsets are of no use here.
        return [_bytes(one) for one in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]

    def _split(self, text: str) -> Iterator[str]:
        if self._cuts is None:
            yield text
            return
        pattern, cut_at = self._cuts
        start = 0
        for match in self._matches(pattern, text):
            if match[0] in cut_at and match.start() > 0:
                yield text[start : match.start()]
                start = match.start()
        yield text[start:]

    def _matches(self, pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
        """All matches, in stretches of the text: the interpreter's lock is held for one of them at most."""
        at = 0
        while at < len(text):
            stop = at + _STRETCH
            for match in pattern.finditer(text, at, stop + self._longest):
                if match.start() >= stop:
                    break
                yield match
                at = match.end()
            at = max(at, stop)

    def _frame(self) -> tuple[bytes | None, bytes]:
        """What special tokens are put before and after every text. (None, b"") if that depends on the text."""
        frames = set()
        for text in ("a", "Good morning, world"):
            plain, framed = self._encode([text])[0], self._whole(text)
            before = _index(framed, plain)
            if before is None:
                return None, b""
            frames.add((framed[:before], framed[before + len(plain) :]))
        return frames.pop() if len(frames) == 1 else (None, b"")

    def _samples(self) -> Iterator[str]:
        """Texts with special tokens in all sorts of places."""
        if self._cuts is None:
            return
        tokens = sorted(self._cuts[1])[:50]
        for number, token in enumerate(tokens):
            left, right = _SAMPLE[number % len(_SAMPLE)], _SAMPLE[(number + 3) % len(_SAMPLE)]
            other = tokens[number - 1]
            yield f"{left}{token}{right}{other}{token} {left}\n{token}{token}{right}"
        yield tokens[0].join(_SAMPLE) if tokens else ""

    def _agrees(self, text: str) -> bool:
        return b"".join(self._encode(list(self._split(text)))) == self._encode([text])[0]


def _bytes(encoding: Any) -> bytes:
    return array("I", encoding.ids).tobytes()


def _index(framed: bytes, plain: bytes) -> int | None:
    """Where the ids of a text stand among those with special tokens."""
    for at in range(0, len(framed) - len(plain) + 1, 4):
        if framed[at : at + len(plain)] == plain:
            return at
    return None


def _cuts(tokenizer: Any) -> tuple[re.Pattern[str], frozenset[str]] | None:
    """How special tokens are found in a text, and at which of them it may be cut; None if there are none.

    They are found as the tokenizer finds them: the longest one at the leftmost place.
    """
    tokens = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.normalized]
    cut_at = frozenset(
        token.content
        for token in tokens
        if not (token.lstrip or token.rstrip or token.single_word) and token.content
    )
    if not cut_at or tokenizer.encode_special_tokens:
        return None
    longest_first = sorted((token.content for token in tokens if token.content), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), cut_at
