"""The interface of a generator's shape, and the random draws that the shapes share.

A *program* is what one user starts at one moment: a tree of thoughts, an essay to judge, a conversation. A shape
says what requests a program makes; `generators` says when programs start and whose they are.
"""

import math
from collections.abc import Callable
from random import Random
from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import Field

from router.lab.workloads.request_table import RequestTable

Misbehaviour = Literal["s1", "s2"]
"""Of the D2LPM paper (arXiv 2501.14312): `s1` sends more, `s2` sends longer prefixes."""
Count = Annotated[int, Field(ge=1, le=10**9)]
Tokens = Annotated[float, Field(gt=0, le=10**6)]
"""A mean length."""
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Write = Callable[[int, float, int, Random], None]
"""Writes one program into the table: its client, its start, its session, its chance."""
MORE = 4.0
"""How many times as many programs `s1` starts where the paper gives no number [ours]."""


class Shape(Protocol):
    """A frozen dataclass; its fields are the options of the generator."""

    rate: ClassVar[float]
    """Default of requests per second, of all clients together."""

    def requests_per_program(self) -> float:
        """The mean."""
        ...

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        """Its form for a client that misbehaves, and how many times as many programs that one starts."""
        ...

    def begin(self, table: RequestTable, chance: Random) -> Write:
        """Lay down what programs have in common."""
        ...


def length(chance: Random, mean: float, spread: float) -> int:
    """A number of tokens, at least 1: log-normal with this mean and coefficient of variation, cut at 20 means."""
    if spread == 0:
        return max(1, round(mean))
    variance = math.log1p(spread * spread)
    drawn = chance.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
    return max(1, round(min(drawn, 20 * mean)))


def turns(chance: Random, mean: float, most: int) -> int:
    """A number of turns from 1 to `most`: geometric, of this mean before the cut."""
    if mean <= 1:
        return 1
    return min(most, 1 + int(math.log(1 - chance.random()) / math.log(1 - 1 / mean)))


def mean_turns(mean: float, most: int) -> float:
    """What `turns` draws on average."""
    return 1.0 if mean <= 1 else mean * (1 - (1 - 1 / mean) ** most)


def gap(chance: Random, mean: float) -> float:
    """Seconds, exponential; 0 if the mean is."""
    return chance.expovariate(1 / mean) if mean else 0.0
