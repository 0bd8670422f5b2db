"""The client's side of the wire: HTTP/1.1 on httptools as uvicorn's server wants it, with bounds and our errors.

uvicorn's own protocol knows no limit on header size, waits forever for the rest of a head, answers garbage in
plain text, loses the body of a request that offers another protocol (`Upgrade: h2c`, as Java's client does), and
takes twice the time and memory.
"""

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from router.edge.errors import BadRequest, HeadersTooLarge, RequestError, to_http
from router.edge.exchange import EXTENSION, Exchange, Flow
from router.edge.states import Heard, Incoming, heard

HEAD_WITHIN_S = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
"""For so long what still comes in after a refusal is thrown away: to close on a client that is writing would reset
the connection before it has read why.
"""
_HEAD, _REFUSED = Incoming.HEAD, Incoming.REFUSED
_FRAMING = (b"content-length", b"transfer-encoding")
_ASGI = {"version": "3.0", "spec_version": "2.3"}


def connection_class(header_bytes: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with this bound on request line and headers together."""
    return type("BoundedConnection", (Connection,), {"header_bytes": header_bytes, "__slots__": ()})


class Connection(asyncio.Protocol):
    """One client connection. `header_bytes` is set by `connection_class`."""

    header_bytes = 65536
    __slots__ = (
        "_app",
        "_app_state",
        "_arrived",
        "_client",
        "_deadline",
        "_discarded",
        "_exchange",
        "_flow",
        "_headers",
        "_incoming",
        "_keep_alive_s",
        "_loop",
        "_parser",
        "_pending",
        "_pipeline",
        "_refusal",
        "_resuming",
        "_scheme",
        "_server",
        "_state",
        "_timer",
        "_trailing",
        "_transport",
        "_turned",
        "_url",
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
        self._keep_alive_s = config.timeout_keep_alive
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._exchange: Exchange | None = None
        """Of the request that came last."""
        self._pipeline: deque[Exchange] | None = None
        """Requests that came before the answer to the one before them; their turn comes with its end."""
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
        self._refusal: RequestError | None = None
        self._discarded = 0
        """Bytes thrown away since the refusal."""
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
        self._flow = Flow(self._transport)
        self._server = get_local_addr(self._transport)
        self._client = get_remote_addr(self._transport)
        self._scheme = "https" if is_ssl(self._transport) else "http"
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's own protocols are meant
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flow.resume_writing()
        if exc is None:
            self._transport.close()
        self._parser = None  # the two refer to each other
        if self._exchange is not None:
            self._exchange.lost()

    def eof_received(self) -> None:
        """Nothing more is asked; the transport closes."""

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._flow.resume_writing()

    def shutdown(self) -> None:
        """Uvicorn's server ends: close now, or after the answer under way."""
        if self._exchange is None or self._exchange.complete:
            self._transport.close()
        else:
            self._exchange.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._incoming is _REFUSED:
            self._discarded += len(data)
            if self._discarded > _LINGER_BYTES:
                self._transport.close()
            return
        self._turned = False
        self._arrived = len(data)
        self._parse(data)
        # A header that never ends is not seen by `on_header`: what is still to be parsed counts as well.
        if self._incoming is not _HEAD or self._turned:
            self._pending = 0
        else:
            self._pending += len(data)
            if self._pending > self.header_bytes:
                self._refuse(self._too_large())

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadRequest("Invalid HTTP request received: it is not HTTP/1.1."))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1: what follows the head is its body, which the parser took for the other protocol's."""
        framing = b"".join(name + b": " + value + b"\r\n" for name, value in self._headers if name in _FRAMING)
        if framing:
            self._parser = self._new_parser()
            self._resuming = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self._resuming = False
        if rest:
            self._parse(rest)

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
            if self._trailing > self.header_bytes:
                self._give_up()

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        self._incoming = heard(self._incoming, Heard.HEADERS)
        self._deadline = None
        headers = self._headers
        # Counted only if it can be too much: nearly always all that has come is less than the bound.
        if self._pending + self._arrived > self.header_bytes:
            size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > self.header_bytes:
                self._give_up()
        parser, previous = self._parser, self._exchange
        version = parser.get_http_version()
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": parser.get_method().decode("ascii"),
            "root_path": "",
            "headers": headers,
            "state": self._app_state.copy(),
        }
        _locate(self._url, scope)
        exchange = self._exchange = Exchange(
            scope,
            self._transport,
            self._flow,
            self._state.default_headers,
            self._answered,
            expects_continue=b"100-continue" in [value.lower() for name, value in headers if name == b"expect"],
            keep_alive=version != "1.0" and parser.should_keep_alive(),
        )
        scope["extensions"] = {EXTENSION: exchange}
        if previous is None or previous.complete:
            self._begin(exchange)
        else:
            self._flow.pause_reading()
            self._pipeline = self._pipeline or deque()
            self._pipeline.append(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.complete:
            exchange.take(body)

    def on_message_complete(self) -> None:
        self._turned = True
        if self._parser.should_upgrade() and any(name in _FRAMING for name, _ in self._headers):
            return  # the body is still to come, see `_decline_upgrade`
        self._incoming = heard(self._incoming, Heard.END)
        exchange = self._exchange
        if exchange is not None and not exchange.complete:
            exchange.more_body = False
            exchange.wake()

    # -- answering

    def _begin(self, exchange: Exchange) -> None:
        tasks = self._state.tasks
        task = self._loop.create_task(exchange.run(self._app))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _answered(self) -> None:
        """An answer is complete: the next one, or wait for a request."""
        self._state.total_requests += 1
        if self._transport.is_closing():
            return
        self._flow.resume_reading()
        if self._pipeline:
            self._begin(self._pipeline.popleft())
        elif self._incoming is not _HEAD:
            self._set_deadline(self._keep_alive_s)

    def _give_up(self) -> None:
        """Stop the parser: too much of a head."""
        self._refusal = self._too_large()
        raise self._refusal

    # -- refusing

    def _too_large(self) -> RequestError:
        return HeadersTooLarge(f"Request line and headers have more than {self.header_bytes} bytes.")

    def _refuse(self, error: RequestError) -> None:
        """Answer what never became a request in the API's own shape, and take nothing more on this connection."""
        exchange = self._exchange
        if self._incoming is _REFUSED or self._transport.is_closing():
            return
        if exchange is not None and exchange.started and not exchange.complete:
            self._transport.close()  # in the middle of another answer an error would pass for a part of it
            return
        if exchange is not None and not exchange.complete:
            exchange.lost()
        status, headers, body = to_http(error)
        lines = [STATUS_LINE[status], *(name + b": " + value + b"\r\n" for name, value in headers)]
        self._transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self._incoming = heard(self._incoming, Heard.REFUSE)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_deadline(_LINGER_S)

    # -- the clock

    def _await_head(self) -> None:
        self._set_deadline(HEAD_WITHIN_S)

    def _set_deadline(self, within_s: float) -> None:
        deadline = self._deadline = self._loop.time() + within_s
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._ring)
        elif self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None or self._transport.is_closing():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
        else:
            self._transport.close()


def _locate(url: bytes, scope: dict[str, Any]) -> None:
    """Path and query of a request target; most targets are nothing but a path."""
    query = b""
    if not url.startswith(b"/") or b"?" in url or b"#" in url:
        parsed = httptools.parse_url(url)
        url, query = parsed.path, parsed.query or b""
    path = url.decode("ascii")
    scope["path"] = unquote(path) if "%" in path else path
    scope["raw_path"] = url
    scope["query_string"] = query
