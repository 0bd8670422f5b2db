"""The load: two clients that chat, and in the scenario `flood` a third that floods.

A chat session sends its whole conversation, waits for the answer, and sends it again with the answer and one more
short question. The sessions of one client begin with the same long system prompt. The flood keeps a number of
requests open whose prompts have nothing in common. All texts depend on the seed alone.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from benchmarks.fleet.chat_client import NoAnswerError, ask

CHATS = ("chat-a", "chat-b")
FLOOD = "flood"

# Short and frequent words: one token each in most vocabularies.
# fmt: off
WORDS = (
    "the", "and", "for", "with", "from", "this", "that", "about", "people", "water", "time", "house", "light",
    "city", "river", "music", "paper", "story", "table", "garden", "window", "number", "morning", "system",
    "market", "science", "history", "family", "problem", "school", "country", "question", "answer", "small",
    "large", "early", "late", "open", "close", "read", "write", "move", "stay", "help", "work", "play", "learn",
    "build", "start", "end", "change", "keep",
)
# fmt: on
PAUSE_AFTER_ERROR_S = 0.2

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What is asked, in which amounts. Lengths of prompts are in words."""

    seed: int = 0
    sessions: int = 3
    """Per chatting client."""
    system_words: int = 250
    question_words: tuple[int, int] = (8, 20)
    chat_output_tokens: int = 40
    turns: int = 12
    """After so many turns a session begins a new conversation, so that its context stays bounded."""
    flood_open: int = 24
    flood_words: tuple[int, int] = (300, 480)
    flood_output_tokens: int = 32
    drain_s: float = 120.0
    """How long requests that are open at the end may take to finish."""


SCENARIOS = {"flood": LoadSettings(), "friendly": LoadSettings(sessions=10, flood_open=0)}
"""`flood`: few chats beside a client that asks for more than the fleet can do. `friendly`: chats alone, fewer than
three servers have sequence slots, so that no request has to wait for one."""


@dataclass(slots=True)
class Record:
    """One request. Moments in seconds since the load began; None: it did not come to that."""

    client: str
    sent_s: float
    first_s: float | None = None
    done_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""


@dataclass(slots=True)
class Load:
    """One run of the load against one address."""

    url: str
    model: str
    settings: LoadSettings
    seconds: float
    """New requests begin for so long."""
    began_at: float = field(default_factory=time.monotonic)
    records: list[Record] = field(default_factory=list)
    open: int = 0
    """Requests sent whose answer is not complete."""

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_at

    async def run(self) -> None:
        """Send until the time is over, then wait for what is open, at most `drain_s`."""
        settings = self.settings
        flows = [self._chat(client, number) for client in CHATS for number in range(settings.sessions)]
        flows += [self._flood(number) for number in range(settings.flood_open)]
        tasks = [asyncio.create_task(flow) for flow in flows]
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.seconds + settings.drain_s - self.now_s)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chat(self, client: str, session: int) -> None:
        for system, questions in conversations(client, session, self.settings):
            messages = [system]
            for question in questions:
                messages.append(question)
                said = None
                while said is None:
                    if self.now_s >= self.seconds:
                        return
                    said = await self._send(client, messages, self.settings.chat_output_tokens)
                messages.append({"role": "assistant", "content": said})

    async def _flood(self, number: int) -> None:
        chance = Random(f"{self.settings.seed}/{FLOOD}/{number}")
        while self.now_s < self.seconds:
            question = {"role": "user", "content": _text(chance, *self.settings.flood_words)}
            await self._send(FLOOD, [question], self.settings.flood_output_tokens)

    async def _send(self, client: str, messages: list[Message], output_tokens: int) -> str | None:
        """The answer's text, or None after an error."""
        record = Record(client, self.now_s)
        self.records.append(record)
        self.open += 1
        try:
            answer = await ask(self.url, request_body(self.model, client, messages, output_tokens))
        except (NoAnswerError, OSError) as error:
            record.error = f"{type(error).__name__}: {error}"
            # So that an address where nothing works is not asked in a tight loop.
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
            return None
        finally:
            self.open -= 1
        record.first_s, record.done_s = answer.first_at - self.began_at, self.now_s
        record.input_tokens, record.output_tokens = answer.input_tokens, answer.output_tokens
        record.cached_tokens = answer.cached_tokens
        return answer.text


def request_body(model: str, client: str, messages: list[Message], output_tokens: int) -> dict[str, Any]:
    """A streamed request whose answer has exactly this many tokens."""
    return {
        "model": model,
        "user": client,
        "messages": messages,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def conversations(client: str, session: int, settings: LoadSettings) -> Iterator[tuple[Message, list[Message]]]:
    """Without end: the client's system prompt, and the questions of one conversation."""
    system = _text(Random(f"{settings.seed}/{client}"), settings.system_words, settings.system_words)
    chance = Random(f"{settings.seed}/{client}/{session}")
    while True:
        texts = (_text(chance, *settings.question_words) for _ in range(settings.turns))
        yield {"role": "system", "content": system}, [{"role": "user", "content": text} for text in texts]


def _text(chance: Random, fewest: int, most: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(fewest, most)))
