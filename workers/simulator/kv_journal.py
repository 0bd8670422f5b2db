"""What the prefix cache of an engine has gained and lost, in order, until it is taken.

After vLLM: blocks that become full together are one entry, each block that is handed out again is one. Where two
requests fill the same block at the same time only the first copy is known here, so it is told and lost once; vLLM
tells and loses every copy.
"""

from dataclasses import dataclass

from workers.simulator.kv_cache import BlockPool
from workers.simulator.sequences import Blocks, EngineSequence


@dataclass(slots=True)
class Stored:
    """The blocks start..stop of a sequence, counted from its first, can be hit from now on."""

    sequence: EngineSequence
    start: int
    stop: int
    block_size: int

    def names(self) -> list[int]:
        return self.sequence.names[self.start : self.stop]

    def parent(self) -> int | None:
        return self.sequence.names[self.start - 1] if self.start else None

    def token_ids(self) -> list[int]:
        return self.sequence.token_ids(self.start * self.block_size, self.stop * self.block_size)

    def extra_keys(self) -> list[tuple[str, ...] | None]:
        """Per block what beside its tokens entered its name: the adapter, and for the first one the salt."""
        request = self.sequence.request
        lora = (request.lora,) if request.lora else ()
        salt = (request.cache_salt,) if request.cache_salt else ()
        return [(*lora, *(salt if index == 0 else ())) or None for index in range(self.start, self.stop)]


@dataclass(frozen=True, slots=True)
class Removed:
    """The block of this name was handed out again."""

    name: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """Every name was forgotten."""


KvEntry = Stored | Removed | Cleared


class KvJournal:
    """Listens to a pool; the scheduler tells it what is in the blocks."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        pool.on_forgotten = self._removed
        self._block_size = block_size
        self._entries: list[KvEntry] = []

    def stored(self, sequence: EngineSequence, index: int) -> None:
        """Note that a full block is known; a prompt without token ids leaves nothing to tell."""
        if isinstance(sequence.request.prompt, Blocks):
            return
        last = self._entries[-1] if self._entries else None
        if isinstance(last, Stored) and last.sequence is sequence and last.stop == index:
            last.stop += 1
        else:
            self._entries.append(Stored(sequence, index, index + 1, self._block_size))

    def cleared(self) -> None:
        self._entries.append(Cleared())

    def take(self) -> list[KvEntry]:
        taken, self._entries = self._entries, []
        return taken

    def _removed(self, name: int) -> None:
        self._entries.append(Removed(name))
