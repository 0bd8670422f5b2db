"""The keys that a request brings, as digests: the clear text goes no further than this."""

from collections.abc import Iterator, Mapping
from hashlib import sha256


def digests(headers: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """SHA-256 of everything that might be a key: OpenAI's place for it first, then Anthropic's."""
    return tuple(sha256(key).digest() for key in _keys(headers))


def _keys(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    scheme, _, key = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        yield key.strip()
    if key := headers.get(b"x-api-key", b"").strip():
        yield key
