"""The tree against a dictionary of prefixes, its invariants, and the cases worth reading."""

import gc
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from policies.prefixes.radix_tree import NO_CHILDREN, NO_COUNTS, Node, PrefixTree, Root, TokenBudget, common_length

WORKERS = ["a", "b", "c"]
# Of width 4, two units share all but their last byte and two all but their first.
ALPHABETS = {1: [b"x", b"y"], 4: [b"0001", b"0002", b"1001"]}


class Oracle:
    """Per worker a dictionary from each held prefix to the number of its last use; nothing is clever.

    The first unit of a key and of its prefixes names its space, and is not held itself.
    """

    def __init__(self, width):
        self.width = width
        self.uses = 0
        self.capacity = dict.fromkeys(WORKERS, 8)
        self.held = {worker: {} for worker in WORKERS}
        self.pins = []

    def prefixes(self, key):
        return [key[: n * self.width] for n in range(2, len(key) // self.width + 1)]

    def insert(self, worker, key):
        pin = (worker, key[: (self.capacity[worker] + 1) * self.width])
        self.pins.append(pin)
        self.use(pin)
        self.shrink(worker)
        return pin

    def use(self, pin):
        self.uses += 1
        self.held[pin[0]].update(dict.fromkeys(self.prefixes(pin[1]), self.uses))

    def release(self, pin, *, used):
        if pin in self.pins:
            self.pins.remove(pin)
            if used:
                self.use(pin)
            self.shrink(pin[0])

    def pinned(self, worker):
        return {prefix for owner, key in self.pins if owner == worker for prefix in self.prefixes(key)}

    def eviction_order(self, worker):
        held = self.held[worker]
        return sorted(held, key=lambda prefix: (held[prefix], -len(prefix)))

    def shrink(self, worker):
        for prefix in self.eviction_order(worker):
            if len(self.held[worker]) > self.capacity[worker] and prefix not in self.pinned(worker):
                del self.held[worker][prefix]

    def evict(self, worker, key, keep):
        for lost in self.prefixes(key)[keep : keep + 1]:
            for prefix in list(self.held[worker]):
                if prefix.startswith(lost) and prefix not in self.pinned(worker):
                    del self.held[worker][prefix]

    def remove(self, worker):
        self.held[worker] = {}
        self.capacity[worker] = 8
        self.pins = [pin for pin in self.pins if pin[0] != worker]

    def match(self, key):
        depths = {w: sum(prefix in held for prefix in self.prefixes(key)) for w, held in self.held.items()}
        return {worker: depth for worker, depth in depths.items() if depth}


def nodes_with_keys(tree):
    """Every node but the roots, with the key that leads to its end, behind its space."""
    pending = [(root, root.space or b"") for root in tree._shape.roots.values()]
    while pending:
        node, key = pending.pop()
        for child in node.children.values():
            assert child.parent is node
            pending.append((child, key + child.edge))
            yield child, key + child.edge


def check_invariants(tree):
    width = tree.width
    nodes = dict(nodes_with_keys(tree))
    assert NO_CHILDREN == {}
    assert NO_COUNTS == {}
    for node in [*tree._shape.roots.values(), *nodes]:
        assert node.children or node.parent is not None, "a root without children"
        children = list(node.children.values())
        assert list(node.children) == [child.edge[:width] for child in children]
        counts = {w: sum(w in child.stamps for child in children) for child in children for w in child.stamps}
        assert node.held_children == counts
    for node in nodes:
        assert node.edge
        assert len(node.edge) % width == 0
        assert node.stamps, "a node without a holder"
        assert node.pins.keys() <= node.stamps.keys()
        if not isinstance(node.parent, Root):
            assert node.stamps.keys() <= node.parent.stamps.keys(), "not closed under prefixes"
            assert all(stamp <= node.parent.stamps[w] for w, stamp in node.stamps.items())
            assert all(pins <= node.parent.pins[w] for w, pins in node.pins.items())
        for child in node.children.values():
            alike = (node.stamps, node.pins) == (child.stamps, child.pins)
            assert len(node.children) > 1 or not alike, "a boundary without a reason"
    for worker, cache in tree.caches.items():
        mine = [node for node in nodes if worker in node.stamps]
        assert cache.held == sum(len(node.edge) for node in mine) // width
        assert cache.pinned == sum(len(node.edge) for node in mine if worker in node.pins) // width
        assert cache.held <= tree.budget.capacity(worker) or cache.held == cache.pinned
        leaves = [node for node in mine if worker not in node.held_children and worker not in node.pins]
        assert cache.leaves == {node.stamps[worker]: node for node in leaves}
        assert len(cache.leaves) == len(leaves)
        assert cache.leaves.keys() <= set(cache.heap)
        assert len(cache.heap) <= 2 * len(nodes) + 64
    stats = tree.stats()
    assert (stats.nodes, stats.bytes) == (len(nodes), sum(len(node.edge) for node in nodes))
    assert stats.workers == len(tree.caches)


def eviction_order(tree, worker):
    """All prefixes that the worker holds, in the order in which it would lose them."""
    width = tree.width
    units = [
        (node.stamps[worker], -len(key) + cut, key[: len(key) - cut])
        for node, key in nodes_with_keys(tree)
        if worker in node.stamps
        for cut in range(0, len(node.edge), width)
    ]
    return [prefix for _, _, prefix in sorted(units)]


class Comparison(RuleBasedStateMachine):
    """The same events to the tree and to the oracle; equal answers after each."""

    width = 1
    pins = Bundle("pins")
    workers = st.sampled_from(WORKERS)

    @initialize()
    def build(self):
        self.budget = TokenBudget(8)
        self.tree = PrefixTree(self.width, budget=self.budget)
        self.oracle = Oracle(self.width)

    def key(self, units, rest):
        return (
            b"".join(ALPHABETS[self.width][unit % len(ALPHABETS[self.width])] for unit in units)
            + rest[: self.width - 1]
        )

    spaces = st.sampled_from([b"A", b"B"])
    units = st.lists(st.integers(0, 2), max_size=10)
    rests = st.sampled_from([b"", b"000"])
    times = st.integers(0, 5)

    @rule(target=pins, worker=workers, space=spaces, units=units, rest=rests, now=times)
    def insert(self, worker, space, units, rest, now):
        key, space = self.key(units, rest), space * self.width
        return self.tree.insert(worker, key, now, space), self.oracle.insert(worker, space + key)

    @rule(worker=workers, space=spaces, units=units, now=times)
    def insert_and_release(self, worker, space, units, now):
        key, space = self.key(units, b""), space * self.width
        self.tree.release(self.tree.insert(worker, key, now, space))
        self.oracle.release(self.oracle.insert(worker, space + key), used=False)

    @rule(pair=consumes(pins), now=st.none() | times, twice=st.booleans())
    def release(self, pair, now, twice):
        pin, expected = pair
        live = not pin.cache.gone
        self.tree.release(pin, now)
        if twice:
            self.tree.release(pin, now)
        if live:
            self.oracle.release(expected, used=now is not None)

    @rule(worker=workers, space=spaces, units=units, rest=rests, keep=st.integers(0, 10))
    def evict(self, worker, space, units, rest, keep):
        key, space = self.key(units, rest), space * self.width
        self.tree.evict(worker, key, keep, space)
        self.oracle.evict(worker, space + key, keep)

    @rule(worker=workers, capacity=st.integers(0, 30))
    def set_capacity(self, worker, capacity):
        self.budget.set_capacity(worker, capacity)
        self.oracle.capacity[worker] = capacity
        self.oracle.shrink(worker)

    @rule(worker=workers)
    def remove_worker(self, worker):
        self.budget.remove_worker(worker)
        self.oracle.remove(worker)

    @rule(space=spaces, units=units, rest=rests)
    def ask(self, space, units, rest):
        key, space = self.key(units, rest), space * self.width
        matches = self.oracle.match(space + key)
        assert self.tree.match(key, space) == matches
        whole = len(key) // self.width
        assert self.tree.holders(key, space) == {w for w, depth in matches.items() if depth == whole}

    @invariant()
    def agrees(self):
        check_invariants(self.tree)
        for worker in WORKERS:
            assert eviction_order(self.tree, worker) == self.oracle.eviction_order(worker)
            assert self.tree.held(worker) == len(self.oracle.held[worker])
            assert self.tree.pinned(worker) == len(self.oracle.pinned(worker))
            assert self.budget.capacity(worker) == self.oracle.capacity[worker]


class WideComparison(Comparison):
    width = 4


TestTextAgainstDictionary = Comparison.TestCase
TestTokensAgainstDictionary = WideComparison.TestCase
TestTextAgainstDictionary.settings = TestTokensAgainstDictionary.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None
)


def tree_of(width=1, capacity=100):
    return PrefixTree(width, budget=TokenBudget(capacity))


def visit(tree, worker, key, now=0.0):
    tree.release(tree.insert(worker, key, now))


def test_each_worker_matches_its_own_longest_prefix():
    tree = tree_of()
    visit(tree, "a", b"system: be brief. user: hi")
    visit(tree, "b", b"system: be brief. user: bye")
    visit(tree, "c", b"system: b")
    assert tree.match(b"system: be brief. user: hello") == {"a": 25, "b": 24, "c": 9}
    assert tree.match(b"user") == {}
    assert tree.holders(b"system: be") == {"a", "b"}
    assert tree.holders(b"system: ") == {"a", "b", "c"}


def test_a_question_changes_nothing():
    tree = tree_of()
    visit(tree, "a", b"abcdef")
    before = tree.stats()
    assert tree.match(b"abcxyz") == {"a": 3}
    assert tree.holders(b"abc") == {"a"}
    assert (tree.held("stranger"), tree.pinned("stranger"), tree.stats()) == (0, 0, before)


def test_units_are_compared_whole():
    tree = tree_of(width=4)
    visit(tree, "a", b"\0\0\0\1\0\0\0\2")
    assert tree.match(b"\0\0\0\1\0\0\0\3") == {"a": 1}
    assert tree.match(b"\0\0\0\2") == {}
    visit(tree, "b", b"\0\0\0\1\0\0\0\3")
    assert tree.stats().nodes == 3
    assert all(len(node.edge) == 4 for node, _ in nodes_with_keys(tree))


def test_an_incomplete_last_unit_is_ignored():
    tree = tree_of(width=4)
    visit(tree, "a", b"aaaabbbbcc")
    assert tree.held("a") == 2
    assert tree.match(b"aaaabbbbcc") == {"a": 2}
    assert tree.holders(b"aaaabbbbcc") == {"a"}


def test_the_tail_of_the_least_recently_used_path_goes_first():
    tree = tree_of(capacity=10)
    visit(tree, "a", b"aaaaaa", now=1)
    visit(tree, "a", b"bbbb", now=2)
    visit(tree, "a", b"cc", now=3)
    assert tree.match(b"aaaaaa") == {"a": 4}
    visit(tree, "a", b"aaaa", now=4)
    visit(tree, "a", b"ddd", now=5)
    assert (tree.match(b"aaaa"), tree.match(b"bbbb")) == ({"a": 4}, {"a": 1})
    assert tree.stats().evicted == 5


def test_a_shared_head_outlives_its_branches():
    tree = tree_of(capacity=8)
    visit(tree, "a", b"headAA", now=1)
    visit(tree, "a", b"headBB", now=2)
    visit(tree, "a", b"xxxx", now=3)
    assert tree.match(b"headAA") == {"a": 4}
    visit(tree, "a", b"yyyy", now=4)
    assert tree.match(b"head") == {}
    assert tree.match(b"xxxx") == {"a": 4}


def test_equal_and_decreasing_times_keep_the_order_of_use():
    tree = tree_of(capacity=4)
    visit(tree, "a", b"aa", now=9)
    visit(tree, "a", b"bb", now=9)
    visit(tree, "a", b"cc", now=3)
    assert tree.match(b"aa") == {}
    assert tree.holders(b"bb") == tree.holders(b"cc") == {"a"}


def test_other_workers_do_not_change_what_one_loses():
    alone, crowded = tree_of(capacity=12), tree_of(capacity=12)
    rng = random.Random(5)
    for now in range(300):
        key = bytes(rng.choices(b"xy", k=rng.randrange(1, 9)))
        visit(alone, "a", key, now)
        visit(crowded, "a", key, now)
        visit(crowded, f"other {now % 7}", bytes(rng.choices(b"xy", k=8)), now)
    assert eviction_order(alone, "a") == eviction_order(crowded, "a")


def test_a_pinned_path_is_not_evicted():
    tree = tree_of(capacity=6)
    pin = tree.insert("a", b"aaaa", now=1)
    visit(tree, "a", b"bbbb", now=2)
    assert tree.match(b"aaaa") == {"a": 4}
    assert tree.held("a") == 6
    tree.release(pin)
    visit(tree, "a", b"cccc", now=3)
    assert tree.match(b"aaaa") == {}


def test_pinned_paths_may_exceed_the_capacity_until_they_are_released():
    tree = tree_of(capacity=4)
    first, second = tree.insert("a", b"aaaa", now=1), tree.insert("a", b"bbbb", now=2)
    assert (tree.held("a"), tree.pinned("a")) == (8, 8)
    tree.release(second)
    assert (tree.match(b"aaaa"), tree.match(b"bbbb")) == ({"a": 4}, {})
    tree.release(first)
    assert tree.held("a") == 4


def test_a_key_beyond_the_capacity_is_held_at_its_head():
    tree = tree_of(capacity=4)
    pin = tree.insert("a", b"abcdefgh", now=1)
    assert tree.match(b"abcdefgh") == {"a": 4}
    assert tree.pinned("a") == 4
    tree.release(pin)


def test_a_prefix_shared_by_running_requests_is_pinned_once():
    tree = tree_of()
    pins = [tree.insert("a", b"head" + tail, now=1) for tail in (b"A", b"BB", b"", b"BB")]
    assert tree.pinned("a") == 7
    for pin, left in zip(pins, (6, 6, 6, 0), strict=True):
        tree.release(pin)
        tree.release(pin)
        assert tree.pinned("a") == left


def test_a_release_with_a_time_counts_as_a_use():
    tree = tree_of(capacity=6)
    long_running = tree.insert("a", b"aaa", now=1)
    visit(tree, "a", b"bbb", now=2)
    tree.release(long_running, now=3)
    visit(tree, "a", b"ccc", now=4)
    assert tree.holders(b"aaa") == {"a"}
    assert tree.match(b"bbb") == {}


def test_a_growing_chat_stays_one_node():
    tree = tree_of(capacity=1000)
    for turns in range(1, 50):
        visit(tree, "a", b"turn " * turns, now=turns)
    assert tree.stats().nodes == 1
    pin = tree.insert("a", b"turn " * 50, now=50)
    tree.insert("a", b"turn " * 51, now=51)
    assert tree.stats().nodes == 2
    tree.release(pin)
    assert tree.stats().nodes == 1


def test_a_report_of_eviction_takes_everything_beyond_it():
    tree = tree_of()
    visit(tree, "a", b"abcdXX")
    visit(tree, "a", b"abcdYY")
    visit(tree, "b", b"abcdYY")
    tree.evict("a", b"abcdYY", keep=3)
    assert tree.match(b"abcdXX") == {"a": 3, "b": 4}
    tree.evict("a", b"abZ", keep=2)
    assert tree.match(b"abc") == {"a": 3, "b": 3}
    tree.evict("b", b"abcdYY", keep=0)
    assert (tree.held("a"), tree.held("b"), tree.stats().evicted) == (3, 0, 11)
    tree.evict("stranger", b"abc", keep=0)


def test_a_report_of_eviction_does_not_take_what_a_request_pins():
    tree = tree_of()
    visit(tree, "a", b"abcdXX")
    pin = tree.insert("a", b"abcdYY", now=1)
    tree.evict("a", b"abcd", keep=1)
    assert tree.match(b"abcdXX") == {"a": 4}
    assert tree.pinned("a") == tree.held("a") == 6
    tree.release(pin)


def test_a_smaller_capacity_evicts_at_once_except_what_is_pinned():
    tree = tree_of()
    visit(tree, "a", b"aaaa", now=1)
    pin = tree.insert("a", b"bbbb", now=2)
    tree.budget.set_capacity("a", 2)
    assert tree.held("a") == tree.pinned("a") == 4
    tree.release(pin)
    assert tree.match(b"bbbb") == {"a": 2}


def test_a_removed_worker_leaves_nothing_and_its_pins_are_harmless():
    tree = tree_of()
    visit(tree, "b", b"head")
    old = tree.insert("a", b"headtail", now=1)
    tree.remove_worker("a")
    assert tree.match(b"headtail") == {"b": 4}
    new = tree.insert("a", b"headtail", now=2)
    tree.release(old)
    assert tree.pinned("a") == 8
    tree.release(new)
    tree.remove_worker("a")
    tree.remove_worker("a")
    tree.remove_worker("b")
    assert (tree.stats().nodes, tree.stats().bytes, tree.stats().workers) == (0, 0, 0)


def test_splitting_a_node_of_many_workers_pushes_no_leaf():
    tree = tree_of()
    for number in range(64):
        visit(tree, f"w{number}", b"shared prompt")
    pushed = {worker: list(cache.heap) for worker, cache in tree.caches.items()}
    tree.insert("another", b"shared", now=1)
    assert {worker: tree.caches[worker].heap for worker in pushed} == pushed
    assert tree.stats().splits == 1
    check_invariants(tree)


def test_evicted_nodes_are_freed_without_the_collector():
    tree = tree_of(capacity=10)
    visit(tree, "a", b"xxxxxxxx")
    visit(tree, "a", b"xxxxyyyy")
    count = tree.stats().nodes
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(thing, Node) for thing in gc.get_objects())
        tree.remove_worker("a")
        after = sum(isinstance(thing, Node) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert before - after == count + 1, "with the root"


def test_twenty_thousand_inserts_leave_a_bounded_tree():
    rng = random.Random(11)
    tree = tree_of(capacity=400)
    systems = [rng.randbytes(60) for _ in range(5)]
    pins = []
    most = 0
    for now in range(20_000):
        worker = f"w{rng.randrange(4)}"
        key = systems[rng.randrange(5)][: rng.randrange(10, 61)] + rng.randbytes(rng.randrange(40))
        pins.append(tree.insert(worker, key, now))
        if len(pins) > 3:
            tree.release(pins.pop(rng.randrange(4)), rng.choice([None, now]))
        most = max(most, tree.stats().nodes)
        assert tree.held(worker) <= 400
        assert len(tree.caches[worker].heap) <= 2 * len(tree.caches[worker].leaves) + 65
    # Each worker remembers at most about 400 / 20 branches, each of which costs at most two nodes.
    assert most < 4 * 2 * 40
    check_invariants(tree)


def test_touching_the_same_path_forever_keeps_the_heap_small():
    tree = tree_of()
    for now in range(5000):
        visit(tree, "a", b"again", now)
    assert len(tree.caches["a"].heap) <= 100


@given(
    head=st.integers(0, 700),
    tails=st.tuples(st.binary(max_size=200), st.binary(max_size=200)),
    start=st.integers(0, 9),
    width=st.sampled_from([1, 4, 8]),
)
@settings(max_examples=300, deadline=None)
def test_the_common_head_is_found_wherever_it_ends(head, tails, start, width):
    shared = random.Random(head).randbytes(head)
    edge, rest = shared + tails[0], shared + tails[1]
    edge = edge[: len(edge) - len(edge) % width]
    assume(not rest.startswith(edge))
    same = next((i for i, (x, y) in enumerate(zip(edge, rest, strict=False)) if x != y), min(len(edge), len(rest)))
    assert common_length(edge, bytes(start) + rest, start, width) == same - same % width


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="1 byte"):
        PrefixTree(0, budget=TokenBudget(1))
    with pytest.raises(ValueError, match="0 tokens"):
        TokenBudget(-1)
    with pytest.raises(ValueError, match="-3"):
        TokenBudget(1).set_capacity("a", -3)
