"""Keys as a configuration holds them: given in the clear, by reference, or hashed; kept only as a hash.

A key is a long random string, so one round of SHA-256 is enough (there is no dictionary to try) and costs half a
microsecond per request.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def hash_key(key: str) -> str:
    """`sha256:` and the hexadecimal digest, as `key_hashes` takes it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def resolve(value: object, env: Mapping[str, str] = os.environ, folder: Path = Path()) -> str:
    """A secret: itself, `env:NAME` or `file:PATH`. Raises ValueError; no message repeats the secret."""
    if not isinstance(value, str):
        raise ValueError("a key is text; put it in quotes")  # noqa: TRY004  # pydantic collects ValueErrors
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        if name not in env:
            raise ValueError(f"the environment variable {name} is not set")
        value = env[name]
    elif value.startswith("file:"):
        path = folder / value.removeprefix("file:")
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


def digest_of(value: object, env: Mapping[str, str] = os.environ, folder: Path = Path()) -> str:
    """The hash of a secret given in any of the ways of `resolve`."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        raise ValueError("this is the hash of a key, not a key; hashes go under `key_hashes` (or `key_hash`)")
    return hash_key(resolve(value, env, folder))


def checked_digest(value: object) -> str:
    """A hash as `fairlead hash-key` prints it."""
    if not isinstance(value, str) or not DIGEST.fullmatch(value.lower()):
        raise ValueError("not a key hash; expected sha256: and 64 hexadecimal digits, from `fairlead hash-key`")
    return value.lower()
