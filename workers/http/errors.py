"""What can go wrong between the gateway and one worker.

    UpstreamError
    |-- NotConnected            nothing of the request was sent
    |   |-- ConnectFailed       refused, unreachable, no such name, TLS handshake failed, pool closed
    |   |-- ConnectTimeout      no connection within `connect_s`
    |   `-- PoolExhausted       every connection stayed in use for `connect_s`
    |-- TimedOut
    |   |-- FirstByteTimeout    request written, not one byte of a response's body within `first_byte_s`
    |   |-- IdleTimeout         the body began and then fell silent for `idle_s`
    |   |-- AnswerTimeout       an answer in one piece was not complete within `whole_answer_s`
    |   `-- Frozen              silent while probes or readings say that this worker does not work
    |-- ConnectionLost          closed or reset before the response was complete
    |-- ProtocolError           the bytes are no acceptable HTTP/1.1 response
    `-- ResponseAborted         we gave up ourselves: `Response.abort` or `Upstream.aclose`

Every message begins with the origin, so that a log line needs nothing beside it.

An error that is kept is never the one that is raised: `again` makes another. A raised exception refers to the
frames it passed, those refer to the response and the request's body, and a response that kept such an error would
form a cycle that only the garbage collector could free.
"""

from typing import Self


class UpstreamError(Exception):
    """Root of the tree; only its leaves are raised.

    `received_bytes` counts what came back on the wire for this request, interim (1xx) responses included.
    """

    def __init__(self, origin: str, what: str, received_bytes: int = 0) -> None:
        super().__init__(f"{origin}: {what}")
        self.origin = origin
        self.what = what
        self.received_bytes = received_bytes

    def again(self) -> Self:
        """Return an equal error without a traceback, to be raised in place of one that is kept."""
        return type(self)(self.origin, self.what, self.received_bytes)

    @property
    def before_first_byte(self) -> bool:
        """Nothing came back, so another worker may be tried without the client noticing."""
        return self.received_bytes == 0


class NotConnected(UpstreamError):
    """Nothing of the request was sent."""


class ConnectFailed(NotConnected):
    """The connection could not be made."""


class ConnectTimeout(NotConnected):
    """The connection was not made in time."""


class PoolExhausted(NotConnected):
    """All connections that this origin may have stayed in use."""


class TimedOut(UpstreamError):
    """The worker was silent for too long."""


class FirstByteTimeout(TimedOut):
    """Silent since the request was written, or since the head of its response."""


class IdleTimeout(TimedOut):
    """Silent in the middle of its response."""


class AnswerTimeout(TimedOut):
    """An answer that is not streamed was not complete in time."""


class Frozen(TimedOut):
    """Silent, and known not to work: the server is down or its engine sleeps."""


class ConnectionLost(UpstreamError):
    """Closed or reset before the response was complete."""


class ProtocolError(UpstreamError):
    """Not an acceptable HTTP/1.1 response."""


class ResponseAborted(UpstreamError):
    """We gave up ourselves."""
