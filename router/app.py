"""The composition root: a router put together in the order in which a request meets its parts, served, and ended.

edge       connection (bounds)  ─►  routes  ─►  lifecycle  ─►  attempt: connections to workers
                                      │            │ ▲
port                                  │            ▼ │  admit, failed, settled ...
control                               │     control plane  ─►  parties, quotas  ─►  pools: dispatcher, scheduler
                                      └─►  pages and admin (FastAPI)                  ▲
workers                                            fleet: probes, readings, health ───┘
"""

import asyncio
import logging
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount
from starlette.types import ASGIApp

from router import __version__
from router.config.reload import merged
from router.config.schema import Config
from router.config.sections import Listen
from router.config.yaml_lines import ConfigError
from router.control.cache_reports import CacheReports
from router.control.control_plane import ControlPlane
from router.control.overview import Overview
from router.control.pages.admin import admin_pages
from router.control.pages.guard import Guard, OperatorKeys
from router.control.pages.keys import KeyPages
from router.control.pages.live import ASSETS, LivePages
from router.control.pages.requests import add_requests
from router.control.pages.status import Status, can_serve, not_ready, pages, status_pages
from router.control.parties.identity import Clients
from router.control.parties.key_store import KeyStore
from router.control.parties.keyring import Keyring
from router.control.parties.wrong_keys import WrongKeys
from router.control.pools import Pools, facts
from router.control.scheduler_factory import make_scheduler, roles_shortfall
from router.edge.cors import Cors
from router.edge.credentials import digests
from router.edge.errors import error_of, to_http
from router.edge.execution.continuations import Continuations
from router.edge.execution.lifecycle import address_of
from router.edge.execution.recorder import Recorder
from router.edge.execution.worker_connections import WorkerConnections
from router.edge.held_bytes import HeldBytes
from router.edge.intake import Intake
from router.edge.listener import Listener
from router.edge.process_limits import raise_file_limit, return_memory, spare_the_collector
from router.edge.proxies import TrustedProxies
from router.edge.routes import DOCUMENTED, Routes
from router.edge.server import Server, make_server, stop
from router.observability import request_log
from router.observability.cache_metrics import CacheMetrics
from router.observability.gauges import Gauges
from router.observability.log_writer import LogSeries
from router.observability.loop_delay import watch
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog
from router.port import Reject
from router.tokenization.series import TokenizationSeries
from router.tokenization.tokenization import Tokenization
from workers.fleet.fleet import Fleet, FleetSettings
from workers.fleet.poller import PollerSettings
from workers.fleet.worker import FleetEvent
from workers.http.tls import context_of
from workers.http.upstream import Timeouts, Upstream

_log = logging.getLogger("fairlead")

_DECISIONS = 1000
"""Log lines of the last requests that were placed, for the admin page."""


@dataclass(slots=True)
class Router:
    """What `assemble` has made. No request sees it: each part has got what it needs."""

    listener: Listener
    intake: Intake
    recorder: Recorder
    connections: WorkerConnections
    continuations: Continuations
    control: ControlPlane
    clients: Clients
    keyring: Keyring
    pools: Pools
    fleet: Fleet
    tokenization: Tokenization
    metrics: Metrics
    request_log: RequestLog
    decisions: deque[dict[str, Any]] = field(repr=False)
    config: Config
    """In force: as it was at the start, with what could be taken over since."""
    listening: list[Server] = field(default_factory=list)
    """For clients, then for the operator if that is one of its own."""
    client_routes: Routes | None = None

    def not_ready(self) -> list[str]:
        """Why it is not ready; empty if it is."""
        return ["the gateway is shutting down"] if self.listener.closing else not_ready(self.pools)

    def serves(self) -> bool:
        """Whether requests for any model should be sent here."""
        return not self.listener.closing and can_serve(self.pools)


async def run(
    config: Config,
    *,
    on_ready: Callable[[], None],
    reload: Callable[[], Config] | None = None,
    drain_s: float | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then as `_shut_down` says; a second signal ends at once.

    `on_ready` is called once, when every known model has a routable worker. SIGHUP calls `reload`.
    """
    log_lines = request_log.configure(config.log, sys.stderr)
    warn_of_exposure(config)
    raise_file_limit()
    async with assemble(config, log_lines, on_ready) as router:
        listening = servers(config, router)
        stopping = asyncio.Event()
        with _signals(stopping, lambda: _reload(router, reload)):
            serving = [asyncio.create_task(server.serve()) for server in listening]
            beside = [
                asyncio.create_task(watch(router.metrics.loop_delay)),
                asyncio.create_task(return_memory(router.intake.held)),
            ]
            spare_the_collector()
            try:
                await _until(stopping, serving)
                await _shut_down(router, drain_s, stopping, serving)
            finally:
                for task in beside:
                    task.cancel()
                await stop(listening, serving)


@asynccontextmanager
async def assemble(config: Config, log_lines: RequestLog, on_ready: Callable[[], None]) -> AsyncIterator[Router]:
    """Every part, from the outside in, and closed in the opposite order."""
    loop = asyncio.get_running_loop()
    metrics = Metrics(
        __version__,
        max_clients=config.metrics.max_clients,
        clients=_weights(config),
        service_weights=_service_weights(config),
    )
    # How much is let in, and where a request's record goes at its end.
    intake = Intake(config.limits)
    decisions: deque[dict[str, Any]] = deque(maxlen=_DECISIONS)
    recorder = Recorder(metrics, log_lines, decisions)
    # Who is asking, and what they may ask for.
    clients = Clients(
        config.clients,
        wrong_keys=WrongKeys(config.limits.wrong_keys_per_minute),
        separate_caches=config.isolation.caches == "separate",
    )
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
        make_scheduler=lambda: make_scheduler(router.config), rested=fleet.release, aliases=config.models
    )
    store = config.store_path
    keyring = Keyring(
        clients,
        None if store is None else KeyStore(store),
        lambda: pools.configure(pools.aliases, keys_needed=clients.keys_needed),
    )
    pools.configure(config.models, keys_needed=clients.keys_needed)
    # The port: what requests share, on the other side of it.
    control = ControlPlane(
        pools,
        clients,
        fleet,
        metrics.attempt_failed,
        loop.time,
        attempts=config.limits.attempts,
        seams=config.limits.continuations,
    )
    # The edge's own way to workers.
    connections = WorkerConnections(
        lambda worker: Upstream(
            worker.url,
            timeouts=_timeouts(router.config),
            tls=context_of(worker.tls) if worker.url.startswith("https:") else None,
            host_name=worker.host_name,
        )
    )
    # Streams that go on at another worker when theirs dies.
    continuations = Continuations(config.continuation, metrics.continuations.count, metrics.continuations.gap)
    # Prompts as token ids, where a model's tokenizer can be had.
    follows_events = config.health.kv_events == "auto"
    tokenization = Tokenization(
        config.tokenization, lambda: pools.by_model, connections, follows_events=follows_events
    )
    router = Router(
        listener=_listener(config, intake.held),
        intake=intake,
        recorder=recorder,
        connections=connections,
        continuations=continuations,
        control=control,
        clients=clients,
        keyring=keyring,
        pools=pools,
        fleet=fleet,
        tokenization=tokenization,
        metrics=metrics,
        request_log=log_lines,
        decisions=decisions,
        config=config,
    )
    _show(router)
    announced = False

    def on_fleet(event: FleetEvent) -> None:
        nonlocal announced
        pools.on_fleet(event)
        table = control.routes()
        connections.follow(table)
        reports.follow(event)
        metrics.follow(event)
        metrics.follow_routes(table)
        tokenization.follow()
        if not announced and not router.not_ready():
            announced = True
            _warn_of_roles(pools, router.config)
            loop.call_later(0.05, on_ready)  # by then the listener, started beside us, has its socket

    await keyring.start()
    fleet.apply(worker.spec() for worker in config.workers)
    await fleet.start()
    try:
        yield router
    finally:
        await fleet.aclose()
        await tokenization.aclose()
        pools.close()
        await connections.aclose()
        await intake.bodies.aclose()
        await keyring.aclose()


def _show(router: Router) -> None:
    """Have the metrics page show what its parts are like when it is read."""
    metrics, intake, pools = router.metrics, router.intake, router.pools
    metrics.open.set_function(lambda: intake.open)
    metrics.held("requests", lambda: intake.held.requests)
    metrics.held("answers", lambda: intake.held.answers)
    tables = {"quotas": router.clients.quota.__len__, "response_owners": router.control.owners.__len__}
    metrics.page.add(Gauges(pools, router.connections.counts, metrics.observed, tables))
    metrics.page.add(CacheMetrics(pools, router.fleet))
    metrics.page.add(TokenizationSeries(router.tokenization))
    metrics.page.add(LogSeries(router.request_log.lines))


def _listener(config: Config, held: HeldBytes) -> Listener:
    origins = config.listen.cors_origins
    listener = Listener(held=held, cors=Cors(origins) if origins else None)
    listener.configure(config.listen, config.limits)
    return listener


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


def warn_of_exposure(config: Config) -> None:
    """Warn where every client that can reach the port is served."""
    if is_loopback(config.listen.host) or any(client.digests for client in config.clients):
        return
    _log.warning(
        "`serve --host %s` without API keys: all that reach this port can use every model without limits, "
        "and sees the names of workers and clients; give clients keys (`clients`), or listen on 127.0.0.1",
        config.listen.host,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; a name that is no address counts as reachable, but `localhost`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _timeouts(config: Config) -> Timeouts:
    return Timeouts(**config.timeouts.model_dump())


def _weights(config: Config) -> dict[str, float]:
    """The weight of each configured client."""
    return {client.name: client.weight for client in config.clients}


def _service_weights(config: Config) -> tuple[float, float]:
    """What a computed prompt token and an output token count as service: as the order has it, if it has a say."""
    settings = config.policies.queue.settings
    return getattr(settings, "extend_weight", 1.0), getattr(settings, "output_weight", 2.0)


# -- serving


def servers(config: Config, router: Router) -> list[Server]:
    """The listener for clients, and those of the operator and of the status pages, if they have their own."""
    listen, admin, status = config.listen, config.admin, config.status
    shown = Status(
        router.pools,
        version=__version__,
        metrics_page=router.metrics.page.read,
        missing=router.not_ready,
        serves=router.serves,
        open_requests=lambda: router.intake.open,
        render=_render,
    )
    inner = pages(
        shown,
        documented=DOCUMENTED,
        look_again=router.fleet.look_again,
        hidden=_hidden(router),
        visible=lambda request: _visible_models(router, request),
        usage=lambda request: _usage(router, request),
    )
    router.client_routes = routes(router, inner, listen)
    made = [
        make_server(router.client_routes, router.listener, listen, host=listen.host, port=listen.port, tls=True)
    ]
    if admin is not None:
        keys = _operator_keys(router, _admin_keys)
        operator = Guard(
            admin_pages(
                router.pools,
                router.fleet,
                router.decisions,
                _render,
                (
                    lambda app: add_requests(app, router.control, router.pools, router.decisions),
                    KeyPages(router.keyring, router.clients, router.pools, _clock).add_to,
                    LivePages(
                        Overview(router.control, router.pools, router.clients, _clock),
                        lambda: router.listener.closing or router.intake.draining,
                    ).add_to,
                ),
            ),
            keys,
            _render,
            shown=ASSETS,
        )
        if admin.port is None:
            inner.mount("/admin", operator)
            inner.add_api_route("/status", _to_status, include_in_schema=False)
        else:
            own = _own(config, router.intake.held)
            both = Starlette(routes=[Mount("/admin", operator), Mount("/", operator)])
            made.append(make_server(both, own, listen, host=admin.host, port=admin.port, tls=False))
    if status.port is not None:
        app, own = status_pages(shown), _own(config, router.intake.held)
        made.append(make_server(app, own, listen, host=status.host, port=status.port, tls=False))
    router.listening = made
    return made


def _to_status(request: Request) -> RedirectResponse:
    """The status page is the operator's."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/admin/status")


def _own(config: Config, held: HeldBytes) -> Listener:
    """Of the operator, with the bounds of the main one."""
    listener = Listener(held=held)
    listener.configure(config.listen, config.limits)
    return listener


def _render(reject: Reject) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return to_http(error_of(reject))


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _operator_keys(router: Router, of: Callable[[Config], list[str]]) -> OperatorKeys:
    """The keys that the configuration in force has for a page."""
    clients = router.clients
    return OperatorKeys(lambda: of(router.config), clients.wrong_keys, _clock, is_clients=clients.knows)


def _admin_keys(config: Config) -> list[str]:
    return [] if config.admin is None else [config.admin.digest]


def _status_keys(config: Config) -> list[str]:
    own = config.status.digest
    return _admin_keys(config) if own is None else [*_admin_keys(config), own]


def _hidden(router: Router) -> Callable[[Request], Reject | None]:
    """Why a request may not see the names of workers and clients; None: it may."""
    keys = _operator_keys(router, _status_keys)

    def hidden(request: Request) -> Reject | None:
        access = router.config.status.access
        if access == "open" or (access == "auto" and not router.clients.keys_needed):
            return None
        return keys.reject(request.scope, "This page, which names workers and clients,")

    return hidden


def _visible_models(router: Router, request: Request) -> Reject | frozenset[str] | None:
    """The names of models that the client of a request may use, or why it is none of a client; None: all."""
    if not router.clients.keys_needed:
        return None
    found = router.control.identify(digests(dict(request.headers.raw)), None, address_of(request.scope))
    if isinstance(found, Reject):
        return found
    listed = router.clients.models(found.limits_of)
    if listed is None:
        return None
    aliases = router.pools.aliases
    targets = listed | {aliases[name] for name in listed if name in aliases}
    return targets | {alias for alias, target in aliases.items() if target in targets}


def _usage(router: Router, request: Request) -> dict[str, Any] | Reject:
    """What the client of a request has used and may use, or why it is not told."""
    keys = digests(dict(request.headers.raw))
    found = router.control.identify(keys, None, address_of(request.scope))
    if isinstance(found, Reject):
        return found
    clients = router.clients
    allowed = clients.models(found.limits_of)
    return {
        "client": found.account,
        "models": None if allowed is None else sorted(allowed),
        **clients.quota.usage(found.account, clients.limits(found.limits_of), _clock()),
    }


def routes(router: Router, inner: ASGIApp, listen: Listen) -> Routes:
    """What sees each request of a client first; `inner` answers what is not inference."""
    return Routes(
        inner,
        control=router.control,
        intake=router.intake,
        recorder=router.recorder,
        connections=router.connections,
        continuations=router.continuations,
        tokenizers=router.tokenization.desks,
        explains=listen.decision_headers,
        heartbeat_s=listen.heartbeat_s,
        root_path=listen.root_path,
        proxies=TrustedProxies(listen.trusted_proxies),
    )


async def _until(stopping: asyncio.Event, serving: list[asyncio.Task[None]]) -> None:
    """Wait for a signal, or for a listener that ends by itself because it could not start."""
    signalled = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({signalled, *serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()


async def _shut_down(
    router: Router, drain_s: float | None, stopping: asyncio.Event, serving: list[asyncio.Task[None]]
) -> None:
    """Not ready any more at once, and every connection closes behind its answer.

    For `limits.drain_delay_s` requests are served as ever, so that none is lost while load balancers learn of it;
    an idle gateway waits as well. Then what is open may finish within `drain_s` (None: `limits.drain_s`). A second
    signal ends either.
    """
    intake, limits = router.intake, router.config.limits
    drain_s = limits.drain_s if drain_s is None else drain_s
    stopping.clear()

    async def wait(within_s: float, done: Callable[[], bool]) -> bool:
        """Whether nothing has cut the wait short."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + within_s
        while clock() < deadline and not done():
            if stopping.is_set() or any(task.done() for task in serving):
                return False
            await asyncio.sleep(0.05)
        return True

    for server in router.listening:
        server.close_behind_answers()
    if limits.drain_delay_s:
        _log.info("shutting down: requests are served for another %g s", limits.drain_delay_s)
    served = await wait(limits.drain_delay_s, lambda: False)
    intake.draining = True
    if served and intake.open:
        _log.info("shutting down: %d open requests may finish for %g s", intake.open, drain_s)
        await wait(drain_s, lambda: not intake.open)


@contextmanager
def _signals(stopping: asyncio.Event, reload: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    # One that came while the gateway started has been held until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        # What comes after us is being taken down already; a late signal must not interrupt that.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)


def _reload(router: Router, reload: Callable[[], Config] | None) -> None:
    """SIGHUP: every setting as the file has it now, or a warning that names it (see `router.config.reload`).

    A bad file, or one without workers where there were some, changes nothing.
    """
    if reload is None:
        _log.info("SIGHUP: there is no configuration to read again")
        return
    try:
        read = reload()
    except ConfigError as error:
        _refuse(router, str(error))
        return
    if router.config.workers and not read.workers:
        # Far more often an empty or half-written file than a wish; an outage of everything either way.
        _refuse(router, "it names no workers, where the old one does (to end them all, stop the gateway)")
        return
    router.config, restart = merged(router.config, read)
    _take_over(router, router.config)
    for name in restart:
        _log.warning("configuration: a change of `%s` takes effect at the next start", name)
    _warn_of_roles(router.pools, router.config)
    router.metrics.config_read(accepted=True)
    _log.info("configuration read: %d workers, %d clients", len(read.workers), len(read.clients))


def _take_over(router: Router, config: Config) -> None:
    """Give each part what is in force now: all that `router.config.reload.LIVE` lists."""
    limits = config.limits
    router.request_log.reconfigure(config.log)
    router.intake.limits = limits
    router.intake.held.limit = limits.held_bytes
    for server in router.listening:
        try:
            server.reconfigure(config.listen, limits)
        except OSError as error:
            _log.error("configuration: the certificate has changed since it was checked: %s", error)
    if router.client_routes is not None:
        router.client_routes.explains = config.listen.decision_headers
    router.clients.wrong_keys.per_minute = limits.wrong_keys_per_minute
    router.clients.reload(config.clients)
    router.metrics.reconfigure(_weights(config), max_clients=config.metrics.max_clients)
    router.control.attempts = limits.attempts
    router.control.seams.limit = limits.continuations
    router.continuations.mode = config.continuation
    for pool in router.pools.by_model.values():
        pool.scheduler.set_limits(
            max_queued=limits.queue_requests, max_wait_s=limits.queue_wait_s, attempts=limits.attempts
        )
    router.connections.set_timeouts(_timeouts(config))
    router.pools.configure(config.models, keys_needed=router.clients.keys_needed)
    router.fleet.apply(worker.spec() for worker in config.workers)


def _refuse(router: Router, why: str) -> None:
    _log.error("configuration refused, the old one stays: %s", why)
    router.metrics.config_read(accepted=False)
