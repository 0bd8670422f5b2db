"""The loops that watch one server: one asks whether it is there, the other what it serves and how it is doing.

Two tasks per server and nothing shared between servers, so that a page of metrics that hangs starves no probe,
and a server that hangs starves no other. What they find goes to the `Server`; nothing is decided here but when
to ask again.
"""

import asyncio
import contextlib
import logging
import math
import ssl
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields

from workers.bounds.backoff import Backoff
from workers.fleet.probe import (
    ProbeError,
    check_health,
    fetch_kv_sources,
    fetch_metrics,
    fetch_models,
    fetch_version,
    open_client,
)
from workers.fleet.server import Server
from workers.kv_events.sources import by_rank
from workers.kv_events.subscriptions import Subscriptions

logger = logging.getLogger("fairlead.fleet")

_LEAST_GAP_S = 0.05
"""However often it is woken, a loop does not turn faster than this."""


@dataclass(frozen=True, slots=True)
class PollerSettings:
    """How often a server is asked, and how long an answer may take."""

    probe_every_s: float = 2.0
    probe_timeout_s: float = 2.0
    retry_first_s: float = 0.25
    """After a failed probe; doubles up to `starting_every_s` or, once the process was seen, `probe_every_s`."""
    starting_every_s: float = 0.4
    scrape_every_s: float = 5.0
    """Slow on purpose: rendering the page stalls vLLM's own event loop."""
    scrape_timeout_s: float = 2.0
    models_every_s: float = 30.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            if not getattr(self, setting.name) > 0:
                raise ValueError(f"{setting.name} must be greater than 0")


class Poller:
    """Watches one server from `start` to `aclose`."""

    def __init__(
        self,
        server: Server,
        settings: PollerSettings,
        clock: Callable[[], float],
        tls: ssl.SSLContext | None = None,
        following: Subscriptions | None = None,
    ) -> None:
        self._server = server
        self._following = following
        self._settings = settings
        self._clock = clock
        self._client = open_client(tls)
        self._probe_wake = asyncio.Event()
        self._learn_wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Servers are added together; a fixed part of the first interval keeps them from being asked together.
        self._stagger = 0.5 + zlib.crc32(server.spec.url.encode()) / 2**33
        self._reached = False
        self._probe_failures = 0
        self._learn_failures = 0
        self._models_due_at = -math.inf
        self._sources_known = False

    def start(self) -> None:
        url = self._server.spec.url
        self._tasks = [
            asyncio.create_task(self._repeat(self._probe, self._probe_wake), name=f"probe {url}"),
            asyncio.create_task(self._repeat(self._learn, self._learn_wake), name=f"learn {url}"),
        ]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def probe_now(self) -> None:
        self._probe_wake.set()

    @property
    def reached(self) -> bool:
        """It has answered a probe."""
        return self._reached

    def learn_now(self) -> None:
        """Ask for models and metrics again, in turn; waits for the server where it was not reached yet."""
        self._models_due_at = -math.inf
        self._learn_wake.set()

    async def _repeat(self, turn: Callable[[], Awaitable[float | None]], wake: asyncio.Event) -> None:
        """Take turns for ever; a turn returns the pause after it, None for "until woken"."""
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            wake.clear()
            pause: float | None = self._settings.probe_every_s
            try:
                pause = await turn()
            except Exception:  # a loop that ends unseen would leave the worker unwatched for ever
                logger.exception("watching %s: a turn failed", self._server.spec.url)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()
            await asyncio.sleep(max(0.0, began + _LEAST_GAP_S - now()))

    async def _probe(self) -> float:
        settings = self._settings
        try:
            await check_health(self._client, self._server.spec, settings.probe_timeout_s)
        except ProbeError as error:
            self._probe_failures += 1
            self._server.unhealthy(error)
            longest = settings.starting_every_s if self._server.starting else settings.probe_every_s
            return _pause(settings.retry_first_s, longest, self._probe_failures)
        first = self._server.starting or not self._reached
        self._server.healthy()
        if first or self._probe_failures:
            # It may be another process by now, with another model and an empty cache.
            self._reached = True
            self.learn_now()
        self._probe_failures = 0
        return settings.probe_every_s * (self._stagger if first else 1.0)

    async def _learn(self) -> float | None:
        if not self._reached:
            return None
        first = self._server.models is None
        due = first or self._clock() >= self._models_due_at
        if due:
            await self.learn_models()
        another = await self._learn_metrics()
        if another:
            await self.learn_models()
        if due or another:
            await self._learn_version()
        if due or another or not self._sources_known:
            await self._learn_kv_sources()
        if self._server.models is None:
            self._learn_failures += 1
            return _pause(self._settings.retry_first_s, self._settings.scrape_every_s, self._learn_failures)
        self._learn_failures = 0
        return self._settings.scrape_every_s * (self._stagger if first else 1.0)

    async def learn_models(self) -> None:
        """Ask what it serves, now."""
        try:
            models = await fetch_models(self._client, self._server.spec, self._settings.scrape_timeout_s)
        except ProbeError as error:
            self._server.models_unknown(error)
        else:
            self._models_due_at = self._clock() + self._settings.models_every_s
            self._server.models_found(models)

    async def _learn_metrics(self) -> bool:
        """Read the metrics; say whether they showed another process than before."""
        at = self._clock()
        try:
            page = await fetch_metrics(self._client, self._server.spec, self._settings.scrape_timeout_s, at)
        except ProbeError as error:
            self._server.metrics_unknown(error)
            return False
        return self._server.scraped(page)

    async def _learn_version(self) -> None:
        try:
            version = await fetch_version(self._client, self._server.spec, self._settings.scrape_timeout_s)
        except ProbeError as error:
            logger.debug("version of %s: %s", self._server.spec.url, error)
        else:
            self._server.version_found(version)

    async def _learn_kv_sources(self) -> None:
        """Follow the KV events of every engine that publishes some."""
        server, spec = self._server, self._server.spec
        self._sources_known = True
        if self._following is None:
            return
        try:
            if spec.kv_events is not None:
                found = dict(enumerate(spec.kv_events))
            else:
                found = await fetch_kv_sources(self._client, spec, self._settings.scrape_timeout_s)
            sources = by_rank(found, len(server.engines))
        except ProbeError as error:
            self._sources_known = False
            if error.status is not None:
                server.kv_events_unusable(error)
        except ValueError as error:
            server.kv_events_unusable(error)
        else:
            for engine in server.engines:
                if (source := sources.get(engine.rank)) is not None:
                    self._following.follow(engine.worker.id, source)
                elif spec.kv_events is not None:
                    self._following.stop(engine.worker.id, "its events are not to be followed any more")


def _pause(first_s: float, longest_s: float, failures: int) -> float:
    return Backoff(min(first_s, longest_s), longest_s).delay_s(failures)
