"""The life of a request, from its first byte to its one end.

    accept ─► identify ─► read ─► serve ─► end

`serve` is what differs: `scheduled` asks control for a place in a worker's batch, `passthrough` for any worker.
Each step may raise a `RequestError`, which becomes the answer. If the client disconnects, the request's task is
cancelled at whatever point it has reached. `_end` runs on every path and gives back what was taken: what control
holds of the request, and the count of open requests.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from random import getrandbits
from typing import Any, TypeVar

from policies.model import Outcome
from router.edge.api.body_reader import INLINE_BYTES
from router.edge.content_coding import decoded
from router.edge.credentials import digests
from router.edge.errors import (
    BodyTooLarge,
    Dialect,
    RequestError,
    Unavailable,
    UploadTimeout,
    WorkerFailed,
    error_of,
)
from router.edge.exchange import wire_of
from router.edge.execution.record import Record
from router.edge.execution.recorder import Recorder
from router.edge.execution.worker_answer import AttemptFailed, WholeAnswer
from router.edge.held_bytes import Holding
from router.edge.intake import Intake
from router.edge.pieces import Body, PieceCollector, Pieces
from router.edge.response import Message, Receive, ResponseWriter, Scope, Send
from router.port import Control, Dispatch, Facts, Failed, Identity, Reject, RejectKind, Route, Unscheduled

_log = logging.getLogger("fairlead.gateway")

_ID_BYTES = 128
"""A longer X-Request-Id is replaced."""
_UPLOAD_WITHIN_S = 300.0
_DISCARDED = 8
"""How many times the limit of a body is read and thrown away before the connection is closed on it."""


class ClientGone(Exception):
    """The client left before its request was complete."""


class Lifecycle(ABC):
    """One request. Its attributes fill up as it goes along; `_end` gives back what they hold."""

    __slots__ = (
        "_admitted",
        "_answer",
        "_control",
        "_gone",
        "_holding",
        "_id",
        "_intake",
        "_key",
        "_keys",
        "_loop",
        "_receive",
        "_record",
        "_recorder",
        "_scope",
        "_task",
        "_wire",
    )

    def __init__(
        self,
        *,
        control: Control,
        intake: Intake,
        recorder: Recorder,
        scope: Scope,
        receive: Receive,
        send: Send,
        dialect: Dialect = Dialect.OPENAI,
    ) -> None:
        self._control = control
        self._intake = intake
        self._recorder = recorder
        self._scope = scope
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._id = request_id(scope)
        self._key = f"{self._id}/{id(self):x}"
        self._wire = wire_of(scope)
        self._holding = Holding(intake.held)
        self._answer = ResponseWriter(send, self._id.encode(), dialect, self._wire, self._holding)
        self._record = Record(self._id, scope["path"], self._loop.time())
        self._admitted = False
        self._gone = False
        self._keys: tuple[bytes, ...] = ()
        self._task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        """Answer the request, or end it in the way that went wrong."""
        self._intake.open += 1
        try:
            await self._attempt()
        except ClientGone:
            self._record.outcome = Outcome.CANCELLED
        except asyncio.CancelledError:
            # Ours in both cases: nothing above needs to hear of it.
            if self._gone:
                self._record.outcome = Outcome.CANCELLED
            elif self._intake.draining:
                await self._cut_off()
            else:
                raise
        finally:
            self._intake.open -= 1
            self._end(self._loop.time())

    async def _cut_off(self) -> None:
        """The gateway ends before the request does."""
        error = Unavailable("The gateway is shutting down.", retry_after_s=1)
        self._record.refused(error)
        await self._answer.refuse(error)

    @abstractmethod
    async def _serve(self, body: Body) -> None:
        """Do what the request asks for, and answer it."""

    def _end(self, now: float) -> None:
        """Every path leads here, once: nothing of the request stays behind."""
        if self._admitted:
            self._control.cancelled(self._key)
        self._holding.drop_request()
        self._holding.drop_answer()
        self._record.status = self._answer.status
        self._recorder.write(self._record, now)

    async def _attempt(self) -> None:
        watch: asyncio.Task[None] | None = None
        try:
            self._intake.check_room()
            body = await self._received()
            watch = self._watch()
            served = self._serve(body)
            del body  # kept for no longer than it may have to be sent
            await served
        except RequestError as error:
            self._record.refused(error)
            await self._answer.refuse(error)
        except (ClientGone, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            _log.exception("request %s met a bug of the gateway", self._id)
            self._record.outcome, self._record.error = Outcome.FAILED, repr(error)
            await self._answer.refuse(RequestError("The gateway failed on this request; its log says more."))
        finally:
            if watch is not None:
                watch.cancel()

    async def _received(self) -> Body:
        """The body of the request. A stranger is turned away before the upload is taken in."""
        headers = dict(self._scope["headers"])
        self._authenticate(headers)
        limit, hold = self._intake.limits.body_bytes, self._holding.add_request
        body = await read_body(headers, self._receive, limit, hold)
        coding = headers.get(b"content-encoding")
        if coding is None:
            return body
        plain = await decoded(body, coding, limit, joined_bytes=INLINE_BYTES)
        hold(len(plain))
        return plain

    def _watch(self) -> "asyncio.Task[None] | None":
        """Notice that the client leaves; with a server that does not tell, in a task."""
        self._task = asyncio.current_task()
        if self._wire is not None:
            self._wire.watch(self._left)
            return None
        return self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        """The client has gone: cut short whatever its request waits for."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def _detach(self) -> None:
        """From here on the request does not end with its client: it is over when its work is."""
        self._task = None

    def _authenticate(self, headers: Mapping[bytes, bytes]) -> None:
        """Whose key it is. Raises Unauthorized."""
        if self._control.routes().keys_needed:
            self._keys = digests(headers)
        address = self._record.address = address_of(self._scope)
        self._record.identity = taken(self._control.identify(self._keys, None, address))

    def _identify(self, user: str | None) -> Identity:
        """Who is asking, now that the body may name a user."""
        if user:
            self._record.identity = taken(self._control.identify(self._keys, user))
        return self._record.identity

    def _named(self, request: str | None) -> None:
        """The body names the request. As in vLLM that is its id, unless the client's headers have one."""
        if (
            request is not None
            and _is_header_value(request)
            and not any(name == b"x-request-id" for name, _ in self._scope["headers"])
        ):
            self._id = request
            self._key = f"{request}/{id(self):x}"
            self._answer.name(request.encode())
            self._record.name(request)

    async def _route(self, model: str | None) -> Route:
        """Where a model name leads. A name that is not known may have been loaded a moment ago."""
        found = self._control.routes().find(model)
        if isinstance(found, Reject) and found.kind is RejectKind.NO_MODEL and model is not None:
            await self._control.look_again(model)
            found = self._control.routes().find(model)
        return taken(found)

    def _failed(self, failure: AttemptFailed) -> Failed:
        """A failed attempt in control's words."""
        return Failed(
            self._key,
            failure.worker,
            failure.reason,
            failure.why,
            status=None if failure.answer is None else failure.answer.status,
            answering=self._answer.started,
            fetching=failure.fetching,
        )

    async def _after(self, failure: Failed, held: WholeAnswer | None) -> Dispatch | None:
        """What follows a failed attempt: another one, or None once the client has its answer.

        `held`: what the worker answered, if it was one whole answer.
        """
        answer = await self._control.failed(failure)
        if failure.answering:
            raise WorkerFailed(f"The worker broke off in mid-answer: {failure.why}")
        if held is not None and isinstance(answer, Reject) and answer.kind is RejectKind.RELAY:
            self._record.passed_on(held.status, failure.why)
            await self._answer.whole(held.status, list(held.headers), held.body)
            return None
        return None if answer is None else taken(answer)

    async def _admit(self, facts: Facts | Unscheduled) -> Dispatch:
        """Where the request may run; waits until it may. Raises what control turns it away with."""
        self._admitted = True
        dispatch = taken(await self._control.admit(facts))
        if dispatch.limits:
            self._answer.tell_limits(dispatch.limits)
        return dispatch

    def _target(self) -> bytes:
        """Path and query as the client sent them."""
        path: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        query: bytes = self._scope["query_string"]
        return path.partition(b"?")[0] + b"?" + query if query else path


T = TypeVar("T")


def taken(answer: T | Reject) -> T:
    """Control's answer. Raises the error that a rejection means."""
    if isinstance(answer, Reject):
        raise error_of(answer)
    return answer


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, limit: int, hold: Callable[[int], None]
) -> Body:
    """The whole body of a request. Raises BodyTooLarge, UploadTimeout, ClientGone, or what `hold` raises.

    `hold` is told of every piece that is kept, before it is.

    A body beyond the limit is still taken in for a while, and thrown away: to close on a client that is writing
    would reset the connection before it has read why.
    """
    length = headers.get(b"content-length", b"") if b"expect" in headers else b""
    if length.isdigit() and (announced := int(length)) > limit:
        raise BodyTooLarge(f"The request body has {announced} bytes; the limit is {limit}.")
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request" and len(message["body"]) <= limit:
        whole: bytes = message["body"]
        hold(len(whole))
        return whole if len(whole) <= INLINE_BYTES else Pieces((whole,))
    try:
        async with asyncio.timeout(_UPLOAD_WITHIN_S):
            return await _read_pieces(message, receive, limit, hold)
    except TimeoutError:
        raise UploadTimeout(f"The request body did not arrive within {_UPLOAD_WITHIN_S:.0f} s.") from None


async def _read_pieces(message: Message, receive: Receive, limit: int, hold: Callable[[int], None]) -> Body:
    collected = PieceCollector()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            hold(len(piece))
            collected.add(piece)
        elif size > _DISCARDED * limit or not message.get("more_body"):
            raise BodyTooLarge(f"The request body has more than {limit} bytes, which is the limit.")
        if not message.get("more_body"):
            return collected.finished(INLINE_BYTES)
        message = await receive()


def address_of(scope: Scope) -> str:
    """The address of the client's end of the connection; empty where the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is fit to be sent on, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and value.isascii() and _is_header_value(text := str(value, "ascii")):
            return text
    return f"{getrandbits(128):032x}"


def _is_header_value(text: str) -> bool:
    return 0 < len(text) <= _ID_BYTES and text.isascii() and text.isprintable()
