"""What is measured of a worker, in the words of the simulator: points, and the engine steps that each stands for.

Two kinds. A *prefill* point is the time to the first token of one prompt, nothing of it cached, alone on the
worker: one step, or several where the prompt is longer than `max_num_batched_tokens`, and what lies between the
engine and the client. A *decode* point is the time between tokens while a number of answers is generated side by
side: one step.
"""

from dataclasses import dataclass
from typing import Literal

from workers.simulator.profiles import Profile, pairs


@dataclass(frozen=True, slots=True)
class Step:
    """The arguments of `Profile.step_s`."""

    sequences: int = 0
    context: int = 0
    chunk_tokens: int = 0
    chunk_pairs: float = 0.0
    samples: int = 0

    def seconds(self, profile: Profile) -> float:
        return profile.step_s(self.sequences, self.context, self.chunk_tokens, self.chunk_pairs, self.samples)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement."""

    kind: Literal["prefill", "decode"]
    prompt_tokens: int
    """Of each prompt."""
    batch: int
    steps: tuple[Step, ...]
    """What the engine does in the measured time."""
    measured_s: float
    """The median of what was measured."""


def prefill_point(prompt_tokens: int, measured_s: float, max_num_batched_tokens: int) -> Point:
    """The time to the first token of an uncached prompt that is alone on the worker."""
    starts = range(0, prompt_tokens, max_num_batched_tokens)
    chunks = [(start, min(max_num_batched_tokens, prompt_tokens - start)) for start in starts]
    steps = [
        Step(chunk_tokens=chunk, chunk_pairs=pairs(start, chunk), samples=int(start + chunk == prompt_tokens))
        for start, chunk in chunks
    ]
    return Point("prefill", prompt_tokens, 1, tuple(steps), measured_s)


def decode_point(prompt_tokens: int, batch: int, context: float, measured_s: float) -> Point:
    """The time between tokens of `batch` answers over `context` tokens in all, on average."""
    return Point("decode", prompt_tokens, batch, (Step(batch, round(context)),), measured_s)
