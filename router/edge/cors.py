"""Cross-origin requests of browsers (CORS, WHATWG Fetch 3.2), for the origins that the configuration names.

The headers stand on every answer, errors included: a browser shows a script nothing of an answer without them, not
even its status. API keys travel in headers that a script sets itself, so no answer allows credentials (cookies).
"""

from collections.abc import Sequence

Header = tuple[bytes, bytes]

ANY = "*"
_METHODS = b"GET, POST, DELETE, HEAD, OPTIONS"
_EXPOSED = (
    b"x-request-id, retry-after, x-fairlead-worker, x-fairlead-reason, x-fairlead-matched-tokens, "
    b"x-fairlead-prefill-worker"
)
_REMEMBERED_S = b"600"


class Cors:
    """`origins`: such as `https://chat.example`, or `*` for all."""

    __slots__ = ("_any", "_origins")

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, request: Sequence[Header]) -> list[Header]:
        """What to add to the answer to a request with these headers."""
        given = dict(request)
        origin = given.get(b"origin")
        if origin is None or not (self._any or origin in self._origins):
            return [] if self._any else [(b"vary", b"origin")]
        allowed = [(b"access-control-allow-origin", b"*" if self._any else origin)]
        if not self._any:
            allowed.append((b"vary", b"origin"))
        if b"access-control-request-method" not in given:
            return [*allowed, (b"access-control-expose-headers", _EXPOSED)]
        wanted = given.get(b"access-control-request-headers")
        if wanted:  # named one by one, as `*` does not stand for Authorization
            allowed.append((b"access-control-allow-headers", wanted))
        return [
            *allowed,
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _REMEMBERED_S),
        ]
