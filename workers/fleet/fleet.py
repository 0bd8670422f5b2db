"""The fleet: which servers there are, what is known of each, and who is told.

Everything here happens on one event loop. The operator, the data path and the watching loops call in; the
subscriber receives the events one after the other in the order in which they happened, also when it calls back
from within one.
"""

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from workers.bounds.log_limit import LogLimit
from workers.fleet.addresses import addresses_of, at_addresses, is_name
from workers.fleet.health import HealthSettings
from workers.fleet.poller import Poller, PollerSettings
from workers.fleet.server import Engine, Server
from workers.fleet.worker import Exclusion, FleetEvent, Worker, WorkerJoined, WorkerLeft, WorkerSpec
from workers.http.tls import context_of
from workers.kv_events.subscription import KvCounts, KvEventsSettings, KvListener
from workers.kv_events.subscriptions import Subscriptions

logger = logging.getLogger("fairlead.fleet")

_LOOK_AGAIN_S = 1.0
_LOOK_AGAIN_EACH_S = 0.02
"""The least time between two rounds of asking all servers what they serve, and what each server adds to it: names
that clients invent cost the fleet no more than one round per second, and fewer where it is large."""
_RESOLVE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How the fleet is watched."""

    poller: PollerSettings = field(default_factory=PollerSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    kv_events: KvEventsSettings = field(default_factory=KvEventsSettings)
    scrape_stale_s: float = 15.0
    """A reading of the metrics older than this is marked stale."""
    remove_after_s: float = 60.0
    """A removed server leaves after this even while something is still in flight there."""
    resolve_every_s: float = 30.0
    """How often host names are looked up again, for addresses that have come or gone."""

    def __post_init__(self) -> None:
        if self.resolve_every_s <= 0:
            raise ValueError("resolve_every_s must be greater than 0")
        if self.scrape_stale_s <= self.poller.scrape_every_s:
            raise ValueError("scrape_stale_s must be greater than poller.scrape_every_s")
        if self.remove_after_s < 0:
            raise ValueError("remove_after_s must not be negative")


class UnknownServerError(LookupError):
    """There is no server with this URL in the fleet."""


class DuplicateServerError(ValueError):
    """Two servers with one URL."""


@dataclass(slots=True)
class _Entry:
    server: Server
    configured: bool
    """It came with `apply`, so the next `apply` may take it away."""
    poller: Poller | None = None
    leaving: bool = False
    change_timer: asyncio.TimerHandle | None = None
    leave_timer: asyncio.TimerHandle | None = None
    name: "_Name | None" = None
    """The host name of which this server is one address."""


@dataclass(slots=True, eq=False)
class _Name:
    """A URL whose host name may have several addresses, each a server of its own then."""

    spec: WorkerSpec
    configured: bool
    addresses: set[str] = field(default_factory=set)
    """The URLs of its servers once several addresses were found; empty: the name itself is the one server."""
    following: asyncio.Task[None] | None = None


class Fleet:
    """The servers by URL. `on_event` is called on the loop and must not block.

    `clock` is monotonic, in seconds. `tls`: what to verify https:// workers with, the system's roots by default.
    `kv_listener` is told what the workers hold in their caches, where they publish it; None: none is followed.
    """

    def __init__(
        self,
        settings: FleetSettings,
        clock: Callable[[], float],
        on_event: Callable[[FleetEvent], None],
        tls: ssl.SSLContext | None = None,
        kv_listener: KvListener | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_event = on_event
        self._tls = tls
        self._following = Subscriptions(kv_listener, settings.kv_events) if kv_listener else None
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, _Name] = {}
        self._log_limit = LogLimit(logger)
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -math.inf
        self._by_id: dict[str, tuple[_Entry, Engine]] = {}
        self._workers: tuple[Worker, ...] | None = None
        self._outbox: deque[FleetEvent] = deque()
        self._delivering = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to watch. Servers may be added before and after."""
        self._loop = asyncio.get_running_loop()
        for entry in self._entries.values():
            self._start_poller(entry)
        for name in self._names.values():
            self._start_following(name)

    async def aclose(self) -> None:
        """Stop watching. The workers stay listed; no event is sent."""
        self._loop = None
        for name in self._names.values():
            self._stop_following(name)
        for entry in self._entries.values():
            self._stop_poller(entry)
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await asyncio.gather(*self._closing)
        if self._following is not None:
            await self._following.aclose()

    def workers(self) -> tuple[Worker, ...]:
        """Return the snapshots, in the order in which their servers were added; free until something changes."""
        if self._workers is None:
            self._workers = tuple(e.worker for entry in self._entries.values() for e in entry.server.engines)
        return self._workers

    def kv_counts(self) -> Mapping[str, KvCounts]:
        """What was heard of the caches of the workers that are followed, by worker id."""
        return self._following.counts() if self._following is not None else {}

    # What is served.

    async def look_again(self) -> None:
        """Ask every server that was reached what it serves now; return when the answers are in, or are late.

        For a name that no server listed when it was asked last: an adapter may have been loaded since. Callers
        share a round; the next one begins `_LOOK_AGAIN_S` after the last at the earliest.
        """
        if self._loop is None:
            return
        if self._asking is None:
            self._asking = self._loop.create_task(self._ask_all(), name="what is served")
            self._asking.add_done_callback(self._asked)
        await asyncio.shield(self._asking)

    def resolve_adapter(self, name: str) -> bool:
        """Offer a name that no server lists to those whose resolvers may load it; say whether there is one."""
        offered = [entry.server.resolve_adapter(name) for entry in list(self._entries.values())]
        return any(offered)

    def adapter_unknown(self, worker_id: str, name: str) -> None:
        """Report that a worker has answered "does not exist" to a request for this name."""
        found = self._by_id.get(worker_id)
        if found is not None:
            found[0].server.adapter_unknown(name)

    async def _ask_all(self) -> None:
        pollers = [entry.poller for entry in self._entries.values() if entry.poller is not None]
        gap_s = _LOOK_AGAIN_S + _LOOK_AGAIN_EACH_S * len(pollers)
        await asyncio.sleep(max(0.0, self._asked_at + gap_s - self._clock()))
        self._asked_at = self._clock()
        await asyncio.gather(*(poller.learn_models() for poller in pollers if poller.reached))

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("asking what is served failed", exc_info=error)

    # The operator.

    def add(self, spec: WorkerSpec) -> None:
        """Add a server, or call one back that is being removed. Raises DuplicateServerError."""
        self._add(spec, configured=False)

    def drain(self, url: str) -> None:
        """Let a server finish what it has and give it nothing new.

        As in all of these, the URL with a host name means the servers at all its addresses. Raises
        UnknownServerError.
        """
        for entry in self._at(url):
            entry.server.drain(Exclusion.DRAINED)

    def undrain(self, url: str) -> None:
        """Raises UnknownServerError."""
        for entry in self._at(url):
            self._stay(entry)
            entry.server.undrain()

    def remove(self, url: str) -> None:
        """Drain a server; it leaves once `release` was called for its workers, or after `remove_after_s`.

        A worker that never took a request needs no release. Raises UnknownServerError.
        """
        leaving = self._at(url)
        name = self._names.pop(url, None)
        if name is not None:
            self._stop_following(name)
        for entry in leaving:
            self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        if entry.leaving:
            return
        entry.leaving = True
        entry.server.drain(Exclusion.REMOVED)
        if self._loop is None or entry.server.idle:
            self._drop(entry, "removed")
        elif entry.leaving:
            entry.leave_timer = self._loop.call_later(
                self._settings.remove_after_s, self._drop, entry, "removed while requests were in flight"
            )

    def restarted(self, url: str) -> None:
        """Note that the process behind the URL is a new one: its cache is empty. Raises UnknownServerError."""
        for entry in self._at(url):
            entry.server.restarted("its process was restarted")
            if entry.poller is not None:
                entry.poller.probe_now()

    def apply(self, specs: Iterable[WorkerSpec]) -> None:
        """Make the configured servers those of `specs`; what did not change is not touched.

        Servers that came with `add` stay until `remove`. Raises DuplicateServerError before anything is done.
        """
        wanted: dict[str, WorkerSpec] = {}
        for spec in specs:
            if spec.url in wanted:
                raise DuplicateServerError(f"{spec.url} is listed twice")
            wanted[spec.url] = spec
        for url, name in list(self._names.items()):
            if name.configured and url not in wanted:
                self.remove(url)
        for url, entry in list(self._entries.items()):
            if entry.configured and entry.name is None and not entry.leaving and url not in wanted:
                self.remove(url)
        for url, spec in wanted.items():
            known = self._entries.get(url)
            if url in self._names:
                self._change_name(self._names[url], spec)
            elif known is None or known.leaving:
                self._add(spec, configured=True)
            else:
                known.configured = True
                self._change(known, spec)

    # The data path.

    def request_ok(self, worker_id: str) -> None:
        """Report a request that was answered. Costs one look-up while the worker is in good standing."""
        found = self._by_id.get(worker_id)
        if found is not None:
            entry, engine = found
            now = self._clock()
            if engine.health.request_ok(now):
                entry.server.refresh_engine(engine, now)

    def request_failed(self, worker_id: str, why: str, *, refused: bool = False, connect: bool = False) -> None:
        """Report a failure that is the worker's: a 5xx, a timeout, a broken stream; never a 4xx.

        `refused`: it says that it is shutting down. `connect`: no connection came about, which is probed at once.
        Reports about workers that have left are ignored.
        """
        found = self._by_id.get(worker_id)
        if found is None:
            return
        entry, engine = found
        now = self._clock()
        if refused:
            engine.health.refused(why, now)
        else:
            engine.health.request_failed(why, now, connect=connect)
        entry.server.refresh_engine(engine, now)
        if connect and entry.poller is not None:
            entry.poller.probe_now()

    def request_at_fault(self, worker_id: str, why: str) -> None:
        """Report a failure that the request itself has caused, as another worker shows. See `attribution`."""
        found = self._by_id.get(worker_id)
        if found is not None:
            entry, engine = found
            now = self._clock()
            others = (other.health.ok_at for _, other in self._by_id.values() if other is not engine)
            engine.health.request_at_fault(why, now, max(others, default=-math.inf))
            entry.server.refresh_engine(engine, now)

    def release(self, worker_id: str) -> None:
        """Report that nothing is in flight on a worker that drains; ignored for any other."""
        found = self._by_id.get(worker_id)
        if found is not None:
            entry, engine = found
            entry.server.release(engine)
            if entry.leaving and entry.server.idle:
                self._drop(entry, "removed")

    # Inside.

    def _add(self, spec: WorkerSpec, *, configured: bool) -> None:
        if not is_name(spec):
            self._add_server(spec, configured=configured)
            return
        if spec.url in self._names:
            raise DuplicateServerError(f"{spec.url} is in the fleet already")
        # Until its addresses are known, and where there is only one, the name is a server like any other.
        self._add_server(spec, configured=configured)
        name = self._names[spec.url] = _Name(spec, configured)
        if self._loop is not None:
            self._start_following(name)

    def _change_name(self, name: _Name, spec: WorkerSpec) -> None:
        """Take over what the configuration now says of a host name."""
        if not is_name(spec):
            self.remove(spec.url)
            self._add(spec, configured=True)
            return
        name.spec, name.configured = spec, True
        entries = self._at(spec.url)
        specs = [spec]
        if name.addresses:
            specs = at_addresses(spec, [urlsplit(entry.server.spec.url).hostname or "" for entry in entries])
        for entry, one in zip(entries, specs, strict=True):
            entry.configured = name.configured
            self._change(entry, one)

    def _start_following(self, name: _Name) -> None:
        name.following = asyncio.ensure_future(self._follow(name))

    def _stop_following(self, name: _Name) -> None:
        if name.following is not None:
            name.following.cancel()
            name.following = None

    async def _follow(self, name: _Name) -> None:
        """Look a host name up again and again."""
        parts = urlsplit(name.spec.url)
        while True:
            try:
                async with asyncio.timeout(_RESOLVE_WITHIN_S):
                    found = await addresses_of(parts.hostname or "", parts.port)
            except (OSError, TimeoutError) as error:
                why = getattr(error, "strerror", None) or f"no answer within {_RESOLVE_WITHIN_S:g} s"
                now = self._clock()
                self._log_limit.warn(name.spec.url, why, now, "the addresses of %s: %s", name.spec.url, why)
            else:
                self._log_limit.over(name.spec.url)
                self._stand_for(name, found)
            await asyncio.sleep(self._settings.resolve_every_s)

    def _stand_for(self, name: _Name, addresses: Sequence[str]) -> None:
        """Make the servers of a host name those at its addresses."""
        if len(addresses) < 2 and not name.addresses:
            return
        specs = {spec.url: spec for spec in at_addresses(name.spec, addresses)}
        if not name.addresses:
            logger.info("%s has %d addresses: each is a worker of its own", name.spec.url, len(addresses))
            self._remove(self._entries[name.spec.url])
        for url in name.addresses - specs.keys():
            logger.info("%s no longer has the address of %s", name.spec.url, url)
            if (entry := self._entries.get(url)) is not None and entry.name is name:
                self._remove(entry)
        for url, spec in specs.items():
            known = self._entries.get(url)
            if known is None or known.leaving:
                self._add_server(spec, configured=name.configured)
                self._entries[url].name = name
        name.addresses = set(specs)

    def _add_server(self, spec: WorkerSpec, *, configured: bool) -> None:
        known = self._entries.get(spec.url)
        if known is not None:
            if not known.leaving:
                raise DuplicateServerError(f"{spec.url} is in the fleet already")
            self._stay(known)
            known.configured = configured
            known.server.undrain()
            self._change(known, spec)
            return

        def emit(event: FleetEvent) -> None:
            self._emit(entry, event)

        settings = self._settings
        entry = _Entry(Server(spec, settings.health, settings.scrape_stale_s, self._clock, emit), configured)
        self._entries[spec.url] = entry
        entry.server.join()
        if self._loop is not None:
            self._start_poller(entry)

    def _change(self, entry: _Entry, spec: WorkerSpec) -> None:
        if entry.server.spec == spec:
            return
        logger.info("server %s: its configuration changed", spec.url)
        before = entry.server.spec
        entry.server.change(spec)
        if entry.poller is not None and spec.tls != before.tls:
            self._stop_poller(entry)
            self._start_poller(entry)
        if entry.poller is not None:
            entry.poller.probe_now()
            entry.poller.learn_now()

    def _stay(self, entry: _Entry) -> None:
        entry.leaving = False
        if entry.leave_timer is not None:
            entry.leave_timer.cancel()
            entry.leave_timer = None

    def _drop(self, entry: _Entry, why: str) -> None:
        if self._entries.pop(entry.server.spec.url, None) is None:
            return
        self._stay(entry)
        self._stop_poller(entry)
        entry.server.close(why)

    def _start_poller(self, entry: _Entry) -> None:
        tls = None
        if entry.server.spec.url.startswith("https:"):
            tls = self._tls if self._tls and not entry.server.spec.tls else context_of(entry.server.spec.tls)
        entry.poller = Poller(entry.server, self._settings.poller, self._clock, tls, self._following)
        entry.poller.start()
        self._arm(entry)

    def _stop_poller(self, entry: _Entry) -> None:
        for timer in (entry.change_timer, entry.leave_timer):
            if timer is not None:
                timer.cancel()
        if entry.poller is not None:
            task = asyncio.ensure_future(entry.poller.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            entry.poller = None

    def _at(self, url: str) -> list[_Entry]:
        """Return the servers that a URL means. Raises UnknownServerError."""
        name = self._names.get(url)
        urls = sorted(name.addresses) if name is not None and name.addresses else [url]
        found = [self._entries[one] for one in urls if one in self._entries]
        if not found:
            raise UnknownServerError(f"no server {url} in the fleet")
        return found

    def _arm(self, entry: _Entry) -> None:
        """Set the alarm for the next change that time alone will bring."""
        if entry.change_timer is not None:
            entry.change_timer.cancel()
            entry.change_timer = None
        now = self._clock()
        if self._loop is not None and (at := entry.server.next_change(now)) is not None:
            entry.change_timer = self._loop.call_later(max(0.0, at - now), self._expire, entry)

    def _expire(self, entry: _Entry) -> None:
        entry.server.refresh()
        self._arm(entry)

    def _emit(self, entry: _Entry, event: FleetEvent) -> None:
        """Keep the index, then deliver: behind the events that are being delivered, never between them."""
        self._workers = None
        if isinstance(event, WorkerJoined):
            worker = event.worker
            self._by_id[worker.id] = (entry, entry.server.engines[worker.rank])
        elif isinstance(event, WorkerLeft):
            self._by_id.pop(event.id, None)
            if self._following is not None:
                self._following.leave(event.id)
        if entry.poller is not None:
            self._arm(entry)
        self._outbox.append(event)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._outbox:
                self._deliver(self._outbox.popleft())
        finally:
            self._delivering = False

    def _deliver(self, event: FleetEvent) -> None:
        try:
            self._on_event(event)
        except Exception:  # the subscriber's mistake must not stop the loops that watch
            logger.exception("%s was not taken up", type(event).__name__)
