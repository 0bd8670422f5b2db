"""`cache_salt` of bodies where clients have prefix caches of their own.

vLLM finds a cached prefix only under the salt that it was computed with. A client that could choose the salt could
look into the caches of others, by the time to the first token (CVE-2025-46570); so what it sends is combined with
whose cache it is, and only that goes to a worker. No two groups ever have the same salt, whatever they send.
"""

from hashlib import sha256

from router.edge.api.parsed_request import ParsedRequest
from router.edge.api.passed_body import PassedBody

_FIELD = "cache_salt"
_HEX_DIGITS = 32


def salted(ask: ParsedRequest | PassedBody, group: str) -> None:
    """Give a request the salt of its client's caches."""
    text = f"{len(group)} {group} {'' if ask.salt is None else ask.salt}"
    salt = sha256(text.encode("utf-8", "replace")).hexdigest()[:_HEX_DIGITS]
    ask.salt = salt
    ask.changes = {**ask.changes, _FIELD: b'"%s"' % salt.encode()}
    if isinstance(ask, ParsedRequest) and ask.ids is None:
        ask.prompt = salt.encode() + b"\n" + ask.prompt
