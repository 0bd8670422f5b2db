"""The block pool against a naive oracle, and the names of blocks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.simulator.kv_cache import BlockPool, chain, extra_key, split_names


class OraclePool:
    """The same contract with lists and linear searches."""

    def __init__(self, blocks):
        self.line = [(block, None) for block in range(blocks)]  # free blocks with what they still contain
        self.held = {}  # block -> [references, name]

    def content(self):
        known = {name: block for block, name in self.line if name is not None}
        return known | {name: block for block, (_, name) in self.held.items() if name is not None}

    def match(self, names, limit):
        known, found = self.content(), []
        for name in names[:limit]:
            if name not in known:
                break
            found.append(known[name])
        return found

    def take(self, shared, fresh):
        rest = [entry for entry in self.line if entry[0] not in shared]
        if len(rest) < fresh:
            return None
        for block in shared:
            name = next((name for other, name in self.line if other == block), None)
            self.held.setdefault(block, [0, name])[0] += 1
        for block, _ in rest[:fresh]:
            self.held[block] = [1, None]
        self.line = rest[fresh:]
        return [*shared, *(block for block, _ in rest[:fresh])]

    def name(self, block, name):
        if name not in self.content() and self.held[block][1] is None:
            self.held[block][1] = name

    def release(self, blocks):
        for block in reversed(blocks):
            self.held[block][0] -= 1
            if not self.held[block][0]:
                self.line.append((block, self.held.pop(block)[1]))


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(prompts, st.integers(0, 3), st.booleans()), max_size=25), st.integers(3, 10))
def test_pool_does_what_the_oracle_does(steps, blocks):
    pool, oracle, held = BlockPool(blocks), OraclePool(blocks), []
    for tokens, fresh, give_back in steps:
        if give_back and held:
            taken = held.pop(0)
            pool.release(taken)
            oracle.release(taken)
        names = chain(tokens, 1)
        shared = pool.match(names, len(names) - 1)
        assert shared == oracle.match(names, len(names) - 1)
        taken = pool.take(shared, fresh)
        assert taken == oracle.take(shared, fresh)
        if taken is not None:
            held.append(taken)
            for block, name in zip(taken, names, strict=False):
                pool.name(block, name)
                oracle.name(block, name)
        assert pool.used == len(oracle.held)
        assert pool.named == len(oracle.content())
    for taken in held:
        pool.release(taken)
    assert pool.used == 0


def test_a_chain_names_full_blocks_only_and_depends_on_everything_before():
    names = chain(range(10), 4)
    assert len(names) == 2
    assert chain(range(8), 4) == names
    other = chain([9, *range(1, 8)], 4)
    assert other[0] != names[0]
    assert other[1] != names[1]


def test_salt_and_adapter_separate_caches():
    plain, salted = chain(range(8), 4), chain(range(8), 4, salt=extra_key("a"))
    tuned = chain(range(8), 4, lora=extra_key("sql"))
    assert not {*plain} & {*salted}
    assert not {*plain} & {*tuned}
    assert not {*salted} & {*tuned}


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning():
    pool = BlockPool(4)
    names = chain(range(4), 1)
    blocks = pool.take((), 4)
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    pool.release(blocks)
    pool.release(pool.take((), 2))
    assert len(pool.match(names, 4)) == 2


def test_no_caching_means_no_match():
    pool = BlockPool(2, caching=False)
    [block] = pool.take((), 1)
    pool.name(block, 7)
    assert pool.match([7], 1) == []


def test_trace_names_are_refined_to_engine_blocks():
    fine = split_names([11, 12], 512, 128)
    assert len(fine) == 8
    assert fine[:4] == split_names([11, 99], 512, 128)[:4]
    with pytest.raises(ValueError, match="do not divide"):
        split_names([1], 512, 100)
