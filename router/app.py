"""The composition root: a gateway put together in the order in which a request meets its parts, served, and ended.

listener (bounds)  ─►  door  ─►  life: clients, limits  ─►  pools: admission, scheduler  ─►  leg: upstream
└─►  pages and admin (FastAPI)                    ▲
fleet: probes, readings, health
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version as installed
from typing import Any

import uvicorn

from router.config.schema import Config
from router.config.yaml_lines import ConfigError
from router.control.cache_reports import CacheReports
from router.control.pages.admin import admin_pages
from router.control.pages.status import not_ready, pages
from router.control.parties.identity import Clients
from router.control.pools import Pools, facts
from router.control.response_owners import ResponseOwners
from router.control.scheduler_factory import make_scheduler, roles_shortfall
from router.control.state import Gateway
from router.control.token_ratio import TokenRatio
from router.edge.connection import connection_class
from router.edge.routes import Routes
from router.observability import request_log as log
from router.observability.cache_metrics import CacheMetrics
from router.observability.metrics import Metrics
from router.tokenization.series import TokenizationSeries
from router.tokenization.tokenization import Tokenization
from workers.fleet.fleet import Fleet, FleetSettings
from workers.fleet.poller import PollerSettings
from workers.fleet.worker import FleetEvent
from workers.http.upstream import Timeouts, Upstream

_log = logging.getLogger("fairlead")

_FEW_FILES = 8192
"""Open files: fewer than that are worth a warning."""
_LAG_EVERY_S = 0.25
_FORCED_WITHIN_S = 1
"""Once streams are cut off, connections get this long to close."""


async def run(
    config: Config,
    *,
    on_ready: Callable[[], None],
    reload: Callable[[], Config] | None = None,
    drain_s: float | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let open streams finish for `drain_s`; a second signal ends at once.

    `on_ready` is called once, when every known model has a routable worker. SIGHUP calls `reload`.
    """
    log_lines = log.configure(config.log, sys.stderr)
    _raise_file_limit()
    async with _gateway(config, log_lines, on_ready) as gateway:
        servers = _servers(config, gateway)
        stopping = asyncio.Event()
        with _signals(stopping, lambda: _reload(gateway, config, reload)):
            serving = [asyncio.create_task(server.serve()) for server in servers]
            lag = asyncio.create_task(_watch_lag(gateway))
            _spare_the_collector()
            try:
                await _until(stopping, serving)
                await _drain(gateway, config.limits.drain_s if drain_s is None else drain_s, stopping, serving)
            finally:
                lag.cancel()
                await _stop(servers, serving)


@asynccontextmanager
async def _gateway(
    config: Config, log_lines: log.RequestLog, on_ready: Callable[[], None]
) -> AsyncIterator[Gateway]:
    """Every part, from the outside in, and closed in the opposite order."""
    loop = asyncio.get_running_loop()
    metrics = Metrics(
        installed("fairlead"),
        max_clients=config.metrics.max_clients,
        clients={client.name: client.weight for client in config.clients},
        service_weights=_service_weights(config),
    )
    # Who is asking, and what they may ask for.
    clients = Clients(config.clients)
    # The fleet watches workers; what it sees becomes events of each pool's scheduler.
    # What they report of their caches goes to each pool's prefix index.
    reports = CacheReports(lambda worker: pools.prefixes(worker))  # noqa: PLW0108 - defined below
    fleet = Fleet(
        _fleet_settings(config),
        loop.time,
        lambda event: on_fleet(event),  # noqa: PLW0108 - defined below
        kv_listener=reports if config.health.kv_events == "auto" else None,
    )
    pools = Pools(
        make_scheduler=lambda: make_scheduler(config),
        connect=lambda url: Upstream(url, timeouts=Timeouts(**config.timeouts.model_dump())),
        rested=fleet.release,
        aliases=dict(config.models),
    )
    # Prompts as token ids, where a model's tokenizer can be had.
    tokenization = Tokenization(config.tokenization, pools, follows_events=config.health.kv_events == "auto")
    gateway = Gateway(
        pools=pools,
        fleet=fleet,
        clients=clients,
        holders=ResponseOwners(),
        scale=TokenRatio(),
        tokenization=tokenization,
        metrics=metrics,
        request_log=log_lines,
        limits=config.limits,
        decision_headers=config.listen.decision_headers,
        loop=loop,
    )
    metrics.watch(pools, lambda: gateway.open)
    metrics.registry.register(CacheMetrics(pools, fleet))
    metrics.registry.register(TokenizationSeries(tokenization))
    announced = False

    def on_fleet(event: FleetEvent) -> None:
        nonlocal announced
        pools.on_fleet(event)
        reports.follow(event)
        metrics.follow(event)
        tokenization.follow()
        if not announced and not not_ready(gateway):
            announced = True
            _warn_of_roles(pools, config)
            loop.call_later(0.05, on_ready)  # by then the listener, started beside us, has its socket

    fleet.apply(worker.spec() for worker in config.workers)
    await fleet.start()
    try:
        yield gateway
    finally:
        await fleet.aclose()
        await tokenization.aclose()
        await pools.aclose()
        log_lines.lines.flush()


def _fleet_settings(config: Config) -> FleetSettings:
    health = config.health
    return FleetSettings(
        poller=PollerSettings(
            probe_every_s=health.probe_every_s,
            probe_timeout_s=health.probe_timeout_s,
            scrape_every_s=health.scrape_every_s,
        ),
        scrape_stale_s=health.stale_after_s,
    )


def _warn_of_roles(pools: Pools, config: Config) -> None:
    """Say so where the policies in use want roles that the workers do not have, and what happens then."""
    lacking = roles_shortfall(config, [facts(member.worker) for member in pools.members.values()])
    if lacking is not None:
        _log.warning("policies: %s", lacking)


def _service_weights(config: Config) -> tuple[float, float]:
    """What a computed prompt token and an output token count as service: as the order has it, if it has a say."""
    settings = config.policies.queue.settings
    return getattr(settings, "extend_weight", 1.0), getattr(settings, "output_weight", 2.0)


# -- serving


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the gateway has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _servers(config: Config, gateway: Gateway) -> list[uvicorn.Server]:
    """The listener for clients and, if it is to have one of its own, the one for the operator."""
    listen, admin = config.listen, config.admin
    inner = pages(gateway, installed("fairlead"))
    servers = []
    if admin is not None:
        operator = admin_pages(gateway, admin.digest)
        if admin.port is None:
            inner.mount("/admin", operator)
        else:
            servers.append(_server(config, operator, admin.host, admin.port, tls=False))
    servers.insert(0, _server(config, Routes(gateway, inner), listen.host, listen.port, tls=True))
    return servers


def _server(config: Config, app: Any, host: str, port: int, *, tls: bool) -> uvicorn.Server:
    listen = config.listen
    return _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=connection_class(config.limits.header_bytes),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=listen.backlog,
            timeout_keep_alive=round(listen.keep_alive_s),
            timeout_graceful_shutdown=_FORCED_WITHIN_S,
            ssl_certfile=listen.tls_certificate if tls else None,
            ssl_keyfile=listen.tls_key if tls else None,
        )
    )


async def _until(stopping: asyncio.Event, serving: list[asyncio.Task[None]]) -> None:
    """Wait for a signal, or for a listener that ends by itself because it could not start."""
    signalled = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({signalled, *serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()


async def _drain(
    gateway: Gateway, drain_s: float, stopping: asyncio.Event, serving: list[asyncio.Task[None]]
) -> None:
    """Not ready any more; what is open may finish, until `drain_s` are over or a second signal comes."""
    gateway.draining = True
    if gateway.open:
        _log.info("shutting down: %d open requests may finish for %g s", gateway.open, drain_s)
    stopping.clear()
    deadline = gateway.loop.time() + drain_s
    while gateway.open and gateway.loop.time() < deadline and not stopping.is_set():
        if any(task.done() for task in serving):
            break
        await asyncio.sleep(0.05)


async def _stop(servers: list[uvicorn.Server], serving: list[asyncio.Task[None]]) -> None:
    """Cut off what is still open, and close the listeners."""
    for server in servers:
        for task in list(server.server_state.tasks):
            task.cancel()
        server.should_exit = True
    await asyncio.gather(*serving, return_exceptions=True)


@contextmanager
def _signals(stopping: asyncio.Event, reload: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        # What comes after us is being taken down already; a late signal must not interrupt that.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)


def _reload(gateway: Gateway, running: Config, reload: Callable[[], Config] | None) -> None:
    """SIGHUP: workers, clients, limits and aliases as the file has them now. A bad file changes nothing."""
    if reload is None:
        _log.info("SIGHUP: there is no configuration to read again")
        return
    try:
        config = reload()
    except ConfigError as error:
        _log.error("configuration refused, the old one stays: %s", error)
        gateway.metrics.config_read(accepted=False)
        return
    gateway.metrics.config_read(accepted=True)
    gateway.fleet.apply(worker.spec() for worker in config.workers)
    gateway.clients.reload(config.clients)
    gateway.limits = config.limits
    gateway.pools.aliases = dict(config.models)
    for section in ("listen", "policies", "health", "timeouts", "admin", "log", "metrics", "tokenization"):
        if getattr(config, section) != getattr(running, section):
            _log.warning("configuration: a change of `%s` takes effect at the next start", section)
    _warn_of_roles(gateway.pools, running)
    _log.info("configuration read: %d workers, %d clients", len(config.workers), len(config.clients))


# -- the process


def _raise_file_limit() -> None:
    """Every stream is two sockets: use all that the system allows, and say so if that is little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 <= hard < _FEW_FILES:  # -1: no limit
        _log.warning(
            "only %d files may be open, two for each stream: raise the hard limit "
            "(`ulimit -Hn`, `LimitNOFILE=` of systemd, `ulimits` of compose)",
            hard,
        )


def _spare_the_collector() -> None:
    """What exists now lives as long as the process; a full collection that walks it would only stop the loop."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


async def _watch_lag(gateway: Gateway) -> None:
    """How late the loop wakes this task is how late it wakes everybody."""
    while True:
        due = gateway.loop.time() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        gateway.metrics.loop_delay.observe(max(0.0, gateway.loop.time() - due))
