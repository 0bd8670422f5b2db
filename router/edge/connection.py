"""The client's side of the wire: HTTP/1.1 on httptools as uvicorn's server wants it, with bounds and our errors.

uvicorn's own protocol knows no limit on header size, waits forever for the rest of a head, answers garbage in
plain text, loses the body of a request that offers another protocol (`Upgrade: h2c`, as Java's client does), and
takes twice the time and memory.

Requests may come before the answer to the one before them (RFC 9112, 9.3.2). They wait in `_pipeline`, in order,
and so does the error that what came after them is answered with: nothing is ever written into another answer.
Reading never stops meanwhile, as a transport that does not read hears of no end: a client that leaves has its
running request stopped. What may come ahead of its turn is bounded instead.
"""

import asyncio
from collections import deque
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from router.edge.errors import BadRequest, HeadersTooLarge, RequestError, to_http
from router.edge.exchange import EXTENSION, STATUS_LINES, Exchange
from router.edge.flow import Flow
from router.edge.listener import Listener
from router.edge.request_head import check, locate
from router.edge.states import Heard, Incoming, heard

HEAD_WITHIN_S = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
"""After an error response, keep reading and discarding for this long, or up to this many bytes. Closing while the
client still sends triggers a TCP reset, and it would never see the error.
"""
_MOST_AHEAD = 1024
_MOST_BYTES_AHEAD = 1 << 20
"""Requests, and bytes of them, that may come before the answer to the one before them is complete."""
_HEAD, _BODY, _REFUSED = Incoming.HEAD, Incoming.BODY, Incoming.REFUSED
_FRAMING = (b"content-length", b"transfer-encoding")
_ASGI = {"version": "3.0", "spec_version": "2.3"}


def connection_class(listener: Listener) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, for the connections of this listener."""
    return type("ListenersConnection", (Connection,), {"listener": listener, "__slots__": ()})


class Connection(asyncio.Protocol):
    """One client connection. `listener` is set by `connection_class`."""

    listener = Listener()
    __slots__ = (
        "_ahead",
        "_answering",
        "_app",
        "_app_state",
        "_arrived",
        "_body",
        "_client",
        "_deadline",
        "_discarded",
        "_error",
        "_exchange",
        "_flow",
        "_headers",
        "_incoming",
        "_loop",
        "_parser",
        "_pending",
        "_pipeline",
        "_resuming",
        "_scheme",
        "_server",
        "_state",
        "_timer",
        "_trailing",
        "_transport",
        "_turned",
        "_url",
        "on_body",
    )

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app = config.loaded_app
        self._app_state = app_state
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._body: list[bytes] = []
        """Of a request, as far as it is in the data at hand."""
        self.on_body = self._body.append  # straight from llhttp into the list, without a Python frame
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._exchange: Exchange | None = None
        """Of the request that came last: its body is what is read now."""
        self._answering: Exchange | None = None
        """The one whose turn it is, until its answer is complete."""
        self._pipeline: deque[Exchange] = deque()
        """Those whose turn comes after it."""
        self._ahead = 0
        """Bytes that came while any of them waited."""
        self._arrived = 0
        """Bytes at hand."""
        self._pending = 0
        """Bytes received of a head that is not complete, before those at hand."""
        self._trailing = 0
        """Bytes of headers behind the body."""
        self._turned = False
        """A message has ended within the data at hand."""
        self._resuming = False
        """A new parser is being told how the body at hand is framed."""
        self._error: RequestError | None = None
        """What the data at hand is answered with, once its turn has come."""
        self._discarded = 0
        """Bytes thrown away since then."""
        self._incoming = _HEAD
        self._deadline: float | None = None
        """When to close unless something happens before."""
        self._timer: asyncio.TimerHandle | None = None
        """Due at the deadline or before it: a deadline that moves on does not cost a timer each time."""

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # what follows is not ours to judge
        return parser

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        listener = self.listener
        self._flow = Flow(self._transport, self._loop, listener.held, listener.send_timeout_s)
        self._server = _address(transport.get_extra_info("sockname"))
        self._client = _address(transport.get_extra_info("peername"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's own protocols are meant
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flow.lost()
        if exc is None:
            self._transport.close()
        self._parser = None  # the two refer to each other
        answering, waiting = self._answering, tuple(self._pipeline)
        self._answering = self._exchange = None
        self._pipeline.clear()
        if answering is not None:
            answering.lost()
        for exchange in waiting:
            exchange.lost()

    def eof_received(self) -> None:
        """Nothing more is asked; the transport closes."""

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._flow.resume_writing()

    def shutdown(self) -> None:
        """Uvicorn's server ends: close now, or after the answer under way."""
        if self._answering is None:
            self._flow.close()
        else:
            self._answering.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._incoming is _REFUSED:
            self._discarded += len(data)
            if self._discarded > _LINGER_BYTES:
                self._flow.close()
            return
        self._turned = False
        self._arrived = len(data)
        self._parse(data)
        self._pass_on_body()
        if self._pipeline:
            self._ahead += len(data)
            if self._ahead > _MOST_BYTES_AHEAD:
                self._refuse(_too_far_ahead())
        # A header that never ends is not seen by `on_header`: what is still to be parsed counts as well.
        if self._incoming is not _HEAD or self._turned:
            self._pending = 0
        else:
            self._pending += len(data)
            if self._pending > self.listener.header_bytes:
                self._refuse(self._too_large())

    def _parse(self, data: bytes) -> None:
        """Let the parser read it all; each request that offers another protocol stops it once."""
        rest: bytes | memoryview = data
        while rest:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(rest)[upgrade.args[0] :]
                self._decline_upgrade()
            except httptools.HttpParserError:
                error = self._error or BadRequest("Invalid HTTP request received: it is not HTTP/1.1.")
                self._refuse(error)
                return
            else:
                return

    def _decline_upgrade(self) -> None:
        """Go on in HTTP/1.1: what follows the head is its body, which the parser took for the other protocol's."""
        framing = b"".join(name + b": " + value + b"\r\n" for name, value in self._headers if name in _FRAMING)
        if framing:
            self._parser = self._new_parser()
            self._resuming = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self._resuming = False

    # -- what the parser finds

    def on_message_begin(self) -> None:
        if not self._resuming:
            self._url = b""
            self._headers = []
            self._trailing = 0
            self._incoming = heard(self._incoming, Heard.BEGIN)
            self._await_head()

    def on_url(self, url: bytes) -> None:
        if self._incoming is _HEAD:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is _HEAD:
            self._headers.append((name.lower(), value))
        else:
            self._trailing += len(name) + len(value) + 4
            if self._trailing > self.listener.header_bytes:
                self._stop(self._too_large())

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        headers, parser, listener = self._headers, self._parser, self.listener
        # Counted only if it can be too much: nearly always all that has come is less than the bound.
        if self._pending + self._arrived > listener.header_bytes:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > listener.header_bytes:
                self._stop(self._too_large())
        if len(self._pipeline) >= _MOST_AHEAD:
            self._stop(_too_far_ahead())
        version, method = parser.get_http_version(), parser.get_method()
        try:
            expects_continue = check(version, method, headers)
        except RequestError as error:
            self._stop(error)
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": method.decode("ascii"),
            "root_path": "",
            "headers": headers,
            "state": self._app_state.copy(),
        }
        locate(self._url, scope)
        self._incoming = heard(self._incoming, Heard.HEADERS)
        self._deadline = None
        exchange = self._exchange = Exchange(
            scope,
            self._transport,
            self._flow,
            self._added(headers),
            listener=listener,
            done=self._answered,
            expects_continue=expects_continue,
            keep_alive=parser.should_keep_alive(),
        )
        scope["extensions"] = {EXTENSION: exchange}
        if self._answering is None:
            self._begin(exchange)
        else:
            exchange.in_turn = False
            self._pipeline.append(exchange)

    def _pass_on_body(self) -> None:
        """Give the exchange what has come of its body, in one piece: it may have been a chunk for each byte."""
        pieces = self._body
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            exchange = self._exchange
            if exchange is not None and not exchange.complete:
                exchange.take(body)

    def on_message_complete(self) -> None:
        self._turned = True
        self._pass_on_body()
        if self._parser.should_upgrade() and any(name in _FRAMING for name, _ in self._headers):
            return  # the body is still to come, see `_decline_upgrade`
        self._incoming = heard(self._incoming, Heard.END)
        exchange = self._exchange
        if exchange is not None and not exchange.complete:
            exchange.more_body = False
            exchange.wake()

    # -- answering

    def _added(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What the answer to a request with these headers has beside its own."""
        cors = self.listener.cors
        return self._state.default_headers if cors is None else self._state.default_headers + cors.headers(headers)

    def _begin(self, exchange: Exchange) -> None:
        self._answering = exchange
        exchange.in_turn = True
        tasks = self._state.tasks
        task = self._loop.create_task(exchange.run(self._app))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _answered(self) -> None:
        """An answer is complete: the next one, or wait for a request."""
        self._state.total_requests += 1
        self._answering = None
        if self._transport.is_closing():
            return
        self._flow.resume_reading()
        if self._pipeline:
            self._begin(self._pipeline.popleft())
            self._ahead = self._ahead if self._pipeline else 0
        elif self._incoming is _REFUSED:
            self._write_error()
        elif self._incoming is _HEAD:
            self._await_head()
        else:
            self._set_deadline(self.listener.keep_alive_s)

    # -- refusing

    def _stop(self, error: RequestError) -> None:
        """Have the parser stopped; `_parse` refuses then."""
        self._error = error
        raise error

    def _too_large(self) -> RequestError:
        return HeadersTooLarge(f"Request line and headers have more than {self.listener.header_bytes} bytes.")

    def _refuse(self, error: RequestError) -> None:
        """Answer in the API's own shape, in its turn, what is no request; take nothing more on this connection."""
        if self._incoming is _REFUSED or self._transport.is_closing():
            return
        broken = self._exchange if self._incoming is _BODY else None
        self._incoming = heard(self._incoming, Heard.REFUSE)
        self._error = error
        if broken is not None and broken is self._answering:
            if broken.started:
                broken.abort()  # in the middle of its answer an error would pass for a part of it
                return
            self._answering = None
            broken.lost()
        elif self._pipeline and broken is self._pipeline[-1]:
            self._pipeline.pop()
        elif broken is not None:
            self._flow.close()  # it has been answered before all of it came: there is no turn left
            return
        if self._answering is None:
            self._write_error()

    def _write_error(self) -> None:
        if self._error is None:
            raise RuntimeError("a refusal without an error")
        status, headers, body = to_http(self._error)
        lines = [name + b": " + value + b"\r\n" for name, value in (*self._added(self._headers), *headers)]
        self._transport.write(b"".join([STATUS_LINES[status], *lines, b"connection: close\r\n\r\n", body]))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_deadline(_LINGER_S)

    # -- the clock

    def _await_head(self) -> None:
        self._set_deadline(HEAD_WITHIN_S)

    def _set_deadline(self, within_s: float) -> None:
        deadline = self._deadline = self._loop.time() + within_s
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._due)
        elif self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._deadline is None or self._transport.is_closing() or self._answering is not None:
            return  # `_answered` sets a new deadline
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._due)
        else:
            self._flow.close()


def _too_far_ahead() -> RequestError:
    much = f"More than {_MOST_AHEAD} requests or {_MOST_BYTES_AHEAD} bytes"
    return BadRequest(f"{much} came before the answers to the requests before them.")


def _address(address: Any) -> tuple[str, int] | None:
    """Host and port as ASGI has them; None for what is no internet address."""
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and len(address) >= 2 else None
