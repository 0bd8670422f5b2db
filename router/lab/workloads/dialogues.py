"""Programs whose prompt grows turn by turn: conversations of people, and agents with their tools.

Closed loops: a turn starts a while after the answer of the turn before, and its prompt repeats all that came
before.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import NO_ROW, RequestTable
from router.lab.workloads.shapes import (
    MORE,
    Amount,
    Count,
    Misbehaviour,
    Spread,
    Tokens,
    Write,
    gap,
    length,
    mean_turns,
    turns,
)


@dataclass(frozen=True, slots=True)
class Chat:
    """A person and a model: messages of 56 tokens, answers of 142 (arXiv 2501.14312); the rest is [ours]."""

    rate: ClassVar[float] = 30.0
    message_tokens: Tokens = 56
    output_tokens: Tokens = 142
    spread: Spread = 1.0
    turns: Amount = 8
    most_turns: Count = 40
    think_s: Spread = 10.0
    """Mean time from an answer to the next message."""

    def requests_per_program(self) -> float:
        return mean_turns(self.turns, self.most_turns)

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return self, MORE
        return replace(self, message_tokens=10 * self.message_tokens), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        del chance
        prompts = table.prompts

        def write(client: int, at: float, session: int, chance: Random) -> None:
            past, row, delay = NO_PARENT, NO_ROW, 0.0
            for _ in range(turns(chance, self.turns, self.most_turns)):
                prompt = prompts.grow(past, length(chance, self.message_tokens, self.spread))
                output = length(chance, self.output_tokens, self.spread)
                past = prompts.grow(prompt, output)
                row = table.add(at, client, prompt, output, reply=past, session=session, after=row, delay=delay)
                delay = gap(chance, self.think_s)
                at += delay

        return write


@dataclass(frozen=True, slots=True)
class Agents:
    """Programs that call tools: a long system prompt and tools by kind of agent, then many short turns [ours].

    All clients use the same kinds, the first most (by 1/rank). The last turn is the answer, the others are calls.
    """

    rate: ClassVar[float] = 20.0
    kinds: Count = 4
    system_tokens: Tokens = 4000
    system_spread: Spread = 0.3
    task_tokens: Tokens = 200
    call_tokens: Tokens = 80
    result_tokens: Tokens = 350
    output_tokens: Tokens = 250
    """Of the last turn."""
    spread: Spread = 1.0
    turns: Amount = 10
    most_turns: Count = 40
    tool_s: Spread = 1.5
    """Mean time that a tool takes."""

    def requests_per_program(self) -> float:
        return mean_turns(self.turns, self.most_turns)

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return self, MORE
        return replace(self, system_tokens=2 * self.system_tokens), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        prompts = table.prompts
        systems = [
            prompts.grow(NO_PARENT, length(chance, self.system_tokens, self.system_spread))
            for _ in range(self.kinds)
        ]
        shares = [1 / (rank + 1) for rank in range(self.kinds)]

        def write(client: int, at: float, session: int, chance: Random) -> None:
            past, row, delay = chance.choices(systems, shares)[0], NO_ROW, 0.0
            last = turns(chance, self.turns, self.most_turns) - 1
            for turn in range(last + 1):
                asked = self.result_tokens if turn else self.task_tokens
                prompt = prompts.grow(past, length(chance, asked, self.spread))
                output = length(chance, self.output_tokens if turn == last else self.call_tokens, self.spread)
                past = prompts.grow(prompt, output)
                row = table.add(at, client, prompt, output, reply=past, session=session, after=row, delay=delay)
                delay = gap(chance, self.tool_s)
                at += delay

        return write
