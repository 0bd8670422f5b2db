"""How fast is each worker? As fast as its pool, times what it has shown to be faster or slower itself.

Workers of a pool serve the same models and are mostly of one kind, so what a prompt and a step cost is learned
from all of them together; a worker adds two factors, for prefill and decode. Learned by each alone, workers that
are equal came to look different, and requests went after the error (`benchmarks/LOG.md`). A worker that has shown
nothing yet is as fast as its fellows.

An observation moves the worker's factors first, as far as it is new there, then the pool by what they do not
explain. While the pool itself is new, nearly all goes to the pool.
"""

from collections.abc import Callable

from policies.fleet.profile import Profile

_RATE = 0.02
"""Weight of one observation for a worker's factor, once it has shown many: well below its weight for the pool."""
_NEW = 16
"""A pool that has seen so many observations knows its scale."""
_FOLLOWED = 64
"""So many observations of a pool that is no longer new are followed at once."""
_STEP = 64.0
"""The largest factor between a worker's estimate and an observation that is taken at face value."""


class Pool:
    """What all workers of one pool have taught."""

    def __init__(self) -> None:
        self.profile = Profile()
        self.newcomers: set[Pace] = set()
        self._lessons = 0

    def taught(self, profile: Profile) -> None:
        """Take in what an observation has made of the pool's profile; whoever has shown nothing yet follows.

        At once while the pool is new, later now and then: many of a large fleet may wait for their first request.
        """
        self.profile = profile
        self._lessons += 1
        if self._lessons <= 2 * _NEW or self._lessons % _FOLLOWED == 0:
            for pace in self.newcomers:
                pace.follow(profile)


class Pace:
    """One worker's own share in its speed; `profile` is the whole of it, as of its last observation."""

    def __init__(self, pool: Pool, changed: Callable[[], None]) -> None:
        """`changed` is called when the pool has taught this worker something."""
        self.profile = pool.profile
        self._pool = pool
        self._changed = changed
        self._prefill = self._decode = 1.0
        self._prefills = self._decodes = 0
        pool.newcomers.add(self)

    def leave(self) -> None:
        """The worker has left the pool. Should it come back, what it has shown till then counts."""
        self._pool.newcomers.discard(self)

    def follow(self, profile: Profile) -> None:
        """Nothing is known of this worker itself: it is as fast as the others."""
        self.profile = profile
        self._changed()

    def saw_prefill(self, extend_tokens: int, seconds: float, token_pairs: float) -> None:
        """As `Profile.saw_prefill`."""
        pool = self._pool.profile
        expected_s = self._prefill * pool.prefill_of(extend_tokens, token_pairs)
        self._prefill *= _moved(seconds / expected_s, self._prefills, pool.prefills)
        self._prefills += 1
        self._teach(pool.saw_prefill(extend_tokens, seconds / self._prefill, token_pairs))

    def saw_decode(self, output_tokens: int, seconds: float, batch: int, context_tokens: int) -> None:
        """As `Profile.saw_decode`."""
        pool = self._pool.profile
        expected_s = self._decode * pool.decode_s(output_tokens, batch, context_tokens)
        self._decode *= _moved(seconds / expected_s, self._decodes, pool.decodes)
        self._decodes += 1
        self._teach(pool.saw_decode(output_tokens, seconds / self._decode, batch, context_tokens))

    def saw_whole(
        self, extend_tokens: int, output_tokens: int, seconds: float, batch: int, context_tokens: int
    ) -> None:
        """As `Profile.saw_whole`."""
        pool = self._pool.profile
        prefill_s = pool.prefill_s(extend_tokens)
        decode_s = pool.decode_s(output_tokens, batch, context_tokens)
        ratio = seconds / (self._prefill * prefill_s + self._decode * decode_s)
        self._prefill *= _moved(ratio, self._prefills, pool.prefills)
        self._decode *= _moved(ratio, self._decodes, pool.decodes)
        self._prefills += 1
        self._decodes += 1
        slower = (self._prefill * prefill_s + self._decode * decode_s) / (prefill_s + decode_s)
        self._teach(pool.saw_whole(extend_tokens, output_tokens, seconds / slower, batch, context_tokens))

    def _teach(self, pool: Profile) -> None:
        self.profile = pool.scaled(self._prefill, self._decode)
        self._pool.newcomers.discard(self)
        self._pool.taught(pool)


def _moved(ratio: float, seen: int, seen_by_all: int) -> float:
    """The factor that an observation this far from the estimate moves a worker that has shown so many."""
    weight = max(_RATE, 1.0 / (seen + 1)) if seen_by_all >= _NEW else _RATE
    moved: float = min(max(ratio, 1.0 / _STEP), _STEP) ** weight
    return moved
