"""What stands before the operator's pages: the key first, then a bound on the body; no page runs before either."""

import asyncio
import hmac
from collections.abc import Callable, Collection
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.control.pages.render import Render, response
from router.control.parties.wrong_keys import WrongKeys
from router.control.refused import Refused
from router.port import Reject, RejectKind

MOST_BYTES = 64 << 10
"""Of a body that an operator sends: a description of one worker."""
_WITHIN_S = 30.0
"""For such a body to arrive."""


class OperatorKeys:
    """Keys of operators, as `sha256:...`. An address that sends too many wrong ones has to wait."""

    def __init__(
        self,
        digests: Callable[[], Collection[str]],
        wrong_keys: WrongKeys,
        clock: Callable[[], float],
        *,
        is_clients: Callable[[bytes], bool],
    ) -> None:
        """`digests` has them as they are in force. `is_clients`: whether a digest is of a client's key.

        A client's key opens nothing here, but it is no guess: clients send it with every request.
        """
        self._digests = digests
        self._is_clients = is_clients
        self._wrong_keys = wrong_keys
        self._clock = clock

    def reject(self, scope: Scope, what: str) -> Reject | None:
        """Why a request may not see `what`; None: it brings one of the keys."""
        address, now = str(scope["client"][0]) if scope.get("client") else "", self._clock()
        given = _key(Headers(scope=scope))
        if given is not None:
            digest = sha256(given.encode()).digest()
            wait_s = self._wrong_keys.wait_s(address, digest, now)
            if wait_s > 0:
                message = f"Too many wrong keys came from your address; try again in {wait_s:.0f} s."
                return Reject(RejectKind.OVER_QUOTA, message, retry_after_s=wait_s)
            if any(hmac.compare_digest("sha256:" + digest.hex(), known) for known in self._digests()):
                self._wrong_keys.right(address, digest, now)
                return None
            if not self._is_clients(digest):
                self._wrong_keys.wrong(address, now)
        return Reject(RejectKind.UNAUTHORIZED, f"{what} needs its key: `Authorization: Bearer KEY`.")


def _path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


class Guard:
    """An ASGI application that lets requests with a key through to `app`, their bodies bounded and complete."""

    def __init__(self, app: ASGIApp, keys: OperatorKeys, render: Render, *, shown: Collection[str] = ()) -> None:
        """`shown`: paths of pages without data, which need no key."""
        self._shown = shown
        self._app = app
        self._keys = keys
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_shown = scope["method"] in {"GET", "HEAD"} and _path(scope) in self._shown
        reject = None if is_shown else self._keys.reject(scope, "The admin API")
        body = b""
        if reject is None:
            try:
                body = await _read(Headers(scope=scope), receive)
            except ClientDisconnect:
                return  # what has not come whole is not done
            except Refused as refused:
                reject = refused.reject
        if reject is not None:
            await response(self._render(reject))(scope, receive, send)
        else:
            await self._app(scope, _replayed(body, receive), send)


async def _read(headers: Headers, receive: Receive) -> bytes:
    """The body. Raises ClientDisconnect if it breaks off, and Refused if it is too long or takes too long.

    Where its length is announced, Refused comes before it is read.
    """
    too_large = Refused(Reject(RejectKind.TOO_LARGE, f"The body has more than {MOST_BYTES} bytes."))
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MOST_BYTES:
        raise too_large
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(_WITHIN_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        late = f"The body did not arrive within {_WITHIN_S:g} s."
        raise Refused(Reject(RejectKind.BAD_REQUEST, late, param="body")) from None
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A channel that has the whole body first."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
