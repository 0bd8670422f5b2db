"""One connection to a worker: HTTP/1.1 as an asyncio protocol on llhttp.

This is the code that every token passes, so it does little: nothing is scheduled, parsed or copied per chunk
beyond what llhttp does, and one call of `data_received` wakes the reader once.

A connection is *busy* while it has a response, otherwise *idle*. It goes back to the pool at the moment when
the last byte of a response was parsed, and only if nothing makes the next use doubtful: the response allows it,
the request was written in full, and no byte followed the message. (Stray line breaks after a message are no
bytes in this sense: llhttp skips them, RFC 9112 section 2.2 asks servers to.) In every other case it is closed.

A request is written once. A kept connection that dies before it answers fails the response as any other one does
(`ConnectionLost`): the worker may have read the request and begun to generate, so whether it runs again is for the
caller to decide (RFC 9110, 9.2.2: a client must not repeat a request that is not idempotent by itself).

A body in several objects is handed to the transport in portions, each once the one before it has left: a single
write of 32 MiB would hold the event loop for as long as the kernel takes to copy it. A response that ends before
that ends the sending as well.

Only pieces of the body count as a sign of life. A worker that trickles its head, interim responses or the framing
between two pieces times out as soon as one that says nothing.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import httptools

from workers.http.errors import (
    AnswerTimeout,
    ConnectionLost,
    FirstByteTimeout,
    Frozen,
    IdleTimeout,
    ProtocolError,
    UpstreamError,
)
from workers.http.response import Response

Buffer = bytes | memoryview
_PORTION_BYTES = 256 << 10
"""So much of a large body is written in one step."""
_LAST_STATUS = 599
"""RFC 9110, 15: a client treats any other code as an error of the server's."""


class Pool(Protocol):
    """Where a connection belongs. `lost` comes exactly once per connection that was opened."""

    origin: str
    buffer_bytes: int
    max_head_bytes: int

    def opened(self, connection: "Connection") -> None: ...
    def released(self, connection: "Connection") -> None: ...
    def unusable(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How many ticks of the pool's clock a connection may stay silent; the seconds are for the message."""

    first_byte: int
    first_byte_s: float
    idle: int
    idle_s: float
    whole: int
    whole_answer_s: float
    frozen: float
    """Infinite unless the worker is known not to work."""


class _Unacceptable(Exception):
    """Raised in the parser's callbacks; stops the parser."""


class Connection(asyncio.Protocol):
    """See the module. The `on_...` methods are llhttp's callbacks."""

    __slots__ = (
        "_complete",
        "_due",
        "_fault",
        "_framing_bytes",
        "_full",
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
        "_unsent",
        "_whole",
        "age_ticks",
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
        self._whole = False
        self._unsent: deque[list[Buffer]] = deque()
        """The portions of the request that are still to be written."""
        self._full = False
        """The transport holds as much as it likes."""
        self._due = False
        """The next portion is written at the loop's next turn."""
        self.closed = False
        """No longer usable; from then on it only waits for `connection_lost`."""
        self.paused = False
        """We have stopped reading: the response holds as much as it may."""
        self.response: Response | None = None
        self.received = 0
        """Bytes received for the present response."""
        self.answering = False
        """A piece of the response's body has come."""
        self.age_ticks = 0
        """Ticks of the pool's clock since the request was written."""
        self.quiet_ticks = 0
        """Ticks since then or since the last piece of the body, whichever was later."""
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

    def start(
        self, response: Response, head: bytes, body: bytes | tuple[Buffer, ...], *, whole: bool = False
    ) -> None:
        """Write a request to a connection that is not closed. `whole`: its answer will come in one piece."""
        self._reset()
        self.received = 0
        self.answering = False
        self.age_ticks = 0
        self.quiet_ticks = 0
        self._whole = whole
        self.response = response
        response.connection = self
        if isinstance(body, tuple):
            self._unsent.extend(_portions(head, body))
            self._send_portion()
        elif len(body) > 65_536:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head + body)

    def resume(self) -> None:
        if self.paused and not self.closed:
            self.paused = False
            self._transport.resume_reading()

    def unanswered(self) -> None:
        """What has come is no part of an answer: every limit goes on as if nothing had."""
        self.answering = False
        self.quiet_ticks = self.age_ticks

    def close(self) -> None:
        """Close at once, without waiting for what is still to be written."""
        if not self.closed:
            self.closed = True
            self._unsent.clear()
            self._pool.unusable(self)
            self._transport.abort()

    def drop(self, error: UpstreamError) -> None:
        """Close, and fail the response if there is one."""
        response, self.response = self.response, None
        self.close()
        if response is not None:
            response.failed(error)

    def tick(self, patience: Patience) -> None:
        """The pool's clock: one more tick. Silence that we cause ourselves does not count."""
        if self.paused:
            return
        self.age_ticks += 1
        self.quiet_ticks += 1
        if self.response is None:
            return
        origin, received = self._pool.origin, self.received
        if self.quiet_ticks > patience.frozen:
            self.drop(Frozen(origin, "silent, and the worker does not work at present", received))
        elif self.answering and self.quiet_ticks > patience.idle:
            what = f"silent for {patience.idle_s:g} s after {received} bytes"
            self.drop(IdleTimeout(origin, what, received))
        elif self._whole and self.age_ticks > patience.whole:
            self.drop(AnswerTimeout(origin, f"no complete answer within {patience.whole_answer_s:g} s", received))
        elif not (self._whole or self.answering) and self.age_ticks > patience.first_byte:
            what = f"no first byte within {patience.first_byte_s:g} s"
            self.drop(FirstByteTimeout(origin, what, received))

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._send_on()

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None:  # unsolicited: the server does not speak our protocol, or is about to close
            self.close()
            return
        size = len(data)
        self.received += size
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
            self.quiet_ticks = 0
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

    def _send_portion(self) -> None:
        self._due = False
        if self._unsent:
            self._transport.writelines(self._unsent.popleft())
            self._send_on()

    def _send_on(self) -> None:
        """Write the next portion once others have had their turn, and this one has left."""
        if self._unsent and not self._full and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send_portion)

    def _finish(self, response: Response) -> None:
        """The message is complete: give the connection back, or close it, and only then tell the reader."""
        self.response = None
        if self.paused:
            self.resume()
        sent = not self._unsent and not self._transport.get_write_buffer_size()
        if self._keep and sent and not self.closed:
            self._pool.released(self)
        else:
            self.close()
        response.ended()

    def _lose(self, what: str) -> None:
        """The other side is gone."""
        response = self.response
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
        if status > _LAST_STATUS:
            self._refuse(f"status {status} is none of HTTP's")
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


def _portions(head: bytes, body: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Head and body as views without a copy, of as many bytes as are written in one step."""
    portion: list[Buffer] = [head]
    room = _PORTION_BYTES
    for buffer in body:
        view = memoryview(buffer)
        while len(view) > room:
            portion.append(view[:room])
            yield portion
            view, portion, room = view[room:], [], _PORTION_BYTES
        portion.append(view)
        room -= len(view)
    yield portion
