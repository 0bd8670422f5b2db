"""Reported blocks: matched as the worker itself would, removed by their hashes alone."""

import random

import pytest
from block_pool import LruPool, Removed, Stored, removed, stored, token_key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from policies.prefixes.kv_blocks import KvBlocks

IDS = tuple(range(100, 120))


def held(*events, worker="a"):
    known = KvBlocks()
    known.follow(worker)
    for event in events:
        (known.stored if isinstance(event, Stored) else known.removed)(worker, event)
    return known


def match(known, ids=IDS, *, salt="", lora=None):
    return known.match(token_key(ids, salt), lora, {})


def test_a_prompt_is_matched_in_full_blocks_and_never_whole():
    known = held(stored(IDS))
    assert match(known) == {"a": 16}
    assert match(known, (*IDS, 1)) == {"a": 20}
    assert match(known, IDS[:9]) == {"a": 8}
    assert match(known, IDS[:4]) == {}
    assert match(known, (*IDS[:9], 1, 2, 3, 4)) == {"a": 8}


def test_a_prompt_without_a_full_block_is_nobodys():
    known = held(stored(IDS))
    assert match(known, ()) == {}
    assert match(known, (100,)) == {}


@pytest.mark.parametrize("numbers", [True, False])
def test_a_block_follows_its_parent_and_goes_by_its_hash(numbers):
    known = held(stored(IDS[:8], numbers=numbers), stored(IDS, after=8, numbers=numbers))
    assert match(known) == {"a": 16}
    known.removed("a", removed(IDS[:12], numbers=numbers))
    assert match(known) == {"a": 8}
    assert known.held_tokens("a") == 16
    known.stored("a", stored(IDS[:12], after=8, numbers=numbers))
    assert match(known) == {"a": 16}


def test_a_hash_is_known_by_its_last_eight_bytes():
    known = held(stored(IDS[:8], numbers=False), stored(IDS, after=8, numbers=True))
    assert match(known) == {"a": 16}


def test_every_worker_is_matched_as_far_as_it_holds_the_prompt():
    known = KvBlocks()
    for worker, end in (("a", 20), ("b", 8), ("c", 4), ("d", 0)):
        known.follow(worker)
        known.stored(worker, stored(IDS[:end]))
    assert match(known) == {"a": 16, "b": 8, "c": 4}


def test_workers_have_block_sizes_of_their_own():
    known = KvBlocks()
    for worker, size in (("a", 4), ("b", 6), ("c", 16)):
        known.follow(worker)
        known.stored(worker, stored(IDS, size))
    assert match(known) == {"a": 16, "b": 18, "c": 16}
    assert [known.block_size(worker) for worker in "abcd"] == [4, 6, 16, None]


def test_adapters_and_salts_are_kept_apart():
    salted = stored(IDS, salt="pepper", extra_keys=(("pepper",), *(None,) * 4))
    adapted = stored(IDS, lora="sql", extra_keys=(("sql",),) * 5)
    both = stored(IDS, lora="sql", salt="pepper", extra_keys=(("sql", "pepper"), *(("sql",),) * 4))
    for event, right in ((salted, ("pepper", None)), (adapted, ("", "sql")), (both, ("pepper", "sql"))):
        known = held(event)
        for salt in ("", "pepper"):
            for lora in (None, "sql"):
                expected = {"a": 16} if (salt, lora) == right else {}
                assert match(known, salt=salt, lora=lora) == expected


def test_a_salted_prompt_goes_on_under_its_salt():
    first = stored(IDS[:8], salt="pepper", extra_keys=(("pepper",), None))
    known = held(first, stored(IDS, after=8, salt="pepper", extra_keys=(None,) * 3))
    assert match(known, salt="pepper") == {"a": 16}


@pytest.mark.parametrize("image", [("3f2a", 0), "3f2a", b"\x00\x01"])
def test_a_block_with_media_is_no_block_of_text(image):
    known = held(stored(IDS, extra_keys=(None, (image,), None, None, None)))
    assert match(known) == {"a": 4}
    alone = held(stored(IDS, extra_keys=((image, ("9c", 2)), None, None, None, None)))
    assert match(alone) == {}


@pytest.mark.parametrize(
    "elsewhere", [{"medium": "CPU"}, {"medium": "STORAGE"}, {"kind": "sliding_window"}, {"kind": "mamba"}]
)
def test_what_is_no_hit_on_the_gpu_is_passed_over(elsewhere):
    known = held(stored(IDS, **elsewhere))
    assert match(known) == {}
    assert known.tally("a").passed_over == 5
    known.stored("a", stored(IDS))
    assert match(known) == {"a": 16}


@pytest.mark.parametrize("medium", [None, "GPU", "gpu"])
@pytest.mark.parametrize("kind", [None, "full_attention", "mla_attention", "unknown"])
def test_other_spellings_of_the_gpu_and_of_whole_prefixes_count(medium, kind):
    assert match(held(stored(IDS, medium=medium, kind=kind))) == {"a": 16}


def test_of_several_groups_the_first_that_keeps_whole_prefixes_is_followed():
    known = held(stored(IDS, group=0, kind="sliding_window"), stored(IDS, group=1), stored(IDS, group=2))
    assert (match(known), known.held_tokens("a")) == ({"a": 16}, 20)
    for group in (0, 2):
        known.removed("a", removed(IDS[:4], group=group))
    known.removed("a", removed(IDS[:4], group=1, medium="CPU"))
    assert match(known) == {"a": 16}
    known.removed("a", removed(IDS[:4], group=1))
    assert match(known) == {}


def test_partial_blocks_are_passed_over():
    known = held(stored(IDS), stored((*IDS, 1, 2), 2, after=20))
    assert (known.held_tokens("a"), known.tally("a").passed_over) == (20, 1)


def test_blocks_behind_an_unknown_parent_are_counted_and_left_out():
    known = held(stored(IDS, after=8))
    assert match(known) == {}
    assert (len(known), known.tally("a").unknown_parent, known.tally("a").stored) == (0, 3, 0)


def test_the_removal_of_what_was_never_stored_is_counted():
    known = held(stored(IDS), removed(IDS[:5]))
    assert match(known) == {"a": 16}
    assert (known.tally("a").unknown_removed, known.tally("a").removed) == (1, 0)


def test_a_block_that_was_stored_twice_is_held_until_both_copies_are_gone():
    known = held(stored(IDS[:8]), stored(IDS[:8], after=4))
    known.removed("a", removed(IDS[:8]))
    assert match(known) == {"a": 8}
    known.removed("a", removed(IDS[:8]))
    assert match(known) == {"a": 4}
    assert known.held_tokens("a") == 4


def test_copies_of_whole_prompts_are_counted_from_the_root_on():
    known = held(stored(IDS[:12]), stored(IDS[:12]), stored(IDS[:4]))
    assert (known.held_tokens("a"), known.copied_tokens("a")) == (12, 28)
    for end in (12, 8, 4):
        known.removed("a", removed(IDS[:end]))
    assert (match(known), known.copied_tokens("a")) == ({"a": 12}, 16)
    for end in (12, 8, 4, 4):
        known.removed("a", removed(IDS[:end]))
    assert (match(known), len(known), known.copied_tokens("a")) == ({}, 0, 0)


def test_one_block_under_two_hashes_is_held_until_both_are_gone():
    again = Stored((7,), None, IDS[:4], 4)
    known = held(stored(IDS[:4]), again, removed(IDS[:4]))
    assert match(known) == {"a": 4}
    known.removed("a", Removed((7,)))
    assert (match(known), len(known), known.held_tokens("a")) == ({}, 0, 0)


def test_a_hash_that_stands_for_something_else_now_is_believed():
    known = held(Stored((7,), None, IDS[:4], 4), Stored((7,), None, IDS[4:8], 4))
    known.stored("a", Stored((7, 8), None, IDS[4:12], 4))
    assert (match(known), match(known, IDS[4:])) == ({}, {"a": 8})
    assert len(known) == 2


@pytest.mark.parametrize(
    "nonsense",
    [
        Stored((1, 2), None, IDS[:7], 4),
        Stored((1,), None, IDS[:4], 0),
        Stored((1,), None, (-1, 2, 3, 4), 4),
        Stored((1,), None, (1 << 32, 2, 3, 4), 4),
        Stored((1,), None, ("a", "b", "c", "d"), 4),
    ],
)
def test_an_event_that_contradicts_itself_is_refused_and_changes_nothing(nonsense):
    known = held()
    with pytest.raises(ValueError, match="token ids"):
        known.stored("a", nonsense)
    assert (len(known), known.block_size("a")) == (0, None)


def test_a_worker_that_was_cleared_holds_nothing_and_goes_on():
    known = held(stored(IDS))
    known.follow("b")
    known.stored("b", stored(IDS[:8]))
    known.clear("a")
    assert (match(known), known.held_tokens("a")) == ({"b": 8}, 0)
    known.stored("a", stored(IDS, after=8))
    assert match(known) == {"b": 8}
    known.stored("a", stored(IDS[:12]))
    assert match(known) == {"a": 12, "b": 8}


def test_a_worker_that_was_dropped_is_not_followed():
    known = held(stored(IDS))
    known.drop("a")
    known.drop("a")
    assert ("a" in known, match(known)) == (False, {})
    known.follow("a")
    known.follow("a")
    assert match(known) == {}


def test_what_is_held_no_more_is_forgotten_a_few_blocks_at_a_time():
    known = held(stored(range(400)))
    known.follow("b")
    known.stored("b", stored(range(40)))
    known.clear("a")
    assert len(known) == 100
    assert known.sweep(30)
    assert len(known) >= 70
    assert known.sweep(30)
    assert not known.sweep(60)
    assert (len(known), match(known, range(41))) == (10, {"b": 40})


def test_the_places_of_those_who_left_are_used_again():
    known = KvBlocks()
    for number in range(40):
        known.follow(f"w{number}")
        known.stored(f"w{number}", stored(IDS))
        assert match(known) == {f"w{number}": 16}
        known.drop(f"w{number}")
    assert known._bits < 40
    known.follow("z")
    assert match(known) == {}


def test_many_workers_may_hold_one_block():
    known = KvBlocks()
    names = [f"w{number}" for number in range(70)]
    for name in names:
        known.follow(name)
        known.stored(name, stored(IDS))
    assert match(known) == dict.fromkeys(names, 16)
    for name in names[:69]:
        known.removed(name, removed(IDS[:4]))
    assert match(known) == {"w69": 16}


def test_the_digests_of_a_prompt_are_computed_once_and_no_further_than_needed():
    known = held(stored(IDS[:8]))
    chains = {}
    known.match(token_key(IDS), None, chains)
    [(_, digests)] = chains.items()
    assert len(digests) == 3  # two that are held, and the first that is not
    before = digests[:]
    known.stored("a", stored(IDS, after=8))
    assert known.match(token_key(IDS), None, chains) == {"a": 16}
    assert chains[4, None] is digests
    assert digests[:3] == before


class Fleet(RuleBasedStateMachine):
    """Two caches that report, each with a block size and a bound of its own, and what each would find."""

    def __init__(self):
        super().__init__()
        self.known = KvBlocks()
        self.pools = {"a": LruPool(5, 2), "b": LruPool(3, 3, numbers=False)}
        for worker in self.pools:
            self.known.follow(worker)

    @rule(worker=st.sampled_from("ab"), prompt=st.lists(st.integers(0, 1), max_size=14))
    def compute(self, worker, prompt):
        for event in self.pools[worker].run(prompt):
            (self.known.stored if isinstance(event, Stored) else self.known.removed)(worker, event)

    @rule(worker=st.sampled_from("ab"))
    def empty(self, worker):
        self.pools[worker].copies.clear()
        self.known.clear(worker)

    @rule(worker=st.sampled_from("ab"))
    def leave_and_come_back(self, worker):
        self.pools[worker].copies.clear()
        self.known.drop(worker)
        self.known.follow(worker)

    @rule(limit=st.integers(1, 4))
    def sweep(self, limit):
        self.known.sweep(limit)

    @rule(prompt=st.lists(st.integers(0, 1), max_size=16))
    def ask(self, prompt):
        hits = {worker: pool.hits(prompt) for worker, pool in self.pools.items()}
        assert match(self.known, prompt) == {worker: tokens for worker, tokens in hits.items() if tokens}

    @invariant()
    def as_much_is_held_as_the_pools_hold(self):
        for worker, pool in self.pools.items():
            assert self.known.held_tokens(worker) == len(set(pool.copies.values())) * pool.size
        if not self.known.sweep(0):
            blocks = {(pool.size, prefix) for pool in self.pools.values() for prefix in pool.copies.values()}
            assert len(self.known) == len(blocks)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_long_life_leaves_what_the_pool_holds():
    chance = random.Random(5)
    known, pool = held(), LruPool(200, 4)
    heads = [[chance.randrange(50) for _ in range(chance.randrange(40))] for _ in range(8)]
    for _ in range(600):
        prompt = chance.choice(heads) + [chance.randrange(50) for _ in range(chance.randrange(60))]
        assert match(known, prompt).get("a", 0) == pool.hits(prompt)
        for event in pool.run(prompt):
            (known.stored if isinstance(event, Stored) else known.removed)("a", event)
    tally = known.tally("a")
    assert (tally.unknown_parent, tally.unknown_removed, tally.passed_over) == (0, 0, 0)
    assert known.held_tokens("a") == len(set(pool.copies.values())) * 4
