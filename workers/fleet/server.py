"""One vLLM server: what is known of it, and the workers that follow from that.

Findings (of probes, readings, requests, the operator) go in; snapshots and events come out. No I/O, and the
clock is an argument.

Invariants:
* A worker keeps its identity through every change of health: whatever was learned about its cache stays true.
* The epoch grows when the cache is certainly lost or is another model's: the process restarted (its start time
  changed, or its counters fell), the launcher says so, or the server answers to another model. Then every worker
  leaves and joins anew.
* An event is emitted for each snapshot that differs from the one before, and for nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workers.bounds.bounded_map import BoundedMap
from workers.bounds.log_limit import LogLimit
from workers.fleet.health import Health, HealthSettings
from workers.fleet.probe import Models, ProbeError
from workers.fleet.vllm_metrics import merge
from workers.fleet.worker import (
    Exclusion,
    FleetEvent,
    Scrape,
    State,
    Worker,
    WorkerChanged,
    WorkerJoined,
    WorkerLeft,
    WorkerSpec,
)

logger = logging.getLogger("fairlead.fleet")

_MOST_RESOLVED = 64
"""Adapters per server that clients may have named without its listing them: each is one more name to route by."""
_RESOLVED_WITHIN_S = 60.0
"""A resolver that works lists its adapter by then."""


@dataclass(slots=True, eq=False)
class Engine:
    """One rank of a server: its evidence, its last reading, its snapshot."""

    rank: int
    health: Health
    worker: Worker
    idle: bool = True
    """Nothing is in flight there for certain: it was never routable, or it drains and was released."""
    scrape: Scrape | None = None


class Server:
    """A URL with its engines. `emit` receives the events in the order in which they happen."""

    def __init__(
        self,
        spec: WorkerSpec,
        health: HealthSettings,
        scrape_stale_s: float,
        clock: Callable[[], float],
        emit: Callable[[FleetEvent], None],
    ) -> None:
        self.spec = spec
        self.models: Models | None = None
        self.version: str | None = None
        self.engines: list[Engine] = []
        self._health = health
        self._scrape_stale_s = scrape_stale_s
        self._clock = clock
        self._emit = emit
        self._epoch = 0
        self._draining: Exclusion | None = None
        self._closed = False
        self._models_why = "its models are not known yet"
        self._process_started: float | None = None
        self._served: frozenset[str] = frozenset()
        """Names that it has served, while it is not known what it serves now."""
        self._resolving: BoundedMap[str, float] = BoundedMap(_MOST_RESOLVED)
        """Adapters that it does not list but was asked to resolve, and when."""
        self._log_limit = LogLimit(logger)

    @property
    def idle(self) -> bool:
        return all(engine.idle for engine in self.engines)

    @property
    def starting(self) -> bool:
        return any(engine.worker.state is State.STARTING for engine in self.engines)

    def join(self, *, answering: bool = False, known: Sequence[Health] = ()) -> None:
        """Bring the engines of this epoch into being.

        `answering`: the server was just heard. `known`: the evidence about the same process, if it is the same.
        """
        if self._closed:
            return
        now = self._clock()
        for rank in range(self.spec.data_parallel):
            health = known[rank] if known else Health(self._health)
            if answering:
                health.probe_ok(now)
            if self._draining is not None:
                health.drain(self._draining)
            engine = Engine(rank, health, Worker(self.spec, rank, self._epoch))
            engine.worker = self._snapshot(engine, now)
            engine.idle = not engine.worker.routable
            self.engines.append(engine)
        for engine in list(self.engines):
            if engine in self.engines:  # the subscriber may take the server away at its first event
                logger.info("worker %s joined: %s", engine.worker.id, _summary(engine.worker))
                self._emit(WorkerJoined(engine.worker))

    def leave(self, why: str) -> None:
        """Take the engines away: whatever their caches hold is lost."""
        gone, self.engines = self.engines, []
        for engine in gone:
            logger.info("worker %s left: %s", engine.worker.id, why)
            self._emit(WorkerLeft(engine.worker.id, why))

    def close(self, why: str) -> None:
        """Leave for good."""
        self._closed = True
        self.leave(why)

    def restarted(self, why: str, *, answering: bool = False) -> None:
        """Begin a new epoch with nothing known of the new process."""
        self.models = None
        self.version = None
        self._resolving.clear()
        self._process_started = None
        self.leave(why)
        self._epoch += 1
        self.join(answering=answering)

    def change(self, spec: WorkerSpec) -> None:
        """Take over what the operator now says; only another number of engines makes them anew."""
        before, self.spec = self.spec, spec
        if spec.data_parallel == before.data_parallel:
            self.refresh()
            return
        answering = any(engine.worker.state in (State.UP, State.SUSPECT) for engine in self.engines)
        self.leave(f"data_parallel is now {spec.data_parallel}")
        self._epoch += 1
        self.join(answering=answering)

    def drain(self, why: Exclusion) -> None:
        """Give it nothing new: DRAINED or REMOVED."""
        self._draining = why
        for engine in self.engines:
            engine.health.drain(why)
        self.refresh()

    def undrain(self) -> None:
        self._draining = None
        for engine in self.engines:
            engine.health.undrain()
        self.refresh()

    def release(self, engine: Engine) -> None:
        """Note that nothing is in flight on an engine; only true for good while it drains."""
        engine.idle = self._draining is not None

    # What probes and readings find.

    def healthy(self) -> None:
        now = self._clock()
        self._log_limit.over("probe")
        for engine in self.engines:
            engine.health.probe_ok(now)
        self.refresh()

    def unhealthy(self, error: ProbeError) -> None:
        if error.ours:
            self._warn("probe", str(error), "cannot probe %s: %s", self.spec.url, error)
            return
        now = self._clock()
        before = [engine.worker.state for engine in self.engines]
        for engine in self.engines:
            engine.health.probe_failed(str(error), now, connect=error.connect)
        self.refresh()
        if [engine.worker.state for engine in self.engines] != before:
            self._log_limit.count("probe", str(error), now)  # the line about the new state has said it
        else:
            self._warn("probe", str(error), "worker %s cannot be reached: %s; trying again", self.spec.url, error)

    def models_found(self, models: Models) -> None:
        self.models = models
        self._log_limit.over("models")
        now = self._clock()
        self._served = frozenset((*models.bases, *models.adapters))
        for name, asked_at in list(self._resolving.items()):
            if name in models.adapters or now - asked_at > _RESOLVED_WITHIN_S:
                del self._resolving[name]
        self.refresh()
        if self._model() is None:
            why = self._why_no_model()
            self._warn("model", why, "worker %s is not used: %s", self.spec.url, why)
        else:
            self._log_limit.over("model")

    def models_unknown(self, error: ProbeError) -> None:
        """Keep what was known before: a list that cannot be read now says nothing about the engine."""
        self._models_why = f"its models are not known: {error}"
        self._warn("models", str(error), "what worker %s serves is not known: %s", self.spec.url, error)
        self.refresh()

    def metrics_unknown(self, error: ProbeError) -> None:
        """Note that its metrics cannot be read: what it holds and runs is only counted here."""
        self._warn("metrics", str(error), "the metrics of worker %s cannot be read: %s", self.spec.url, error)

    def resolve_adapter(self, name: str) -> bool:
        """Let requests name an adapter that it does not list, for its resolvers to load; say whether they may."""
        if not self.spec.resolves_adapters or self._model() is None:
            return False
        self._resolving[name] = self._clock()
        self.refresh()
        return True

    def adapter_unknown(self, name: str) -> None:
        """Note that it has answered a request for this name with "does not exist"."""
        if self._resolving.pop(name, None) is not None:
            self.refresh()

    def kv_events_unusable(self, error: Exception) -> None:
        """Note that its events are not followed: what its caches hold is guessed at, as that of others."""
        self._warn("kv_events", str(error), "the KV events of %s are not followed: %s", self.spec.url, error)

    def version_found(self, version: str) -> None:
        self.version = version
        self.refresh()

    def scraped(self, page: Mapping[int, Scrape]) -> bool:
        """Take over a reading of the metrics; say whether it showed another process, a new epoch then."""
        self._log_limit.over("metrics")
        page = self._by_engine(page)
        if not page:
            return False
        another = self._is_another_process(page)
        if another:
            self.restarted("its process restarted", answering=True)
        self._process_started = next(iter(page.values())).process_started
        for engine in self.engines:
            if (scrape := page.get(engine.rank)) is not None:
                engine.scrape = scrape
                if scrape.awake:
                    engine.health.awake()
                else:
                    engine.health.asleep(scrape.at + self._scrape_stale_s)
        self.refresh()
        return another

    # What time and requests do.

    def next_change(self, now: float) -> float | None:
        """Return when a snapshot changes by the mere passing of time: a mark expires, a reading gets stale."""
        times = [engine.health.next_change(now) for engine in self.engines]
        times += [e.scrape.at + self._scrape_stale_s for e in self.engines if e.scrape and not e.worker.stale]
        return min((time for time in times if time is not None), default=None)

    def refresh(self) -> None:
        """Rebuild the snapshots that no longer hold."""
        model = self._model()
        if any(engine.worker.model not in (None, model) for engine in self.engines):
            known = [engine.health for engine in self.engines]
            self.leave(f"it now serves {model}" if model else self._why_no_model())
            self._epoch += 1
            self.join(known=known)
            return
        now = self._clock()
        for engine in list(self.engines):
            self.refresh_engine(engine, now)

    def refresh_engine(self, engine: Engine, now: float) -> None:
        before, after = engine.worker, self._snapshot(engine, now)
        if after == before or engine not in self.engines:
            return
        engine.worker = after
        if after.routable:
            engine.idle = False
        if after.state is not before.state or after.routable is not before.routable:
            bad = after.state in (State.DOWN, State.SUSPECT)
            level = logging.WARNING if bad else logging.INFO
            was = f"{before.state.value} -> " if after.state is not before.state else ""
            logger.log(level, "worker %s: %s%s", after.id, was, _summary(after))
        self._emit(WorkerChanged(after))

    def _snapshot(self, engine: Engine, now: float) -> Worker:
        verdict = engine.health.verdict(now)
        model = self._model()
        scrape, models = engine.scrape, self.models if model else None
        adapters = frozenset((*models.adapters, *self._resolving)) if models else frozenset[str]()
        return Worker(
            spec=self.spec,
            rank=engine.rank,
            epoch=self._epoch,
            state=verdict.state,
            model=model,
            served_names=adapters.union(models.bases) if models else adapters,
            adapters=adapters,
            roots=models.roots if models else {},
            expected=frozenset() if model else self._expected(),
            max_model_len=self.models.max_model_len if self.models else None,
            version=self.version,
            scrape=scrape,
            stale=scrape is None or now - scrape.at >= self._scrape_stale_s,
            silence_limit_s=engine.health.silence_limit_s(now),
            why=verdict.why or ("" if model else self._why_no_model()),
            excluded=verdict.excluded or (None if model else Exclusion.NO_MODEL),
        )

    def _model(self) -> str | None:
        """Return the base model to file the workers under, by the operator's name for it where there is one."""
        if self.models is None:
            return None
        if self.spec.model is None:
            return self.models.base
        return self.spec.model if self.spec.model in self.models.bases else None

    def _expected(self) -> frozenset[str]:
        """Names that it is to serve once it serves anything."""
        configured = frozenset() if self.spec.model is None else frozenset((self.spec.model,))
        return configured if self.models is not None else configured | self._served

    def _why_no_model(self) -> str:
        if self.models is None:
            return self._models_why
        return f"it serves {', '.join(self.models.bases)}, not {self.spec.model}"

    def _by_engine(self, page: Mapping[int, Scrape]) -> Mapping[int, Scrape]:
        """Match the page's ranks to ours.

        A server that is one replica of a larger group labels its only engine with its place in that group. One
        with more engines than the operator told us of is one worker to us, with the sum of its figures.
        """
        if self.spec.data_parallel > 1 or not page:
            return page
        if len(page) > 1:
            self._warn(
                "engines",
                str(len(page)),
                "%s has %d engines with a cache each: say data_parallel: %d to route by them",
                *(self.spec.url, len(page), len(page)),
            )
        return {0: merge(list(page.values()))}

    def _is_another_process(self, page: Mapping[int, Scrape]) -> bool:
        """Compare start times; where they are not exported, a counter that fell tells the same."""
        started = next(iter(page.values())).process_started
        if started is not None and self._process_started is not None:
            return started != self._process_started
        if started is not None or self._process_started is not None:
            return False
        return any(
            engine.scrape is not None
            and engine.rank in page
            and page[engine.rank].prefix_queries < engine.scrape.prefix_queries
            for engine in self.engines
        )

    def _warn(self, subject: str, cause: str, message: str, *args: object) -> None:
        self._log_limit.warn(subject, cause, self._clock(), message, *args)


def _summary(worker: Worker) -> str:
    serving = f", serving {worker.model}" if worker.routable else ""
    return worker.state.value + serving + (f" ({worker.why})" if worker.why else "")
