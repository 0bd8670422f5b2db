"""What can go wrong with a request, as one small tree, and the one place that maps it to HTTP.

    RequestError                 status, type, code, param, retry_after_s; `source` says whose fault it is
    ├── BadRequest        400    the client's request cannot be understood (source: client)
    │   ├── UploadTimeout 408
    │   ├── BodyTooLarge  413
    │   ├── UnsupportedCoding 415
    │   └── HeadersTooLarge 431
    ├── Unauthorized      401
    ├── NoSuchModel       404    in vLLM's own words, so that clients see one dialect
    ├── NoSuchRoute       404
    ├── WrongMethod       405
    ├── Unsupported       501
    ├── OverQuota         429    this client asks for more than its limits (Retry-After)
    ├── Overloaded        429    queue full, waited too long, too many open requests: come back later
    ├── Unavailable       503    no worker can serve this model now, or the gateway is shutting down
    ├── WorkerFailed      502    the worker broke off or talked nonsense, and no other could take over
    └── WorkerTimeout     504

A 4xx that a worker answers is not here: it passes through untouched.
"""

import math
from enum import Enum
from typing import Any, ClassVar, Literal

import orjson

from router.port import Reject, RejectKind

Source = Literal["client", "router", "worker"]


class RequestError(Exception):
    """The base of the tree. `message` is written for the person who sent the request."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalServerError"
    source: ClassVar[Source] = "router"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.limits: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that say how the client's limits stand."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after_s is None:
            return []
        return [(b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode())]

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients and vLLM's users know it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


class BadRequest(RequestError):
    status = 400
    type = "BadRequestError"
    source: ClassVar[Source] = "client"


class UploadTimeout(BadRequest):
    status = 408
    type = "RequestTimeoutError"


class BodyTooLarge(BadRequest):
    status = 413
    type = "RequestEntityTooLarge"


class UnsupportedCoding(BadRequest):
    status = 415
    type = "UnsupportedMediaTypeError"

    accept = "identity"
    """The codings that are understood."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"accept-encoding", self.accept.encode())]


class HeadersTooLarge(BadRequest):
    status = 431
    type = "RequestHeaderFieldsTooLarge"


class Unauthorized(RequestError):
    status = 401
    type = "AuthenticationError"
    source: ClassVar[Source] = "client"

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class NoSuchModel(RequestError):
    status = 404
    type = "NotFoundError"
    source: ClassVar[Source] = "client"


class NoSuchRoute(RequestError):
    status = 404
    type = "NotFoundError"
    source: ClassVar[Source] = "client"


class WrongMethod(RequestError):
    status = 405
    type = "MethodNotAllowedError"
    source: ClassVar[Source] = "client"

    allow = "POST"
    """The methods that there are instead."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"allow", self.allow.encode())]


class Unsupported(RequestError):
    status = 501
    type = "NotImplementedError"


class OverQuota(RequestError):
    status = 429
    type = "RateLimitError"
    source: ClassVar[Source] = "client"


class Overloaded(RequestError):
    status = 429
    type = "OverloadedError"


class Unavailable(RequestError):
    status = 503
    type = "ServiceUnavailableError"


class WorkerFailed(RequestError):
    status = 502
    type = "WorkerError"
    source: ClassVar[Source] = "worker"


class WorkerTimeout(RequestError):
    status = 504
    type = "WorkerTimeoutError"
    source: ClassVar[Source] = "worker"


_OF_KIND: dict[RejectKind, type[RequestError]] = {
    RejectKind.BAD_REQUEST: BadRequest,
    RejectKind.UNAUTHORIZED: Unauthorized,
    RejectKind.NO_MODEL: NoSuchModel,
    RejectKind.NOT_FOUND: NoSuchRoute,
    RejectKind.WRONG_METHOD: WrongMethod,
    RejectKind.TOO_LARGE: BodyTooLarge,
    RejectKind.OVER_QUOTA: OverQuota,
    RejectKind.OVERLOADED: Overloaded,
    RejectKind.UNAVAILABLE: Unavailable,
    RejectKind.RELAY: WorkerFailed,
    RejectKind.WORKER_FAILED: WorkerFailed,
    RejectKind.WORKER_TIMEOUT: WorkerTimeout,
}


_OF_STATUS: dict[int, type[RequestError]] = {
    error.status: error for error in (BadRequest, NoSuchModel, BodyTooLarge, Unsupported, WorkerFailed)
}


def error_of(reject: Reject) -> RequestError:
    """What control's no means to a client."""
    error = _OF_KIND[reject.kind](reject.message, param=reject.param, retry_after_s=reject.retry_after_s)
    error.limits = reject.headers
    return error


class Dialect(Enum):
    """Whose shape an error takes."""

    OPENAI = "openai"
    RESPONSES = "responses"
    """OpenAI's own, but for a stream's last words."""
    ANTHROPIC = "anthropic"


def to_http(
    error: RequestError, dialect: Dialect = Dialect.OPENAI
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error."""
    content = _anthropic(error) if dialect is Dialect.ANTHROPIC else error.body()
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *error.headers(),
        *error.limits,
    ]
    return error.status, headers, body


def whole_event(status: int, body: bytes, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """A worker's whole answer as the only event of a stream; an error in the dialect's own shape."""
    if status < 400:
        return b"data: " + body + b"\n\ndata: [DONE]\n\n"
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    said = content.get("error", content) if isinstance(content, dict) else None
    error = _OF_STATUS.get(status, RequestError)(f"The worker answered {status}.")
    if isinstance(said, dict):
        error.message = str(said.get("message") or error.message)
        error.param = said["param"] if isinstance(said.get("param"), str) else None
    return to_event(error, dialect)


def to_event(error: RequestError, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """The same as the last words of a stream whose status line has already been sent."""
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + orjson.dumps(_anthropic(error)) + b"\n\n"
    if dialect is Dialect.RESPONSES:
        content = {"type": "error", "code": error.type, "message": error.message, "param": error.param}
        return b"event: error\ndata: " + orjson.dumps(content) + b"\n\n"
    return b"data: " + orjson.dumps(error.body()) + b"\n\ndata: [DONE]\n\n"


def _anthropic(error: RequestError) -> dict[str, Any]:
    return {"type": "error", "error": {"type": error.type, "message": error.message}}
