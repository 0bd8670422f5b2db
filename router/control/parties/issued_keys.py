"""A key that was created at run time: a client like those of the configuration, and how long its key is good for.

The key itself is told once, when it is made, and kept nowhere; what is kept is its SHA-256 digest.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from router.config.sections import ClientConfig

PREFIX = "fl-"
_RANDOM_BYTES = 32


def new_key() -> tuple[str, bytes]:
    """A key that cannot be guessed, and its digest."""
    key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return key, sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """Times are seconds since 1970."""

    client: ClientConfig
    """What is due to its owner; without keys."""
    digest: bytes
    created_at: float
    expires_at: float | None = None
    disabled: bool = False
    old_digest: bytes | None = None
    """The key before the last rotation."""
    old_until: float = 0.0

    def digests(self) -> Iterator[bytes]:
        yield self.digest
        if self.old_digest is not None:
            yield self.old_digest

    def ends(self) -> Iterator[tuple[bytes, float, str]]:
        """Each digest, until when it is good, and what its holder is told from then on."""
        end = math.inf if self.expires_at is None else self.expires_at
        if self.disabled:
            yield self.digest, -math.inf, "This API key has been disabled."
        else:
            yield self.digest, end, "This API key has expired."
        if self.old_digest is not None:
            until = -math.inf if self.disabled else min(end, self.old_until)
            yield self.old_digest, until, "This API key has been replaced by another one."

    def rotated(self, digest: bytes, now: float, *, keep_old_s: float) -> "IssuedKey":
        """The same client with another key; the present one stays good for a while."""
        return replace(self, digest=digest, old_digest=self.digest, old_until=now + keep_old_s)

    def state(self, now: float) -> str:
        """`disabled`, `expired` or `active`."""
        if self.disabled:
            return "disabled"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"

    def dump(self) -> dict[str, Any]:
        """As the store has it."""
        return {
            "client": self.client.model_dump(exclude_defaults=True),
            "digest": self.digest.hex(),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "disabled": self.disabled,
            "old_digest": None if self.old_digest is None else self.old_digest.hex(),
            "old_until": self.old_until,
        }

    @classmethod
    def load(cls, kept: dict[str, Any]) -> "IssuedKey":
        """From the store. Raises ValueError, KeyError or TypeError for what is no key."""
        old = kept.get("old_digest")
        return cls(
            client=ClientConfig(**kept["client"]),
            digest=bytes.fromhex(kept["digest"]),
            created_at=float(kept["created_at"]),
            expires_at=None if kept.get("expires_at") is None else float(kept["expires_at"]),
            disabled=bool(kept.get("disabled", False)),
            old_digest=None if old is None else bytes.fromhex(old),
            old_until=float(kept.get("old_until", 0.0)),
        )
