"""`fairlead demo`: the gateway in front of simulated vLLM workers, on a machine without a GPU."""

import asyncio
import contextlib
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from router.commands.startup import StartError, cancelled_by_signals, claim_port, say
from router.config.schema import Config

_PAIRS = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'

READY_WITHIN_S = 30.0
DRAIN_S = 2.0
"""The demo ends within five seconds: two for open streams, two for the workers."""
STOP_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says."""

    host: str | None = None
    """None: what the environment says, else 127.0.0.1; the same for the port."""
    port: int | None = None
    workers: int = 3
    prefill: int = 0
    decode: int = 0
    """Workers for one stage only, in place of `workers` that do both."""
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    speed: float = 1.0
    """How much faster than the simulated hardware time passes."""

    @property
    def count(self) -> int:
        return self.prefill + self.decode or self.workers

    def sections(self, urls: list[str]) -> list[dict[str, Any]]:
        """The workers as the configuration knows them, prefill workers first."""
        if not self.prefill:
            return [{"url": url} for url in urls]
        return [
            {"url": url, "roles": ["prefill" if number < self.prefill else "decode"]}
            for number, url in enumerate(urls)
        ]


async def run(options: DemoOptions) -> None:
    """Serve until a signal comes. Raises ConfigError and StartError, each before anything is left running."""
    listen = Config.load(overrides=_listen(options.host, options.port)).listen
    port = claim_port(listen.host, listen.port)
    from router import app  # noqa: PLC0415  # heavy; a taken port should be told at once

    with cancelled_by_signals():
        count = options.count
        say(f"starting {count} simulated vLLM worker{'s' if count > 1 else ''} ...")
        async with simulated_workers(options) as workers:
            sections = {"workers": options.sections(workers.urls)}
            config = Config.load(overrides={**_listen(listen.host, port), **sections})
            gateway = asyncio.create_task(
                app.run(config, on_ready=lambda: _announce(config.listen.url, options.model), drain_s=DRAIN_S)
            )
            await _first_to_end(gateway, workers.ended)


def _listen(host: str | None, port: int | None) -> dict[str, object]:
    given = {"host": host, "port": port}
    return {"listen": {name: value for name, value in given.items() if value is not None}}


def _announce(url: str, model: str) -> None:
    """Called once the gateway is ready."""
    listens = f"fairlead listens on {url}  (API: {url}/docs, metrics: {url}/metrics; Ctrl-C ends it)"
    say(f"{listens}\nTry it:\n{curl_line(url, model)}\nready {url}")


def curl_line(url: str, model: str) -> str:
    """A request to paste into a shell."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32})
    command = ["curl", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    return shlex.join(command)


async def _first_to_end(gateway: "asyncio.Task[None]", workers: "asyncio.Task[int]") -> None:
    try:
        await asyncio.wait({gateway, workers}, return_when=asyncio.FIRST_COMPLETED)
        if not gateway.done():
            raise StartError(f"the simulated workers ended unexpectedly, with exit status {workers.result()}")
        await gateway
    finally:
        gateway.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({gateway})


@dataclass(frozen=True, slots=True)
class SimulatedWorkers:
    """The child process that simulates all workers."""

    urls: list[str]
    ended: "asyncio.Task[int]"
    """Done with the exit status when the process has ended."""


@asynccontextmanager
async def simulated_workers(options: DemoOptions) -> AsyncIterator[SimulatedWorkers]:
    """Start the child, wait until its workers listen, and end it on the way out.

    It runs in a session of its own, so that Ctrl-C reaches only this process and open streams can finish. If this
    process dies in any other way the child goes with it (`--die-with-parent`).
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # a folder called `workers` where the user happens to be is not ours
        *("-m", "workers.simulator", "--port", "0", "--die-with-parent", str(os.getpid())),
        *("--workers", str(options.count), "--model", options.model, "--speed", str(options.speed)),
        *(("--kv-transfer-config", _PAIRS) if options.prefill else ()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    ended = asyncio.create_task(process.wait())
    rest: asyncio.Task[None] | None = None
    try:
        if process.stdout is None:
            raise RuntimeError("the pipe that was asked for is missing")
        urls = await _ready_urls(process.stdout, ended)
        rest = asyncio.create_task(_discard(process.stdout))
        yield SimulatedWorkers(urls, ended)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        done, _ = await asyncio.wait({ended}, timeout=STOP_WITHIN_S)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await ended
        if rest is not None:
            await rest


async def _ready_urls(output: asyncio.StreamReader, ended: "asyncio.Task[int]") -> list[str]:
    """The line `{"ready": [...]}` that the simulator prints when all its workers listen."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while line := await output.readline():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    return [str(url) for url in json.loads(line)["ready"]]
            status = await ended
    except TimeoutError:
        raise StartError(f"the simulated workers were not ready within {READY_WITHIN_S:.0f} s") from None
    raise StartError(f"the simulated workers did not start (exit status {status})")


async def _discard(output: asyncio.StreamReader) -> None:
    """Keep the pipe from filling up."""
    while await output.read(65536):
        pass
