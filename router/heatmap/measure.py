"""The batches of a sweep on real workers: on colocated ones, and on pairs of a prefill and a decode worker.

A pair is asked as the gateway asks it (`router/edge/execution/prefill_attempt.py`): the prompt first, for one
token, then the request with what the prefill worker says of where the KV is. No scheduler is in between: the
requests of a batch go to the workers, or pairs, in turn, so that a map says how the workers fare and not how they
are chosen.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Any

import httpx
import orjson

from router.edge.api.parsed_request import ParsedRequest, Surface, parse
from router.edge.api.rewrite import for_prefill, for_worker
from router.edge.pieces import joined
from router.heatmap.sweep import Findings, Place, Shape, Side, Sweep, side
from router.lab.profiling.stream import MeasurementError, worker_client
from router.lab.profiling.sweep import TOKEN_IDS, Facts, look

_ANSWER_S = 3600.0
"""The longest wait for an answer: batches may be more than the workers can do."""
_SHOWN = 300
_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Server:
    """One worker and a pool of connections to it."""

    facts: Facts
    http: httpx.AsyncClient

    async def complete(self, body: bytes) -> dict[str, Any]:
        """One answer, whole. Raises MeasurementError."""
        url = self.facts.url
        try:
            response = await self.http.post("/v1/completions", content=body, headers=_HEADERS)
        except httpx.TimeoutException:
            raise MeasurementError(f"{url} does not answer in time") from None
        except httpx.HTTPError as error:
            raise MeasurementError(f"the connection to {url} broke: {error or type(error).__name__}") from None
        if response.status_code != httpx.codes.OK:
            raise MeasurementError(f"{url} answers HTTP {response.status_code}: {response.text[:_SHOWN]}")
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise MeasurementError(f"{url} answers with no JSON object: {response.text[:_SHOWN]}")
        return answer


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What serves a request: one worker, or one for its prompt and another one for its answer."""

    decode: Server
    prefill: Server | None = None

    async def serve(self, prompt: list[int], output_tokens: int) -> bool:
        """Serve one request to its end; False if a prefill worker handed nothing over. Raises MeasurementError."""
        ask = _ask(self.decode.facts.model, prompt, output_tokens)
        if self.prefill is None:
            await self.decode.complete(joined(for_worker(ask, None)))
            return True
        answer = await self.prefill.complete(joined(for_prefill(ask, self.prefill.facts.model)))
        handed = answer.get("kv_transfer_params")
        await self.decode.complete(joined(for_worker(ask, None, handed if isinstance(handed, dict) else None)))
        return isinstance(handed, dict)


class Bench:
    """Both sides, connected. Make it with `opened`."""

    def __init__(self, colocated: Sequence[Server], pairs: Sequence[tuple[Server, Server]]) -> None:
        self.colocated = [Arrangement(server) for server in colocated]
        self.pairs = [Arrangement(decode, prefill) for prefill, decode in pairs]
        self.workers = len(colocated)
        """On each side."""
        self._prompts = Random()
        """Never the same prompts twice: they would be cached."""

    @property
    def facts(self) -> list[Facts]:
        """Of every worker."""
        servers = [each.decode for each in (*self.colocated, *self.pairs)]
        return [server.facts for server in servers + [p.prefill for p in self.pairs if p.prefill is not None]]

    @property
    def most_tokens(self) -> int | None:
        """Longest prompt and answer together that every worker takes."""
        limits = [facts.max_model_len for facts in self.facts] + [facts.kv_tokens for facts in self.facts]
        return min((limit for limit in limits if limit is not None), default=None)

    async def warm_up(self, prompt_tokens: int) -> list[str]:
        """Ask each worker once; what is odd about the workers. Raises MeasurementError."""
        both = (*self.colocated, *self.pairs)
        silent = [each for each in both if not await each.serve(self._prompt(prompt_tokens), 2)]
        return [
            f"{each.prefill.facts.url} does not say where the KV of a prompt is (no kv_transfer_params): unless "
            "its connector shares files, the decode worker computes every prompt anew, and the map is void"
            for each in silent
            if each.prefill is not None
        ]

    async def batch(self, shape: Shape, arrangements: Sequence[Arrangement]) -> Side:
        """Run one batch on one side. Raises MeasurementError."""
        loop = asyncio.get_running_loop()
        prompts = [self._prompt(shape.prefill_tokens) for _ in shape.arrivals]
        began = loop.time()

        async def one(due: float, prompt: list[int], arrangement: Arrangement) -> float:
            await asyncio.sleep(began + due - loop.time())
            await arrangement.serve(prompt, shape.output_tokens)
            return loop.time() - began

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(*each))
                    for each in zip(shape.arrivals, prompts, cycle(arrangements), strict=False)
                ]
        except ExceptionGroup as failures:  # the first of them says it for all
            raise failures.exceptions[0] from None
        return side(shape.arrivals, [task.result() for task in tasks])

    def _prompt(self, tokens: int) -> list[int]:
        return self._prompts.choices(range(*TOKEN_IDS), k=tokens)


@asynccontextmanager
async def opened(
    colocated: Sequence[str], pairs: Sequence[tuple[str, str]], model: str | None, api_key: str | None
) -> AsyncIterator[Bench]:
    """Connect to every worker and ask who it is. `pairs`: prefill, decode. Raises MeasurementError."""
    async with AsyncExitStack() as stack:

        async def server(url: str) -> Server:
            facts = await look(url, model, api_key)
            http = worker_client(facts.url, api_key, _ANSWER_S)
            return Server(facts, await stack.enter_async_context(http))

        bench = Bench(
            [await server(url) for url in colocated],
            [(await server(prefill), await server(decode)) for prefill, decode in pairs],
        )
        models = sorted({facts.model for facts in bench.facts})
        if len(models) > 1:
            raise MeasurementError(
                f"the workers serve different models: {', '.join(models)}; name one with --model"
            )
        yield bench


async def run(
    bench: Bench, sweep: Sweep, findings: Findings, places: Sequence[Place], done: Callable[[int], None]
) -> None:
    """Run the batches of `places`; `done` hears how many are finished after each. Raises MeasurementError."""
    for number, place in enumerate(places, 1):
        shape = sweep.shape(place, bench.workers)
        colocated = await bench.batch(shape, bench.colocated)
        findings.add(place, shape, colocated, await bench.batch(shape, bench.pairs))
        done(number)


def _ask(model: str, prompt: list[int], output_tokens: int) -> ParsedRequest:
    fields = {"model": model, "prompt": prompt, "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
    return parse(Surface.COMPLETIONS, orjson.dumps(fields))
