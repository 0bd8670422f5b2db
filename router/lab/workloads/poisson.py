"""The plainest workload: single requests, some of which begin with a text that others begin with too [ours]."""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import RequestTable
from router.lab.workloads.shapes import MORE, Count, Misbehaviour, Share, Spread, Tokens, Write, length


@dataclass(frozen=True, slots=True)
class Poisson:
    """Lengths are log-normal; popularity of the shared prefixes falls by 1/rank, and all clients use the same."""

    rate: ClassVar[float] = 20.0
    input_tokens: Tokens = 1024
    """Of a prompt, its shared prefix included; one that is shorter than its prefix ends 16 tokens behind it."""
    output_tokens: Tokens = 128
    spread: Spread = 1.0
    shared: Share = 0.5
    """Share of the requests that begin with one of the prefixes."""
    prefixes: Count = 16
    prefix_tokens: Count = 512

    def requests_per_program(self) -> float:
        return 1.0

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return self, MORE
        return replace(self, input_tokens=2 * self.input_tokens, prefix_tokens=2 * self.prefix_tokens), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        del chance
        prompts = table.prompts
        starts = [prompts.grow(NO_PARENT, self.prefix_tokens) for _ in range(self.prefixes)]
        shares = [1 / (rank + 1) for rank in range(self.prefixes)]

        def write(client: int, at: float, session: int, chance: Random) -> None:
            tokens = length(chance, self.input_tokens, self.spread)
            output = length(chance, self.output_tokens, self.spread)
            if chance.random() < self.shared:
                start = chance.choices(starts, shares)[0]
                prompt = prompts.grow(start, max(16, tokens - self.prefix_tokens))
            else:
                prompt = prompts.grow(NO_PARENT, tokens)
            table.add(at, client, prompt, output, session=session)

        return write
