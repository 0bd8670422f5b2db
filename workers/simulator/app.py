"""vLLM's HTTP surface over one simulated engine, as a bare ASGI application.

The life of a call: read the body, meet the fault that is set, check the body, queue the sequences, write what
they say as they say it; a client that leaves takes its sequences out of the engine at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from workers.simulator.api_errors import ApiError, internal, invalid
from workers.simulator.connector import Handover
from workers.simulator.control_routes import SideRoutes
from workers.simulator.exchange import ClientLeft, Exchange, Receive, Scope, Send
from workers.simulator.faults import Fault, Faults
from workers.simulator.inference import Inference, read_body
from workers.simulator.kv_publisher import KvPublisher
from workers.simulator.real_time import LiveEngine
from workers.simulator.requests import Served
from workers.simulator.sequences import Reason

_KEPT_BODY_BYTES = 65_536

_LOG = logging.getLogger(__name__)

Route = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Received:
    """A request that came in, for tests to look at. The body is left out where it is large."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Application:
    """The ASGI callable of one worker."""

    def __init__(
        self,
        served: Served,
        live: LiveEngine,
        *,
        handover: Handover | None = None,
        publisher: KvPublisher | None = None,
        api_key: str | None = None,
        max_num_queued_reqs: int | None = None,
    ) -> None:
        self.served = served
        self.live = live
        self.handover = handover or Handover(live, None)
        self.inference = Inference(served, live, max_num_queued_reqs, self.handover)
        self.faults = Faults()
        self.on_fault: Callable[[Fault | None], None] = lambda _: None
        """Carries out a fault that was set or cleared over HTTP."""
        self.siblings: list[Application] = [self]
        """The workers of this process, so that one may set a fault on another."""
        self.received: deque[Received] = deque(maxlen=256)
        self._api_key = api_key
        inference, side = self.inference, SideRoutes(served, live, publisher)
        get: dict[str, Route] = {
            "/health": side.empty,
            "/ping": side.empty,
            "/version": side.version,
            "/load": side.load,
            "/metrics": side.metrics,
            "/v1/models": side.models,
            "/kv_event_sources": side.kv_event_sources,
            "/simulator/state": self._state,
        }
        post: dict[str, Route] = {
            "/ping": side.empty,
            "/v1/chat/completions": inference.chat,
            "/v1/completions": inference.completion,
            "/v1/responses": inference.responses,
            "/v1/messages": inference.messages,
            "/v1/messages/count_tokens": side.count_tokens,
            "/v1/embeddings": inference.embeddings,
            "/reset_prefix_cache": side.reset_prefix_cache,
            "/tokenize": side.tokenize,
            "/detokenize": side.detokenize,
            "/score": side.score,
            "/v1/score": side.score,
            "/rerank": side.rerank,
            "/v1/rerank": side.rerank,
            "/v2/rerank": side.rerank,
            "/simulator/fault": self._set_fault,
            "/simulator/kv/claim": self._other_worker,
            "/simulator/kv/release": self._other_worker,
        }
        delete: dict[str, Route] = {"/simulator/fault": self._clear_fault}
        self._routes = {"GET": get, "POST": post, "DELETE": delete}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except ApiError as error:
            await exchange.json(error.status, error.body(exchange.path))
        except ClientLeft:
            pass
        except Exception:
            # Whatever a body can provoke gets the 500 that vLLM gives, and the worker lives on.
            _LOG.exception("a request to %s failed", exchange.path)
            if exchange.started:
                raise
            await exchange.json(500, internal().body(exchange.path))
        finally:
            exchange.close()

    async def _answer(self, exchange: Exchange) -> None:
        path, headers = exchange.path, exchange.headers
        body = await exchange.read()
        if path.startswith("/simulator/"):
            await self._route(exchange)(exchange)
            return
        kept = body if len(body) <= _KEPT_BODY_BYTES else b""
        self.received.append(Received(exchange.method, path, headers, kept))
        if self._api_key and path.startswith("/v1") and headers.get("authorization") != f"Bearer {self._api_key}":
            await exchange.json(401, {"error": "Unauthorized"})
            return
        route = self._route(exchange)
        fault = self.faults.peek(self.live.real_now())
        if fault is not None and (exchange.method == "POST" or fault.probes):
            exchange.fault = self.faults.take(self.live.real_now())
            await self._suffer(exchange)
        await route(exchange)

    def _route(self, exchange: Exchange) -> Route:
        path, method = exchange.path, exchange.method
        if path.startswith("/metrics"):
            path = "/metrics"  # vLLM answers any path that begins like this
        if path.startswith("/v1/responses/"):
            if method == "POST" and path.endswith("/cancel"):
                return self.inference.cancel_response
            if method == "GET":
                return self.inference.get_response
        found = self._routes.get(method, {}).get(path)
        if found is not None:
            return found
        if any(path in routes for routes in self._routes.values()):
            return self._method_not_allowed
        return self._not_found

    async def _suffer(self, exchange: Exchange) -> None:
        """What a fault does before a request is looked at."""
        fault = exchange.fault
        if fault is None:
            return
        if fault.kind == "paused" or (fault.kind == "hang" and not fault.after_tokens):
            await self.inference.blocked(exchange)
            exchange.fault = None
        elif fault.kind == "error_500":
            raise internal()
        elif fault.kind == "slow" and fault.delay_s:
            await exchange.unless_gone(asyncio.sleep(fault.delay_s))
        elif fault.kind == "draining":
            raise internal("cannot schedule new futures after shutdown")
        elif fault.kind == "die_mid_stream" and exchange.method == "GET":
            await exchange.cut()

    async def _not_found(self, exchange: Exchange) -> None:
        await exchange.json(404, {"detail": "Not Found"})

    async def _method_not_allowed(self, exchange: Exchange) -> None:
        await exchange.json(405, {"detail": "Method Not Allowed"})

    # For tests.

    def state(self) -> dict[str, Any]:
        """What the worker is doing, as `GET /simulator/state` tells it."""
        engine = self.live.engine
        fault = self.faults.peek(self.live.real_now())
        return {
            "running": engine.running,
            "waiting": engine.waiting,
            "started": self.inference.started,
            "gone": self.inference.gone,
            "aborted": engine.counters.ended[Reason.ABORT],
            "finished": engine.counters.ended[Reason.STOP] + engine.counters.ended[Reason.LENGTH],
            "preemptions": engine.counters.preemptions,
            "generation_tokens": engine.counters.generation_tokens,
            "kv_blocks_used": engine.kv_blocks_used,
            "pulled_tokens": engine.counters.pulled_tokens,
            "kv_transfer": self.handover.state(),
            "fault": None if fault is None else asdict(fault),
            "requests": [
                {
                    "id": sequence.request.id,
                    "prompt_tokens": sequence.prompt_tokens,
                    "cached_tokens": sequence.cached,
                    "generated": engine.generated(sequence),
                    "target": sequence.target,
                }
                for sequence in engine.sequences()[:1000]
            ],
        }

    async def _state(self, exchange: Exchange) -> None:
        await exchange.json(200, self.state())

    async def _other_worker(self, exchange: Exchange) -> None:
        call = exchange.path.rpartition("/")[2]
        await exchange.json(200, self.handover.answer(call, read_body(exchange)))

    async def _set_fault(self, exchange: Exchange) -> None:
        values = read_body(exchange)
        index = values.pop("worker", None)
        target = self._sibling(index if isinstance(index, int) else None)
        try:
            fault = Fault.parse(values)
        except ValueError as error:
            raise invalid("body", str(error)) from None
        target.on_fault(fault)
        await exchange.json(200, asdict(fault))

    async def _clear_fault(self, exchange: Exchange) -> None:
        index = exchange.query.get("worker", "")
        target = self._sibling(int(index) if index.isdigit() else None)
        target.on_fault(None)
        await exchange.json(200, {})

    def _sibling(self, index: int | None) -> "Application":
        if index is None:
            return self
        if not 0 <= index < len(self.siblings):
            raise invalid("body.worker", f"there are {len(self.siblings)} workers, counted from 0")
        return self.siblings[index]
