"""The life of a request, from its first byte to its one end.

    accept ─► read ─► identify ─► serve ─► end

`serve` is what differs: `inference` asks the scheduler for a worker, `passage` takes one directly. Each step may
raise a `RequestError`, which becomes the answer. A client that leaves cancels the task that lives this life,
wherever it stands. `_end` runs on every path and gives back what was taken: the place in the queue or on a worker,
the client's lease, the count of open requests.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import getrandbits
from typing import Any

from policies.model import Outcome
from router.control.parties.identity import Client
from router.control.parties.quotas import Lease
from router.control.state import Gateway
from router.edge.errors import BodyTooLarge, Dialect, RequestError, Unavailable, UploadTimeout
from router.edge.exchange import wire_of
from router.edge.execution.record import Record
from router.edge.response import Message, Receive, ResponseWriter, Scope, Send

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
        "_answer",
        "_gateway",
        "_gone",
        "_id",
        "_lease",
        "_owner",
        "_receive",
        "_record",
        "_scope",
        "_task",
        "_wire",
    )

    def __init__(
        self, gateway: Gateway, scope: Scope, receive: Receive, send: Send, dialect: Dialect = Dialect.OPENAI
    ) -> None:
        self._gateway = gateway
        self._scope = scope
        self._receive = receive
        self._id = request_id(scope)
        self._wire = wire_of(scope)
        self._answer = ResponseWriter(send, self._id.encode(), dialect, self._wire)
        self._record = Record(self._id, scope["path"], gateway.loop.time())
        self._lease: Lease | None = None
        self._gone = False
        self._owner: Client | None = None
        self._task: asyncio.Task[Any] | None = None

    async def live(self) -> None:
        """Answer the request, or end it in the way that went wrong."""
        self._gateway.open += 1
        try:
            await self._attempt()
        except ClientGone:
            self._record.outcome = Outcome.CANCELLED
        except asyncio.CancelledError:
            # Ours in both cases: nobody above needs to hear of it.
            if self._gone:
                self._record.outcome = Outcome.CANCELLED
            elif self._gateway.draining:
                await self._cut_off()
            else:
                raise
        finally:
            self._gateway.open -= 1
            self._end(self._gateway.loop.time())

    async def _cut_off(self) -> None:
        """The gateway ends before the request does."""
        error = Unavailable("The gateway is shutting down.", retry_after_s=1)
        self._record.refused(error)
        await self._answer.refuse(error)

    @abstractmethod
    async def _serve(self, body: bytes) -> None:
        """Do what the request asks for, and answer it."""

    def _end(self, now: float) -> None:
        """Every path leads here, once: nothing of the request stays behind."""
        if self._lease is not None:
            usage = self._record.usage
            if usage is not None:
                self._lease.settle(usage.input_tokens + usage.output_tokens, now)
            self._lease.release()
        self._record.status = self._answer.status
        gateway = self._gateway
        self._record.write(now, gateway.metrics, gateway.request_log, gateway.decisions)

    async def _attempt(self) -> None:
        watch: asyncio.Task[None] | None = None
        try:
            self._gateway.check_room()
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

    async def _received(self) -> bytes:
        """The body of the request. A stranger is turned away before the upload is taken in."""
        headers = dict(self._scope["headers"])
        self._authenticate(headers)
        return await read_body(headers, self._receive, self._gateway.limits.body_bytes)

    def _watch(self) -> "asyncio.Task[None] | None":
        """Notice that the client leaves; with a server that does not tell, in a task."""
        self._task = asyncio.current_task()
        if self._wire is not None:
            self._wire.watch(self._left)
            return None
        return self._gateway.loop.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        """The client has gone: cut short whatever its request waits for."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def _authenticate(self, headers: Mapping[bytes, bytes]) -> None:
        """Whose key it is. Raises Unauthorized."""
        owner = self._owner = self._gateway.clients.owner(headers.get(b"authorization"), headers.get(b"x-api-key"))
        if owner is not None:
            self._record.client, self._record.weight = owner.path, owner.weight

    def _client(self, user: str | None) -> Client:
        """Who is asking."""
        client = self._gateway.clients.part(self._owner, user)
        self._record.client, self._record.weight = client.path, client.weight
        return client

    def _target(self) -> bytes:
        """Path and query as the client sent them."""
        path: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        query: bytes = self._scope["query_string"]
        return path.partition(b"?")[0] + b"?" + query if query else path


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body of a request. Raises BodyTooLarge, UploadTimeout, or ClientGone.

    A body beyond the limit is still taken in for a while, and thrown away: to close on a client that is writing
    would reset the connection before it has read why.
    """
    length = headers.get(b"content-length", b"") if b"expect" in headers else b""
    if length.isdigit() and (announced := int(length)) > limit:
        raise BodyTooLarge(f"The request body has {announced} bytes; the limit is {limit}.")
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request" and len(message["body"]) <= limit:
        whole: bytes = message["body"]
        return whole
    try:
        async with asyncio.timeout(_UPLOAD_WITHIN_S):
            return await _read_pieces(message, receive, limit)
    except TimeoutError:
        raise UploadTimeout(f"The request body did not arrive within {_UPLOAD_WITHIN_S:.0f} s.") from None


async def _read_pieces(message: Message, receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        elif size > _DISCARDED * limit or not message.get("more_body"):
            raise BodyTooLarge(f"The request body has more than {limit} bytes, which is the limit.")
        if not message.get("more_body"):
            return b"".join(pieces)
        message = await receive()


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is fit to be sent on, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= _ID_BYTES and value.isascii():
            text: str = value.decode()
            if text.isprintable():
                return text
    return f"{getrandbits(128):032x}"
