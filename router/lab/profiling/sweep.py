"""The requests that measure a worker, and what they say about it.

For each prompt length and each repetition as many new random prompts as the largest batch are sent one after
the other for a single token: each is a measurement of prefill on an otherwise idle worker. Then, for each batch
size, that number of the same prompts is sent at once. Their prefixes are cached by now, so all of them soon decode
side by side, and the time between tokens is taken from the stretch in which every answer of the batch has begun
and none has ended.

The worker must have nothing else to do. Several that share a machine can be measured at once: `together.py`.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import Self

import httpx

from router.lab.profiling.points import Point, decode_point, prefill_point
from router.lab.profiling.stream import Answer, MeasurementError, ask, worker_client
from workers.fleet.probe import ProbeError, fetch_metrics, fetch_models, fetch_version, open_client
from workers.fleet.worker import WorkerSpec

TOKEN_IDS = (100, 300)
"""Prompts are made of these: in the vocabulary of every model, and rarely special."""
_CONTROL_S = 10.0
_ANSWER_S = 300.0
"""The longest wait for the next chunk."""
_STEPS_TO_TRUST = 4
"""Fewer steps with the whole batch are no measurement."""
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is asked of the worker."""

    prompt_lengths: tuple[int, ...] = (32, 128, 512, 1024)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    output_tokens: int = 32
    repeats: int = 3
    seed: int = 0

    def requests(self) -> int:
        """Requests that a whole sweep sends, warming up left out."""
        return len(self.prompt_lengths) * self.repeats * (max(self.batches) + sum(self.batches))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the worker says of itself."""

    url: str
    model: str
    version: str | None
    max_model_len: int | None
    kv_tokens: int | None


@dataclass(slots=True)
class _Decodes:
    """What the repetitions of one batch size at one prompt length gave."""

    step_s: list[float]
    context: list[float]


class Meter:
    """Measures one worker. Use as an asynchronous context manager; `open` asks the worker who it is."""

    def __init__(self, facts: Facts, http: httpx.AsyncClient) -> None:
        self.facts = facts
        self.notes: list[str] = []
        """What was left out, and why."""
        self._http = http

    @classmethod
    async def open(cls, stack: AsyncExitStack, url: str, model: str | None, api_key: str | None) -> Self:
        """Ask the worker who it is. Raises MeasurementError."""
        facts = await look(url, model, api_key)
        http = worker_client(facts.url, api_key, _ANSWER_S)
        return cls(facts, await stack.enter_async_context(http))

    async def measure(
        self,
        sweep: Sweep,
        max_num_batched_tokens: int,
        progress: Callable[[int], None],
        in_step: Callable[[], Awaitable[object]],
    ) -> list[Point]:
        """Run the sweep, reporting to `progress` how many requests have ended. Raises MeasurementError.

        `in_step` is awaited before each part: where others are measured at the same time, it waits for them.
        """
        lengths = self._fitting(sweep)
        chance = Random(sweep.seed)
        await self._warm_up(chance, lengths, sweep.output_tokens)
        ended = 0
        points: list[Point] = []
        for length in lengths:
            batches = self._batches(sweep, length)
            ttfts: list[float] = []
            decodes = {batch: _Decodes([], []) for batch in batches}
            for _ in range(sweep.repeats):
                prompts = [_prompt(chance, length) for _ in range(max(batches, default=1))]
                await in_step()
                for prompt in prompts:
                    ttfts.append(await self._prefill(prompt))
                    progress(ended := ended + 1)
                for batch in batches:
                    await in_step()
                    found = await self._decode(prompts[:batch], sweep.output_tokens)
                    if found is not None:
                        decodes[batch].step_s.append(found[0])
                        decodes[batch].context.append(found[1])
                    progress(ended := ended + batch)
            points.append(prefill_point(length, statistics.median(ttfts), max_num_batched_tokens))
            points += self._decode_points(length, decodes)
        return points

    def _fitting(self, sweep: Sweep) -> list[int]:
        limits = [(self.facts.max_model_len, "max_model_len"), (self.facts.kv_tokens, "the KV cache")]
        bounds = [(limit, name) for limit, name in limits if limit is not None]
        lengths: list[int] = []
        for length in sweep.prompt_lengths:
            broken = [f"{limit} ({name})" for limit, name in bounds if length + sweep.output_tokens > limit]
            if broken:
                self.notes.append(
                    f"no prompts of {length} tokens: with {sweep.output_tokens} of output they are longer than "
                    f"{' and '.join(broken)}"
                )
            else:
                lengths.append(length)
        if not lengths:
            raise MeasurementError(f"no prompt length fits the worker: {'; '.join(self.notes)}")
        return lengths

    def _batches(self, sweep: Sweep, length: int) -> list[int]:
        room = self.facts.kv_tokens
        batches = [b for b in sweep.batches if room is None or b * (length + sweep.output_tokens) <= room]
        if left_out := [str(b) for b in sweep.batches if b not in batches]:
            self.notes.append(
                f"no batches of {', '.join(left_out)} prompts of {length} tokens: the KV cache holds {room} tokens"
            )
        return batches

    def _decode_points(self, length: int, decodes: dict[int, _Decodes]) -> list[Point]:
        points = []
        for batch, found in decodes.items():
            if found.step_s:
                context, step_s = statistics.fmean(found.context), statistics.median(found.step_s)
                points.append(decode_point(length, batch, context, step_s))
            else:
                self.notes.append(
                    f"no batches of {batch} prompts of {length} tokens: it never decoded that many side by "
                    f"side for {_STEPS_TO_TRUST} steps (more --output-tokens, or fewer at once)"
                )
        return points

    async def _warm_up(self, chance: Random, lengths: Sequence[int], output_tokens: int) -> None:
        for _ in range(_WARM_UPS):
            for length in {min(lengths), max(lengths)}:
                await self._ask(_prompt(chance, length), output_tokens)

    async def _prefill(self, prompt: list[int]) -> float:
        answer = await self._ask(prompt, 1)
        if answer.cached_tokens:
            raise MeasurementError("the worker has these prompts in its prefix cache: take another --seed")
        return answer.ttft_s

    async def _decode(self, prompts: Sequence[list[int]], output_tokens: int) -> tuple[float, float] | None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(prompt, output_tokens)) for prompt in prompts]
        except ExceptionGroup as failures:  # the first of them says it for all
            raise failures.exceptions[0] from None
        return side_by_side([task.result() for task in tasks], len(prompts[0]))

    async def _ask(self, prompt: list[int], output_tokens: int) -> Answer:
        return await ask(self._http, self.facts.model, prompt, output_tokens)


def side_by_side(answers: Sequence[Answer], prompt_tokens: int) -> tuple[float, float] | None:
    """Seconds per step and mean context in all, while every answer has begun and none has ended.

    None where the answers were hardly ever under way together.
    """
    begin, end = max(answer.first_at for answer in answers), min(answer.last_at for answer in answers)
    seconds, tokens, context = 0.0, 0, 0.0
    for answer in answers:
        shared = [arrival for arrival in answer.arrivals if begin <= arrival[0] <= end]
        if len(shared) < 2 or shared[-1][1] - shared[0][1] < _STEPS_TO_TRUST:
            return None
        seconds += shared[-1][0] - shared[0][0]
        tokens += shared[-1][1] - shared[0][1]
        # The step that makes the n-th token attends to the prompt and the n - 1 tokens before it.
        context += prompt_tokens + (shared[0][1] + shared[-1][1] - 1) / 2
    return seconds / tokens, context


async def look(url: str, model: str | None, api_key: str | None) -> Facts:
    """Read what the worker says of itself. Raises MeasurementError."""
    if not url.startswith(("http://", "https://")):
        raise MeasurementError(f"{url}: expected an address such as http://127.0.0.1:8001")
    spec = WorkerSpec(url.rstrip("/").removesuffix("/v1"), api_key=api_key)
    tls = httpx.create_ssl_context() if spec.url.startswith("https://") else None
    async with open_client(tls) as client:
        try:
            models = await fetch_models(client, spec, _CONTROL_S)
        except ProbeError as error:
            raise MeasurementError(f"{url}: {error}") from error
        known = (*models.bases, *models.adapters)
        if model is not None and model not in known:
            raise MeasurementError(f"{url} does not serve {model}; it serves {', '.join(known)}")
        try:
            version: str | None = await fetch_version(client, spec, _CONTROL_S)
        except ProbeError:
            version = None
        try:
            engines = list((await fetch_metrics(client, spec, _CONTROL_S, 0.0)).values())
        except ProbeError:
            engines = []
    if len(engines) > 1:
        raise MeasurementError(f"{url} has {len(engines)} engines (data parallelism); a profile is that of one")
    kv_tokens = engines[0].kv_tokens if engines else None
    return Facts(spec.url, model or models.base, version, models.max_model_len, kv_tokens)


def _prompt(chance: Random, tokens: int) -> list[int]:
    return chance.choices(range(*TOKEN_IDS), k=tokens)
