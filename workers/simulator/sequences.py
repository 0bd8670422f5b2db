"""The values of the engine: its limits, what it is asked, and one sequence on its way through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Literal

from workers.simulator.kv_cache import chain, extra_key, link

Scheduling = Literal["fcfs", "priority"]
Part = Literal["whole", "prefill", "decode"]
"""What an engine does of a sequence. `prefill`: it ends with its first token, and its KV stays held until it is
fetched. `decode`: the KV of its prompt comes from another engine, so that nothing of it is computed here.
"""


class Reason(Enum):
    """Why a sequence ended; the values are vLLM's `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine, named as vLLM's options. Raises ValueError where vLLM would refuse to start."""

    kv_blocks: int = 28_000
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    scheduling: Scheduling = "fcfs"
    prefix_caching: bool = True
    kv_lease_s: float = 30.0
    """How long the KV of a prefill waits to be fetched."""
    kv_events: bool = False
    """Keep a journal of what the prefix cache gains and loses."""

    def __post_init__(self) -> None:
        if min(self.kv_blocks, self.block_size, self.max_num_seqs, self.max_model_len) < 1:
            raise ValueError("kv_blocks, block_size, max_num_seqs and max_model_len must be positive")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than "
                f"max_num_seqs={self.max_num_seqs}: a step could not decode every sequence"
            )
        if self.kv_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.kv_blocks} blocks of {self.block_size} tokens cannot hold one sequence of "
                f"max_model_len={self.max_model_len}"
            )


@dataclass(frozen=True, slots=True)
class Blocks:
    """A prompt that is known by the names of its full blocks only, as in a trace of hash ids.

    Names beyond the prompt's full blocks name the blocks that the output will fill.
    """

    names: Sequence[int]
    tokens: int


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate."""

    id: str
    prompt: Sequence[int] | Blocks
    """Token ids, or the names of its blocks. At least one token."""
    max_tokens: int
    output_tokens: int | None = None
    """How many tokens it really generates, if known; None: drawn from the engine's seed and the prompt."""
    min_tokens: int = 0
    ignore_eos: bool = False
    """Generate exactly `max_tokens`."""
    priority: int = 0
    """Lower is earlier; only under priority scheduling."""
    cache_salt: str | None = None
    lora: str | None = None
    reply: Callable[[int, int], Sequence[int]] | None = None
    """Ids of the output tokens start..stop, so that blocks which the output fills can be hit later."""
    part: Part = "whole"
    transfer_s: float | None = None
    """How long the prompt's KV is on its way, for `decode`; None: by the profile."""

    @property
    def prompt_tokens(self) -> int:
        return self.prompt.tokens if isinstance(self.prompt, Blocks) else len(self.prompt)


def draw_output_tokens(seed: int, key: int, min_tokens: int, max_tokens: int) -> int:
    """Length of an answer, the same for equal arguments: log-normal, median 150, mean 200, within the bounds."""
    drawn = int(Random(hash((seed, key))).lognormvariate(5.0, 0.8))
    return min(max(2, min_tokens, drawn), max_tokens)


class EngineSequence:
    """One request inside the engine. Read-only outside of the scheduler.

    While it decodes, its progress is not counted token by token but follows from the number of steps done:
    `generated = base + (steps - decode_from)`. `life` grows whenever older plans for it become void.
    """

    __slots__ = (
        "arrived",
        "base",
        "blocks",
        "cached",
        "computed",
        "decode_from",
        "done",
        "finish_step",
        "finished_at",
        "first_at",
        "life",
        "lora_key",
        "named",
        "names",
        "order",
        "prompt_tokens",
        "pulled",
        "reason",
        "request",
        "running",
        "salt_key",
        "target",
    )

    def __init__(self, request: EngineRequest, block_size: int, seed: int, arrived: float, order: int) -> None:
        self.request = request
        self.prompt_tokens = request.prompt_tokens
        self.salt_key = extra_key(request.cache_salt) if request.cache_salt else None
        self.lora_key = extra_key(request.lora) if request.lora else None
        if isinstance(request.prompt, Blocks):
            self.names = list(request.prompt.names)
        else:
            self.names = chain(request.prompt, block_size, salt=self.salt_key, lora=self.lora_key)
        self.target, self.reason = self._output(seed)
        if request.part == "prefill":
            self.limit_output(1)
        self.arrived = arrived
        self.order = order
        self.first_at: float | None = None
        self.finished_at: float | None = None
        self.running = False
        self.done = False
        self.life = 0
        self.blocks: list[int] = []
        self.named = 0
        """How many of its leading blocks have been named."""
        self.computed = 0
        """Tokens whose KV is in its blocks; only kept while it does not decode."""
        self.cached: int | None = None
        """Prompt tokens that the cache saved at its first admission."""
        self.pulled = 0
        """Prompt tokens that came from another engine."""
        self.base = 0
        self.decode_from = -1
        """Index of the first decode step; -1 while it waits or prefills."""
        self.finish_step = -1

    def _output(self, seed: int) -> tuple[int, Reason]:
        request, limit = self.request, max(1, self.request.max_tokens)
        if request.output_tokens is not None:
            length = min(max(1, request.output_tokens), limit)
        elif request.ignore_eos:
            length = limit
        else:
            length = draw_output_tokens(seed, self._key(), request.min_tokens, limit)
        return length, Reason.LENGTH if length >= limit else Reason.STOP

    def _key(self) -> int:
        """A number that stands for the whole prompt."""
        prompt = self.request.prompt
        if isinstance(prompt, Blocks):
            return hash((self.prompt_tokens, *self.names[-1:]))
        return hash(tuple(prompt))

    def limit_output(self, tokens: int) -> None:
        """Cut the output where the model's context ends."""
        if tokens < self.target:
            self.target, self.reason = tokens, Reason.LENGTH

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Its tokens start..stop, prompt and output; what is not known of them is left out."""
        request, prompt = self.request, self.prompt_tokens
        if isinstance(request.prompt, Blocks):
            return []
        ids = list(request.prompt[start:stop])
        if stop > prompt and request.reply is not None:
            ids += request.reply(max(0, start - prompt), stop - prompt)
        return ids

    def name_of(self, index: int, block_size: int) -> int | None:
        """Name of its full block `index`, None where its content is not known."""
        if index < len(self.names):
            return self.names[index]
        reply = self.request.reply
        if reply is None or isinstance(self.request.prompt, Blocks):
            return None
        while len(self.names) <= index:
            start = len(self.names) * block_size
            ids = self.token_ids(start, start + block_size)
            parent = self.names[-1] if self.names else None
            if parent is None:
                self.names = chain(ids, block_size, salt=self.salt_key, lora=self.lora_key)
            else:
                self.names.append(link(parent, ids, (self.lora_key, None)))
        return self.names[index]
