"""Which worker holds which KV block, as the workers themselves report it.

A block is named here by a digest chained over token ids, so that one name stands for a whole prefix, whichever
hash the worker's vLLM uses; the hashes that a worker reports are handles, used to remove a block and to name a
parent.

A flat dictionary and not a radix tree: a worker reports blocks one by one and removes them in any order, and all
of them are equally long. A tree would gain nothing from merging runs, and pay for it.

    digest of a block = xxh3_64(its token ids, 4 bytes each; seed = digest of the block before)
    ... of the root   = xxh3_64(salt; seed = xxh3_64(adapter; seed = block size))
    ... with media    = the block's digest once more over its extra keys: no prompt of plain text has it

Only blocks on the GPU count, in the first KV group that keeps all of a prompt. Blocks in other tiers are loaded,
not hit; sliding windows and recurrent states say nothing about the rest of a prefix. Of a group that is followed,
blocks of a second size (partial entries of hybrid models) are passed over. All of that is counted.

A block may be stored more than once (two requests that filled it at the same time have a copy each) and is then
removed as often: handles are counted.

Invariants: `masks[d]` has a worker's bit exactly when one of its handles stands for d; a handle that was stored k
+ 1 times is in `copies` with k; a digest with k + 1 handles is in `shared` with k. Retired bits (of a worker that
left or lost its cache) stand for no worker and are swept a few at a time.
"""

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from policies.model import PrefixKey, WorkerId
from policies.prefixes.kv_events import (
    Removed,
    Stored,
    handle_of,
    id_bytes,
    keeps_prefixes,
    on_gpu,
    own_keys,
    root,
    salt_of,
)

TOKEN_WIDTH = 4
_SWEPT_PER_BLOCK = 2
_SWEPT_AT_LEAST = 64

Chains = dict[tuple[int, str | None], "array[int]"]
"""Digests of one prompt as far as they have been asked for, by block size and adapter."""


@dataclass(slots=True)
class Tally:
    """What became of a worker's reports, in blocks."""

    stored: int = 0
    removed: int = 0
    unknown_parent: int = 0
    """Stored after a parent that is not known: what they hold is not known either."""
    unknown_removed: int = 0
    """Removed without having been stored."""
    passed_over: int = 0
    """On another medium, in another group, or of another size."""


class ReportedCache:
    """What one worker has reported of its cache: `blocks` maps handle to digest."""

    __slots__ = ("bit", "blocks", "copies", "group", "shared", "size", "spare", "tally")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.blocks: dict[int, int] = {}
        self.copies: dict[int, int] = {}
        self.shared: dict[int, int] = {}
        self.size = 0
        self.group: int | None = None
        self.spare = 0
        """Copies beyond the first, of all blocks."""
        self.tally = Tally()

    def before(self, event: Stored) -> int | None:
        """Digest of the parent of the first of these blocks; None if that is not known."""
        parent = event.parent
        if parent is not None:
            return self.blocks.get(handle_of(parent))
        return root(self.size, event.lora, salt_of(event))

    def store_again(self, handle: int) -> None:
        """A second copy of a block: it will be removed as often as it was stored."""
        self.copies[handle] = self.copies.get(handle, 0) + 1
        self.spare += 1

    def remove_copy(self, handle: int) -> bool:
        """Remove a copy of a block that has several; False if it has a single one left."""
        several = _one_less(self.copies, handle)
        self.spare -= several
        return several

    def forget_copies(self, handle: int) -> None:
        """Drop the copies of a handle that now stands for another block."""
        self.spare -= self.copies.pop(handle, 0)

    def share(self, digest: int) -> None:
        """One more handle stands for this block."""
        self.shared[digest] = self.shared.get(digest, 0) + 1

    def empty(self) -> None:
        """Hold nothing any more; the old dictionaries are left to a caller that still has them."""
        self.blocks, self.copies, self.shared, self.spare = {}, {}, {}, 0


class KvBlocks:
    """The reported blocks of one pool's workers. A worker is followed from `follow` to `drop`."""

    def __init__(self) -> None:
        self._caches: dict[WorkerId, ReportedCache] = {}
        self._masks: dict[int, int] = {}
        self._names: dict[int, WorkerId] = {}
        self._live: dict[int, int] = {}
        """By block size: the bits of the workers that use it."""
        self._retired: list[tuple[int, dict[int, int]]] = []
        self._free: list[int] = []
        self._bits = 0
        self._same: dict[int, int] = {}

    # -- questions: they change nothing but the request's own digests

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._caches

    def __len__(self) -> int:
        """Different blocks, retired ones included until they are swept."""
        return len(self._masks)

    def match(self, key: PrefixKey, lora: str | None, chains: Chains) -> dict[WorkerId, int]:
        """Tokens at the head of the prompt that each worker holds, in full blocks, never the whole prompt.

        A worker that holds nothing of it is absent. `chains` remembers the prompt's digests.
        """
        found: dict[WorkerId, int] = {}
        ids = len(key.data) // TOKEN_WIDTH
        for size, live in self._live.items():
            blocks = (ids - 1) // size
            if blocks > 0:
                digests = self._digests(key, size, lora, blocks, chains)
                self._walk(digests, live, size, found)
        return found

    def has_all(self, worker: WorkerId, key: PrefixKey, lora: str | None, chains: Chains) -> bool:
        """Whether the worker holds the prompt's last full block: it is the first to go."""
        cache = self._caches[worker]
        if not cache.size:
            return False
        blocks = len(key.data) // TOKEN_WIDTH // cache.size
        if not blocks:
            return True
        known = chains.get((cache.size, lora))
        if known is None or len(known) < blocks:
            deque(self._digests(key, cache.size, lora, blocks, chains), maxlen=0)
            known = chains[cache.size, lora]
        return bool(self._masks.get(known[blocks - 1], 0) & cache.bit)

    def held_tokens(self, worker: WorkerId) -> int:
        """Tokens in the worker's reported blocks, copies counted once."""
        cache = self._caches.get(worker)
        return 0 if cache is None else len(cache.blocks) * cache.size

    def held_blocks(self, worker: WorkerId) -> int:
        """Blocks that the worker holds, copies counted once."""
        cache = self._caches.get(worker)
        return 0 if cache is None else len(cache.blocks)

    def copied_tokens(self, worker: WorkerId) -> int:
        """Tokens in the worker's reported blocks with every copy: never more than its cache holds."""
        cache = self._caches.get(worker)
        return 0 if cache is None else (len(cache.blocks) + cache.spare) * cache.size

    def block_size(self, worker: WorkerId) -> int | None:
        """Tokens per block, once it has reported one."""
        cache = self._caches.get(worker)
        return None if cache is None else cache.size or None

    def tally(self, worker: WorkerId) -> Tally:
        """What has become of its reports; KeyError for a worker that is not followed."""
        return self._caches[worker].tally

    # -- events

    def follow(self, worker: WorkerId) -> None:
        """Begin to take in reports of a worker, of which nothing is known yet."""
        if worker not in self._caches:
            self._caches[worker] = ReportedCache(self._take_bit(worker))

    def drop(self, worker: WorkerId) -> None:
        """Forget a worker and what it has reported."""
        cache = self._caches.pop(worker, None)
        if cache is not None:
            self._retire(cache)

    def clear(self, worker: WorkerId) -> None:
        """The worker holds nothing now, and is followed as before."""
        cache = self._caches[worker]
        self._retire(cache)
        cache.bit = self._take_bit(worker)
        cache.empty()
        if cache.size:
            self._live[cache.size] = self._live.get(cache.size, 0) | cache.bit

    def stored(self, worker: WorkerId, event: Stored) -> None:
        """Blocks have come. Raises ValueError, changing nothing, if the event contradicts itself."""
        cache = self._caches[worker]
        hashes = event.hashes
        if not on_gpu(event.medium) or not keeps_prefixes(event.kind):
            cache.tally.passed_over += len(hashes)
            return
        ids = id_bytes(event.token_ids, len(hashes), event.block_size)
        if not self._follows(cache, event):
            cache.tally.passed_over += len(hashes)
            return
        parent = cache.before(event)
        if parent is None:
            cache.tally.unknown_parent += len(hashes)
        else:
            self._store(cache, hashes, ids, parent, own_keys(event))
            cache.tally.stored += len(hashes)
        if self._retired:
            self.sweep(_SWEPT_PER_BLOCK * len(hashes) + _SWEPT_AT_LEAST)

    def removed(self, worker: WorkerId, event: Removed) -> None:
        """Blocks have gone."""
        cache = self._caches[worker]
        tally = cache.tally
        if not on_gpu(event.medium) or event.group != cache.group:
            tally.passed_over += len(event.hashes)
            return
        for each in event.hashes:
            handle = each if isinstance(each, int) else handle_of(each)
            digest = cache.blocks.get(handle)
            if digest is None:
                tally.unknown_removed += 1
            else:
                tally.removed += 1
                if not cache.remove_copy(handle):
                    del cache.blocks[handle]
                    self._release(cache, digest)

    def sweep(self, limit: int) -> bool:
        """Forget at most `limit` blocks of retired bits; returns whether there are others left."""
        while self._retired and limit > 0:
            bit, blocks = self._retired[-1]
            for _ in range(min(limit, len(blocks))):
                self._unset(blocks.popitem()[1], bit)
                limit -= 1
            if blocks:
                break
            self._retired.pop()
            self._free.append(bit)
        return bool(self._retired)

    # -- inside

    def _follows(self, cache: ReportedCache, event: Stored) -> bool:
        """Whether these blocks have the group and size of the worker's first report, the only ones followed."""
        if not cache.size:
            cache.size, cache.group = event.block_size, event.group
            self._live[cache.size] = self._live.get(cache.size, 0) | cache.bit
        return event.block_size == cache.size and event.group == cache.group

    def _store(
        self,
        cache: ReportedCache,
        hashes: Sequence[int | bytes],
        ids: bytes,
        digest: int,
        extras: Sequence[bytes] | None,
    ) -> None:
        """Note a run of blocks after the one named `digest`; written out, as this is done for every block."""
        blocks, masks, bit = cache.blocks, self._masks, cache.bit
        step = cache.size * TOKEN_WIDTH
        start = 0
        for each in hashes:
            digest = xxh3_64_intdigest(ids[start : start + step], digest)
            if extras is not None and (extra := extras[start // step]):
                digest = xxh3_64_intdigest(extra, digest)
            start += step
            handle = each if isinstance(each, int) else handle_of(each)
            known = blocks.setdefault(handle, digest)
            if known is digest:
                mask = masks.get(digest, 0)
                if mask & bit:
                    cache.share(digest)
                else:
                    masks[digest] = self._mask(mask | bit)
            elif known == digest:
                cache.store_again(handle)
            else:
                self._replace(cache, handle, digest)

    def _replace(self, cache: ReportedCache, handle: int, digest: int) -> None:
        """A handle stands for another block than before: an error of the worker, or a collision in 64 bits."""
        cache.forget_copies(handle)
        self._release(cache, cache.blocks.pop(handle))
        cache.blocks[handle] = digest
        mask = self._masks.get(digest, 0)
        if mask & cache.bit:
            cache.share(digest)
        else:
            self._masks[digest] = self._mask(mask | cache.bit)

    def _release(self, cache: ReportedCache, digest: int) -> None:
        """One handle less stands for this block."""
        if not _one_less(cache.shared, digest):
            self._unset(digest, cache.bit)

    def _unset(self, digest: int, bit: int) -> None:
        masks = self._masks
        mask = masks.get(digest, 0) & ~bit
        if mask:
            masks[digest] = self._mask(mask)
        else:
            masks.pop(digest, None)

    def _mask(self, mask: int) -> int:
        """The same number as one object: there are few different masks, and many blocks."""
        return self._same.setdefault(mask, mask) if mask > 256 else mask

    def _take_bit(self, worker: WorkerId) -> int:
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << self._bits
            self._bits += 1
        self._names[bit] = worker
        return bit

    def _retire(self, cache: ReportedCache) -> None:
        bit = cache.bit
        del self._names[bit]
        if cache.size:
            self._live[cache.size] &= ~bit
            if not self._live[cache.size]:
                del self._live[cache.size]
        self._retired.append((bit, cache.blocks))

    def _digests(self, key: PrefixKey, size: int, lora: str | None, blocks: int, chains: Chains) -> Iterator[int]:
        """Digests of the prompt's first blocks, computed only as far as they are asked for."""
        known = chains.get((size, lora))
        if known is None:
            known = chains[size, lora] = array("Q")
        yield from known[:blocks]
        data, step = key.data, size * TOKEN_WIDTH
        digest = known[-1] if known else root(size, lora, key.salt)
        for start in range(len(known) * step, blocks * step, step):
            digest = xxh3_64_intdigest(data[start : start + step], digest)
            known.append(digest)
            yield digest

    def _walk(self, digests: Iterator[int], live: int, size: int, found: dict[WorkerId, int]) -> None:
        """Follow the workers of one block size down the prompt, and note where each one ends."""
        masks, tokens = self._masks, 0
        for digest in digests:
            held = masks.get(digest, 0) & live
            if held != live:
                if tokens:
                    self._note(live ^ held, tokens, found)
                live = held
                if not live:
                    return
            tokens += size
        self._note(live, tokens, found)

    def _note(self, bits: int, tokens: int, found: dict[WorkerId, int]) -> None:
        while bits:
            bit = bits & -bits
            found[self._names[bit]] = tokens
            bits ^= bit


def _one_less(counts: dict[int, int], name: int) -> bool:
    """Count down; returns whether there was a count."""
    count = counts.get(name)
    if count is None:
        return False
    if count == 1:
        del counts[name]
    else:
        counts[name] = count - 1
    return True
