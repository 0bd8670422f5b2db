"""Keys as a configuration holds them: given in the clear, by reference, or hashed; kept only as a hash.

A key is a long random string, so one round of SHA-256 is enough (there is no dictionary to try) and costs half a
microsecond per request.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LEAST_CHARACTERS = 16
TOO_SHORT = "it can be guessed; make one of 32 with `openssl rand -hex 16`"
_REFERENCES = ("env:", "file:")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def hash_key(key: str) -> str:
    """`sha256:` and the hexadecimal digest, as `key_hashes` takes it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class Surroundings(NamedTuple):
    """What references in a configuration are relative to."""

    env: Mapping[str, str]
    folder: Path


def resolve(value: object, surroundings: Surroundings | None) -> str:
    """A secret: itself, `env:NAME` or `file:PATH`. Raises ValueError; no message repeats the secret.

    Without `surroundings` references are refused.
    """
    if not isinstance(value, str):
        raise ValueError("a key is text; put it in quotes")  # noqa: TRY004  # pydantic collects ValueErrors
    if value.startswith(_REFERENCES) and surroundings is None:
        raise ValueError("`env:` and `file:` are for the configuration; give the key itself")
    if surroundings is None:
        return checked(value)
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        if name not in surroundings.env:
            raise ValueError(f"the environment variable {name} is not set")
        value = surroundings.env[name]
    elif value.startswith("file:"):
        path = surroundings.folder / value.removeprefix("file:")
        try:
            value = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ValueError(f"the file {path} cannot be read: {reason}") from None
    return checked(value)


def checked(key: str) -> str:
    """A key that can be sent in a header. Raises ValueError."""
    if not key.strip():
        raise ValueError("the key is empty")
    if key != key.strip() or not key.isprintable():
        raise ValueError("a key may not begin or end with spaces, nor hold control characters")
    return key


def resolve_key(value: object, surroundings: Surroundings | None) -> str:
    """A secret given in any of the ways of `resolve`, but not as its hash."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        raise ValueError("this is the hash of a key, not a key; hashes go under `key_hashes` (or `key_hash`)")
    return resolve(value, surroundings)


def checked_digest(value: object) -> str:
    """A hash as `fairlead hash-key` prints it."""
    if not isinstance(value, str) or not DIGEST.fullmatch(value.lower()):
        raise ValueError("not a key hash; expected sha256: and 64 hexadecimal digits, from `fairlead hash-key`")
    return value.lower()
