"""One connection to a worker: HTTP/1.1 as an asyncio protocol on llhttp.

This is the code that every token passes, so it does little: nothing is scheduled, parsed or copied per chunk
beyond what llhttp does, and one call of `data_received` wakes the reader once.

A connection is *busy* while it has a response, otherwise *idle*. It goes back to the pool at the moment when
the last byte of a response was parsed, and only if nothing makes the next use doubtful: the response allows it,
the request was written in full, and no byte followed the message. (Stray line breaks after a message are no
bytes in this sense: llhttp skips them, RFC 9112 section 2.2 asks servers to.) In every other case it is closed.
"""

import asyncio
from typing import Any, Protocol, cast

import httptools

from workers.http.errors import (
    ConnectionLost,
    FirstByteTimeout,
    IdleTimeout,
    ProtocolError,
    UpstreamError,
)
from workers.http.response import Response


class Pool(Protocol):
    """Where a connection belongs. `lost` comes exactly once per connection that was opened."""

    origin: str
    buffer_bytes: int
    max_head_bytes: int

    def opened(self, connection: "Connection") -> None: ...
    def released(self, connection: "Connection") -> None: ...
    def unusable(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...


class _Unacceptable(Exception):
    """Raised in the parser's callbacks; stops the parser."""


class Connection(asyncio.Protocol):
    """See the module. The `on_...` methods are llhttp's callbacks."""

    __slots__ = (
        "_complete",
        "_fault",
        "_framing_bytes",
        "_head_there",
        "_headers",
        "_keep",
        "_parser",
        "_pieces",
        "_pool",
        "_reason",
        "_status",
        "_transfer_encoding",
        "_transport",
        "_used",
        "answering",
        "closed",
        "on_body",
        "paused",
        "quiet_ticks",
        "received",
        "response",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # straight from llhttp into the list, without a Python frame
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._used = False
        self.closed = False
        """No longer usable; from then on it only waits for `connection_lost`."""
        self.paused = False
        """We have stopped reading: the response holds as much as it may."""
        self.response: Response | None = None
        self.received = 0
        """Bytes received for the present response."""
        self.answering = False
        """A piece of the response's body has come."""
        self.quiet_ticks = 0
        """Ticks of the pool's clock since the last byte, either way."""
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._framing_bytes = 0
        self._head_there = False
        self._complete = False
        self._keep = False
        self._fault = ""
        self._transfer_encoding: bytes | None = None

    # For the pool and the response.

    def start(self, response: Response, head: bytes, body: bytes, *, resend: bool) -> None:
        """Write a request.

        With `resend` it is kept until the first byte of the response, in case that this connection has died
        since its last use.
        """
        self._reset()
        self.received = 0
        self.answering = False
        self.quiet_ticks = 0
        self.response = response
        response.connection = self
        if resend and self._used:
            response.request = (head, body)
        if self.closed:  # by the server, between the moment it was ours and this one
            self._lose("closed by the worker before the request was written")
            return
        self._used = True
        # Everything is given to the transport at once: what waits there is the request itself, no more.
        if len(body) > 65_536:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    def resume(self) -> None:
        if self.paused and not self.closed:
            self.paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close at once, without waiting for what is still to be written."""
        if not self.closed:
            self.closed = True
            self._pool.unusable(self)
            self._transport.abort()

    def drop(self, error: UpstreamError) -> None:
        """Close, and fail the response if there is one."""
        response, self.response = self.response, None
        self.close()
        if response is not None:
            response.failed(error)

    def tick(self, first_byte_ticks: int, first_byte_s: float, idle_ticks: int, idle_s: float) -> None:
        """The pool's clock: one more tick without a byte. Silence that we cause ourselves does not count."""
        if self.response is None or self.paused:
            return
        self.quiet_ticks += 1
        if not self.answering:
            if self.quiet_ticks > first_byte_ticks:
                what = f"no first byte within {first_byte_s:g} s"
                self.drop(FirstByteTimeout(self._pool.origin, what, self.received))
        elif self.quiet_ticks > idle_ticks:
            what = f"silent for {idle_s:g} s after {self.received} bytes"
            self.drop(IdleTimeout(self._pool.origin, what, self.received))

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None:  # nobody asked: the server does not speak our protocol, or is about to close
            self.close()
            return
        if not self.received:
            response.request = None
        size = len(data)
        self.received += size
        self.quiet_ticks = 0
        in_body = self._head_there
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:  # we, or llhttp, refuse
            self._keep = False
            if not self._complete and not self._fault:
                self._fault = f"malformed response: {error}"
        pieces = self._pieces
        if pieces:
            self.answering = True
            self._framing_bytes = 0
            response.arrived(pieces, size)
            pieces.clear()
        elif in_body == self._head_there and not self._complete:
            self._count_framing(size)
        if self._complete:
            self._finish(response)
        elif self._fault:
            self.drop(ProtocolError(self._pool.origin, self._fault, self.received))
        elif response.buffered > self._pool.buffer_bytes and not self.paused:
            self.paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        if self.response is not None and self._until_close():
            self._keep = False
            self._finish(self.response)
        else:
            self._lose("closed by the worker")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"connection lost: {exc}" if exc is not None else "closed by the worker")
        self._parser = cast("Any", None)  # parser and connection refer to each other
        self._pool.lost(self)

    def _finish(self, response: Response) -> None:
        """The message is complete: give the connection back, or close it, and only then tell the reader."""
        self.response = None
        if self.paused:
            self.resume()
        if self._keep and not self.closed and not self._transport.get_write_buffer_size():
            self._pool.released(self)
        else:
            self.close()
        response.ended()

    def _lose(self, what: str) -> None:
        """The other side is gone. A request that a kept connection never heard of may be sent again."""
        response = self.response
        if response is not None and response.request is not None:
            self.response = None
            response.unheard(*response.request)
        if response is not None and self.received:
            what += f" after {self.received} bytes, in mid-{'body' if self._head_there else 'head'}"
        self.drop(ConnectionLost(self._pool.origin, what, self.received))

    def _count_framing(self, size: int) -> None:
        """Bound what is no body and was not given to us yet: partial heads, trailers, chunk extensions."""
        self._framing_bytes += size
        if self._framing_bytes > self._pool.max_head_bytes and not self._fault:
            what = "between pieces of the body" if self._head_there else "in the response head"
            self._fault = f"more than {self._pool.max_head_bytes} bytes {what}"

    def _until_close(self) -> bool:
        """The body is delimited by the end of the connection (RFC 9112, 6.3 rule 8)."""
        return self._head_there and all(
            name not in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        )

    # llhttp's callbacks. `on_body` is set in __init__.

    def on_message_begin(self) -> None:
        if self._complete:  # the server went on after the end: whose response would that be?
            raise _Unacceptable

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_there:
            return  # a trailer
        name = name.lower()
        value = value.strip(b" \t")
        if name == b"transfer-encoding":
            self._check_coding(value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        if status < 200:
            self._check_interim(status)
            return
        self._keep = self._parser.should_keep_alive()
        if self._transfer_encoding is not None and self._parser.get_http_version() == "1.0":
            self._keep = False  # RFC 9112, 6.1: the framing is not to be trusted beyond this message
        limit = self._pool.max_head_bytes
        if self.received > limit and sum(len(name) + len(value) + 4 for name, value in self._headers) > limit:
            self._refuse(f"more than {limit} bytes in the response head")
        self._head_there = True
        self._framing_bytes = 0
        response = cast("Response", self.response)
        response.head_arrived(status, self._reason, self._headers)
        if response.bodiless:
            # llhttp does not know the method and would wait for a body: stop it here, close the connection.
            self._complete = True
            raise _Unacceptable

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self._complete = True
        else:
            self._headers = []
            self._reason = b""

    def _check_coding(self, value: bytes) -> None:
        if self._transfer_encoding is not None or value.lower() != b"chunked":
            self._refuse(f"transfer-encoding {value[:40]!r} is not supported")
        self._transfer_encoding = value

    def _check_interim(self, status: int) -> None:
        if status < 100 or status == 101:
            self._refuse(f"status {status} was not asked for")
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers):
            self._refuse(f"an interim response ({status}) with a body")

    def _refuse(self, fault: str) -> None:
        self._fault = fault
        raise _Unacceptable
