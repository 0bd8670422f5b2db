"""Where two legs of an answer meet: the text that the client has, beside the text of the tokens that have come.

    emitted    what the client has
    decoded    what its tokens say, as far as they end a character
    held       decoded beyond emitted: kept back by the worker, for a stop string that might have begun
    overlap    emitted beyond decoded: of a token that was taken back, because a character begins in it

All functions are pure.
"""

import re
from dataclasses import dataclass

CUT = "\ufffd"
"""What stands for a character that is not whole."""
_SPECIAL = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,32}\]")
"""How special tokens look, which a detokenizer shows and a stream leaves out."""


@dataclass(frozen=True, slots=True)
class Seam:
    """At most one of the two is not empty."""

    held: str = ""
    overlap: str = ""


def align(decoded: str, emitted: str, *, may_hold: bool) -> Seam | None:
    """How the two meet; None: the tokens do not say what the client has been told.

    `may_hold`: there are stop strings, for which a worker keeps text back.
    """
    at = told = 0
    while told < len(emitted) and at < len(decoded):
        rest = emitted[told:]
        if decoded.startswith(rest, at):
            told, at = len(emitted), at + len(rest)
            break
        same = _common(decoded, at, rest)
        at, told = at + same, told + same
        if at == len(decoded):
            break
        special = _SPECIAL.match(decoded, at)
        if special is None:
            return None
        at = special.end()
    if told < len(emitted):
        return Seam(overlap=emitted[told:])
    left = decoded[at:]
    if may_hold or not left:
        return Seam(held=left)
    return Seam() if not _SPECIAL.sub("", left) else None


def _common(decoded: str, at: int, rest: str) -> int:
    """How many characters agree from there."""
    low, high = 0, min(len(decoded) - at, len(rest))
    while low < high:
        middle = (low + high + 1) // 2
        if decoded.startswith(rest[:middle], at):
            low = middle
        else:
            high = middle - 1
    return low


class StopMatcher:
    """Looks for stop strings in text that comes in pieces, and keeps back what may be the beginning of one.

    Where the answer is to show its stop string, nothing is kept back, as vLLM does it.
    """

    __slots__ = ("_keep", "_shows", "_stops", "_text", "_told", "beyond", "found")

    def __init__(self, stops: tuple[str, ...], *, shows: bool, before: str = "") -> None:
        """`shows`: the text ends behind the stop string, not before it. `before`: what has been told already."""
        self._stops = stops
        self._shows = shows
        self._keep = max(map(len, stops), default=1) - 1
        self._text = before[len(before) - min(self._keep, len(before)) :] if shows else ""
        """The end of what has come: all in which a stop string may begin."""
        self._told = len(self._text)
        self.found: str | None = None
        """The stop string that has ended the text."""
        self.beyond = 0
        """Characters that have come after it."""

    def feed(self, text: str, *, last: bool) -> str:
        """The text that may be told now. Nothing more may be fed once one was found."""
        text = self._text + text
        ends = [(at + len(stop), place) for place, stop in enumerate(self._stops) if (at := text.find(stop)) >= 0]
        if ends:
            end, place = min(ends)
            self.found, self.beyond = self._stops[place], len(text) - end
            return text[self._told : end if self._shows else end - len(self.found)]
        kept = max(0, len(text) - self._keep)
        until = len(text) if last or self._shows else kept
        told = text[self._told : until]
        self._text, self._told = text[kept:], until - kept
        return told
