"""The client's side of the wire: uvicorn's HTTP protocol with bounds on what comes before a body, and our errors.

uvicorn on httptools knows no limit on header size, waits forever for the rest of a head, answers garbage in plain
text, and loses the body of a request that offers another protocol (`Upgrade: h2c`, as Java's client does).
"""

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router.cycle import EXTENSION, Cycle
from router.errors import BadRequest, HeadersTooLarge, RequestError, to_http

HEAD_WITHIN_S = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
"""For so long what still comes in after a refusal is thrown away: to close on a client that is writing would reset
the connection before it has read why.
"""
_FRAMING = (b"content-length", b"transfer-encoding")


def listener(header_bytes: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with this bound on request line and headers together."""
    return type("BoundedListener", (Listener,), {"header_bytes": header_bytes})


class Listener(HttpToolsProtocol):
    """One client connection. `header_bytes` is set by `listener`."""

    header_bytes = 65536
    cycle: Cycle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_size = 0
        self._pending = 0
        """Bytes received of a head that is not complete."""
        self._turned = False
        """A message has ended within the data at hand."""
        self._resuming = False
        """A new parser is being told how the body at hand is framed."""
        self._refusal: RequestError | None = None
        self._discarded: int | None = None
        """Bytes thrown away since the refusal; None without one."""
        self._heading = False
        """A head is awaited, or has begun and is not complete."""
        self._deadline: float | None = None
        """When to close unless something happens before."""
        self._timer: asyncio.TimerHandle | None = None
        """Due at the deadline or before it: a deadline that moves on does not cost a timer each time."""

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.lost()

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > _LINGER_BYTES:
                self.transport.close()
            return
        self._turned = False
        self._parse(data)
        # A header that never ends is not seen by `on_header`: what is still to be parsed counts as well.
        if not self._heading or self._turned:
            self._pending = 0
        else:
            self._pending += len(data)
            if self._pending > self.header_bytes:
                self._refuse(self._too_large())

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadRequest("Invalid HTTP request received: it is not HTTP/1.1."))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1: what follows the head is its body, which the parser took for the other protocol's."""
        framing = b"".join(name + b": " + value + b"\r\n" for name, value in self.headers if name in _FRAMING)
        if framing:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._resuming = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self._resuming = False
        if rest:
            self._parse(rest)

    # -- what the parser finds

    def on_message_begin(self) -> None:
        if not self._resuming:
            super().on_message_begin()
            self._head_size = 0
            self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._resuming:
            self._count(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._resuming:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        self._heading = False
        self._deadline = None
        version = self.parser.get_http_version()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        _locate(self.url, scope)
        previous = self.cycle
        cycle = self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        scope["extensions"] = {EXTENSION: cycle}
        if previous is None or previous.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:  # pipelined: its turn comes when the answer before it has been given
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        self._turned = True
        offered = self.parser.should_upgrade() and any(name in _FRAMING for name, _ in self.headers)
        if not offered:  # otherwise the body is still to come, see `_decline_upgrade`
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif not self._heading:
            self._set_deadline(self.timeout_keep_alive)

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self.header_bytes:
            self._refusal = self._too_large()
            raise self._refusal

    # -- refusing

    def _too_large(self) -> RequestError:
        return HeadersTooLarge(f"Request line and headers have more than {self.header_bytes} bytes.")

    def _refuse(self, error: RequestError) -> None:
        """Answer what never became a request in the API's own shape, and take nothing more on this connection."""
        cycle = self.cycle
        if self._discarded is not None or self.transport.is_closing():
            return
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # in the middle of another answer an error would pass for a part of it
            return
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            cycle.lost()
        status, headers, body = to_http(error)
        lines = [STATUS_LINE[status], *(name + b": " + value + b"\r\n" for name, value in headers)]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self._discarded = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_deadline(_LINGER_S)

    # -- the clock

    def _await_head(self) -> None:
        self._heading = True
        self._set_deadline(HEAD_WITHIN_S)

    def _set_deadline(self, within_s: float) -> None:
        deadline = self._deadline = self.loop.time() + within_s
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._ring)
        elif self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = self.loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None or self.transport.is_closing():
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._ring)
        else:
            self.transport.close()


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
