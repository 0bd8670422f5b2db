"""Where a request has its prompt tokenized: at once, in a thread, or by a worker; else it goes on as text.

It waits for a bounded time. A prompt that takes longer than that is computed for many times as long, so what is
lost is one exact prediction, and its pieces are known when the conversation goes on.

What workers report at the end says whether the counts are right. On a surface on which several in a row were not,
prompts go on as text: something is different there that the gateway was not told.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeVar

from router.edge.api.parsed_request import ParsedRequest, Surface, parsed_object
from router.edge.pieces import joined
from router.tokenization.lanes import Lanes
from router.tokenization.local import LocalTokenizer
from router.tokenization.pieces import Pieces
from router.tokenization.prompt import Ids, Inexact, Prompt, Why
from router.tokenization.remote import RemoteTokenizer
from router.tokenization.surfaces import prompt_of

_log = logging.getLogger("fairlead.tokenization")

T = TypeVar("T")
Kind = Literal["local", "worker", "text"]

_INLINE_BYTES = 8 * 1024
"""Bodies up to this size are rendered and looked up on the event loop: about as much work as a thread's hop."""
INLINE_CHARS = 256
"""New characters that are tokenized there at most: more costs the loop more than the hop does.

Measured by benchmarks/micro/tokenization.py.
"""
_LONGEST_BYTES = 4 << 20
"""A million tokens, about: beyond the context of what is served today."""
_MOST_VALUES = 200_000
"""In a large body: the parser holds the interpreter's lock, some 20 ms for this many."""
_MISCOUNTS = 3
"""This many in a row on one surface are no accident."""


class Desk:
    """One model's tokenizer at work. `distrusted` is called when a surface has come to be distrusted."""

    def __init__(
        self,
        model: str,
        tokenizer: LocalTokenizer | RemoteTokenizer,
        lanes: Lanes,
        *,
        wait_s: float,
        distrusted: Callable[[], None],
        inline_chars: int = INLINE_CHARS,
    ) -> None:
        self.model = model
        self.kind: Kind = "local" if isinstance(tokenizer, LocalTokenizer) else "worker"
        self.exact = 0
        """Prompts whose ids were known."""
        self.as_text: Counter[Why] = Counter()
        self.miscounts = 0
        """Prompts that turned out to have another number of tokens."""
        self._tokenizer = tokenizer
        self._lanes = lanes
        self._wait_s = wait_s
        self._inline_chars = inline_chars
        self._on_distrust = distrusted
        self._wrong: Counter[Surface] = Counter()
        """Miscounts since the last right count."""

    @property
    def pieces(self) -> Pieces:
        """What it remembers."""
        tokenizer = self._tokenizer
        return tokenizer.encoder.pieces if isinstance(tokenizer, LocalTokenizer) else tokenizer.pieces

    async def ids(self, ask: ParsedRequest) -> bytes | None:
        """The token ids of the request's prompt, 4 bytes each, little-endian; None: it goes on as text."""
        try:
            ids = await self._ids(ask)
        except Inexact as inexact:
            self.as_text[inexact.why] += 1
            _log.debug("%s: a prompt goes on as text: %s", self.model, inexact)
            return None
        self.exact += 1
        return ids

    def saw(self, surface: Surface, counted: int, reported: int) -> None:
        """A worker has said how many tokens a prompt had that was counted here."""
        if counted == reported:
            self._wrong[surface] = 0
            return
        self.miscounts += 1
        self._wrong[surface] += 1
        if self._wrong[surface] == _MISCOUNTS:
            _log.warning(
                "%s: %d prompts in a row on %s were not as long as counted here (the last: %d tokens, its worker "
                "says %d); such requests are routed as text from now on",
                self.model,
                _MISCOUNTS,
                surface.value,
                counted,
                reported,
            )
            self._on_distrust()

    async def _ids(self, ask: ParsedRequest) -> bytes:
        if self._wrong[ask.surface] >= _MISCOUNTS:
            raise Inexact(Why.DISTRUSTED)
        size, tokenizer = len(ask.body), self._tokenizer
        try:
            prompt = await self._prompt(ask, size)
            if isinstance(prompt, Ids):
                return prompt.data
            if size > _LONGEST_BYTES:
                raise Inexact(Why.LONG)
            if isinstance(tokenizer, LocalTokenizer):
                return await self._here(tokenizer, prompt, size)
            async with asyncio.timeout(self._wait_s):
                return await tokenizer.ids(prompt)
        except TimeoutError:
            raise Inexact(Why.SLOW) from None

    async def _prompt(self, ask: ParsedRequest, size: int) -> Prompt:
        """What is to be tokenized. A large body was parsed elsewhere: once more, in a thread, if quick."""
        fields = ask.fields
        if fields is None:
            if size > _LONGEST_BYTES or ask.structure > _MOST_VALUES:
                raise Inexact(Why.LONG)
            fields = await self._in_thread(size, lambda: parsed_object(joined(ask.body)))
        return prompt_of(ask, fields)

    async def _here(self, tokenizer: LocalTokenizer, prompt: Prompt, size: int) -> bytes:
        """At once where that is quickly done, else in a thread."""
        if size > _INLINE_BYTES:
            return await self._in_thread(size, lambda: tokenizer.ids(prompt))
        looks = tokenizer.look(prompt)
        new = sum(look.size for look in looks)
        if new <= self._inline_chars:
            return tokenizer.finish(looks)
        return await self._in_thread(new, lambda: tokenizer.finish(looks))

    async def _in_thread(self, size: int, work: Callable[[], T]) -> T:
        future = self._lanes.of(size).submit(size, work)
        if future is None:
            raise Inexact(Why.BUSY)
        async with asyncio.timeout(self._wait_s):
            return await asyncio.wrap_future(future)
