"""The life of a request, from its first byte to its one end.

    accept ─► read ─► identify ─► serve ─► end

`serve` is what differs: `inference` asks the scheduler for a worker, `passage` takes one directly. Each step may
raise a `RequestError`, which becomes the answer. A client that leaves cancels the task that lives this life,
wherever it stands. `_end` runs on every path and gives back what was taken: the place in the queue or on a worker,
the client's lease, the count of open requests.
"""

import asyncio
import logging
import uuid
from abc import ABC, abstractmethod
from typing import Any

from policies.model import Outcome
from router.answer import Answer, Receive, Scope, Send
from router.clients import Client
from router.errors import BodyTooLarge, RequestError
from router.quota import Lease
from router.record import Record
from router.state import Gateway

_log = logging.getLogger("fairlead.gateway")

_ID_BYTES = 128
"""A longer X-Request-Id is replaced."""


class ClientGone(Exception):  # noqa: N818 - what happened
    """The client left before its request was complete."""


class Life(ABC):
    """One request. Its attributes fill up as it goes along; `_end` gives back what they hold."""

    __slots__ = ("_answer", "_gateway", "_gone", "_id", "_lease", "_receive", "_record", "_scope")

    def __init__(
        self, gateway: Gateway, scope: Scope, receive: Receive, send: Send, *, anthropic: bool = False
    ) -> None:
        self._gateway = gateway
        self._scope = scope
        self._receive = receive
        self._id = request_id(scope)
        self._answer = Answer(send, self._id.encode(), anthropic=anthropic)
        self._record = Record(self._id, scope["path"], gateway.loop.time())
        self._lease: Lease | None = None
        self._gone = False

    async def live(self) -> None:
        """Answer the request, or end it in the way that went wrong."""
        self._gateway.open += 1
        try:
            await self._attempt()
        except ClientGone:
            self._record.outcome = Outcome.CANCELLED
        except asyncio.CancelledError:
            self._record.outcome = Outcome.CANCELLED
            if not self._gone:
                raise
            # The cancellation was our own: the client has left, and nobody above needs to hear of it.
        finally:
            self._gateway.open -= 1
            self._end(self._gateway.loop.time())

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
        self._record.write(now, self._gateway.metrics, self._gateway.request_log)

    async def _attempt(self) -> None:
        watch: asyncio.Task[None] | None = None
        try:
            self._gateway.check_room()
            if self._gateway.clients.keys_needed:
                self._client()  # a stranger is turned away before the upload is taken in
            body = await read_body(self._scope, self._receive, self._gateway.limits.body_bytes)
            watch = self._gateway.loop.create_task(self._watch(asyncio.current_task()))
            await self._serve(body)
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

    async def _watch(self, task: "asyncio.Task[Any] | None") -> None:
        """Notice that the client leaves, and cut short whatever its request waits for."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if task is not None:
            task.cancel()

    def _client(self, user: str | None = None) -> Client:
        """Who is asking. Raises Unauthorized."""
        headers = dict(self._scope["headers"])
        client = self._gateway.clients.identify(headers.get(b"authorization"), headers.get(b"x-api-key"), user)
        self._record.client = client.path
        return client

    def _target(self) -> bytes:
        """Path and query as the client sent them."""
        path: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        query: bytes = self._scope["query_string"]
        return path.partition(b"?")[0] + b"?" + query if query else path


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request, at most `limit` bytes. Raises BodyTooLarge, or ClientGone."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise BodyTooLarge(f"The request body has {int(value)} bytes; the limit is {limit}.")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(f"The request body has more than {limit} bytes, which is the limit.")
        pieces.append(piece)
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id where it is fit to be sent on, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= _ID_BYTES and value.isascii():
            text: str = value.decode()
            if text.isprintable():
                return text
    return uuid.uuid4().hex
