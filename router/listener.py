"""The client's side of the wire: uvicorn's HTTP protocol with bounds on what comes before a body, and our errors.

uvicorn on httptools knows no limit on header size, waits forever for the rest of a head, and answers garbage in
plain text.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router.errors import BadRequest, HeadersTooLarge, RequestError, to_http

HEAD_WITHIN_S = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""


def listener(header_bytes: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, with this bound on request line and headers together."""
    return type("BoundedListener", (Listener,), {"header_bytes": header_bytes})


class Listener(HttpToolsProtocol):
    """One client connection. `header_bytes` is set by `listener`."""

    header_bytes = 65536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_size = 0
        self._refusal: RequestError | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_there()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_there()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A header that never ends is not seen by `on_header`: what is still to be parsed counts as well.
        if self._head_timer is not None and self._refusal is None and not self.transport.is_closing():
            self._pending = getattr(self, "_pending", 0) + len(data)
            if self._pending > self.header_bytes:
                self._refuse(self._too_large())
        else:
            self._pending = 0

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read is answered in the API's own shape."""
        self._refuse(self._refusal or BadRequest(f"{msg.rstrip('.')}: it is not HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """The door answers an upgrade with 501; there is nothing to warn of."""

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self.header_bytes:
            self._refusal = self._too_large()
            raise self._refusal

    def _too_large(self) -> RequestError:
        return HeadersTooLarge(f"Request line and headers have more than {self.header_bytes} bytes.")

    def _refuse(self, error: RequestError) -> None:
        self._head_there()
        if self.transport.is_closing():
            return
        status, headers, body = to_http(error)
        lines = [STATUS_LINE[status], *(name + b": " + value + b"\r\n" for name, value in headers)]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self.transport.close()

    def _await_head(self) -> None:
        self._head_there()
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._head_late)

    def _head_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
