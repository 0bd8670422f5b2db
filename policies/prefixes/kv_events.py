"""The KV cache events of a worker, with the fields of vLLM's events, and how blocks are named.

Any object with these fields will do: the driver hands over what it has received.
"""

from array import array
from collections.abc import Sequence
from typing import Protocol

from xxhash import xxh3_64_intdigest

_WHOLE_PREFIX = frozenset({None, "full_attention", "mla_attention", "sink_full_attention", "unknown"})
"""Kinds of KV group that have a prefix as long as they have its blocks."""


class Stored(Protocol):
    """Full blocks that have entered a worker's cache, one after the other; the first one follows `parent`."""

    @property
    def hashes(self) -> Sequence[int | bytes]: ...
    @property
    def parent(self) -> int | bytes | None: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def block_size(self) -> int: ...
    @property
    def lora(self) -> str | None: ...
    @property
    def extra_keys(self) -> Sequence[Sequence[object] | None] | None: ...
    @property
    def medium(self) -> str | None: ...
    @property
    def group(self) -> int | None: ...
    @property
    def kind(self) -> str | None: ...


class Removed(Protocol):
    """Blocks that have left a worker's cache."""

    @property
    def hashes(self) -> Sequence[int | bytes]: ...
    @property
    def medium(self) -> str | None: ...
    @property
    def group(self) -> int | None: ...


def root(size: int, lora: str | None, salt: bytes) -> int:
    """The digest that the first block of a prompt follows: of block size, adapter and cache salt."""
    adapter = b"" if lora is None else lora.encode(errors="surrogatepass")
    return xxh3_64_intdigest(salt, xxh3_64_intdigest(adapter, size))


def id_bytes(token_ids: Sequence[int], blocks: int, size: int) -> bytes:
    """The ids of `blocks` blocks, 4 bytes each in native order. Raises ValueError if they do not fill them."""
    if size < 1 or len(token_ids) != blocks * size:
        raise ValueError(f"{blocks} blocks of {size} tokens cannot have {len(token_ids)} token ids")
    try:
        ids = array("I", token_ids)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"these are no token ids: {error}") from None
    return ids.tobytes()


def _extra(event: Stored, block: int) -> list[object]:
    """The extra keys of one block, without its adapter, which vLLM names first."""
    every = event.extra_keys
    keys = list(every[block] or ()) if every is not None and block < len(every) else []
    return keys[1:] if event.lora is not None and keys[:1] == [event.lora] else keys


def salt_of(event: Stored) -> bytes:
    """The cache salt, if there is one: the only extra key of a prompt's first block (media come as pairs)."""
    match _extra(event, 0):
        case [str() as salt]:
            return salt.encode(errors="surrogatepass")
    return b""


def own_keys(event: Stored) -> list[bytes] | None:
    """Each block's extra keys except adapter and salt (media, embeddings), as bytes; None: no block has any."""
    every = event.extra_keys
    if every is None or not any(every):
        return None
    extras = [repr(keys).encode() if (keys := _extra(event, i)) else b"" for i in range(len(event.hashes))]
    if event.parent is None and salt_of(event):
        extras[0] = b""
    return extras if any(extras) else None


def handle_of(name: int | bytes) -> int:
    """The 64 bits of a block's hash by which vLLM names it when it reports numbers."""
    return name if isinstance(name, int) else int.from_bytes(name[-8:], "big")


def on_gpu(medium: str | None) -> bool:
    """Whether blocks on this medium are hits; from the others they would have to be loaded."""
    return medium is None or medium.upper() == "GPU"


def keeps_prefixes(kind: str | None) -> bool:
    """Whether a KV group of this kind has a prefix as long as it has its blocks."""
    return kind in _WHOLE_PREFIX
