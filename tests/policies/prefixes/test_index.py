"""Prefixes in tokens: by adapter, less than the prompt, pinned while a request runs, bounded by the worker."""

from dataclasses import replace

import pytest
from block_pool import LruPool, Stored, asking, removed, stored
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from policies.model import PrefixKey, RequestView, WorkerFacts
from policies.prefixes.index import Prefixes
from policies.prefixes.trust import Trust

LOREM = b"lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod"


def request(prompt=LOREM, *, served_name="base", per_unit=0.25, width=1, salt=b"", tokens=None):
    return RequestView(
        id="r",
        client="anna",
        served_name=served_name,
        key=PrefixKey(prompt, width, per_unit, salt),
        input_tokens=int(len(prompt) // width * per_unit) if tokens is None else tokens,
        expected_output_tokens=9,
        arrived=0.0,
    )


def holding(*prompts, worker="a", **fields):
    known = Prefixes()
    for prompt in prompts:
        known.release(known.insert(worker, request(prompt, **fields), 0.0), 1.0)
    return known


def with_adapters(*names, kv_tokens=None, known=None):
    """An index of a pool whose worker serves these LoRA adapters."""
    known = Prefixes() if known is None else known
    served = frozenset({"base", *names})
    known.update_facts(WorkerFacts("a", served, adapters=frozenset(names), kv_tokens=kv_tokens))
    return known


def test_nothing_is_known_at_first():
    assert Prefixes().match(request()) == {}


def test_what_was_sent_to_a_worker_is_matched_there_in_tokens():
    known = holding(LOREM[:40])
    assert known.match(request()) == {"a": 10}


def test_one_token_of_a_prompt_is_always_computed():
    known = holding(LOREM, per_unit=1.0)
    assert known.match(request(per_unit=1.0)) == {"a": len(LOREM) - 1}


def test_a_worker_whose_share_is_less_than_a_token_is_absent():
    known = holding(b"lo")
    assert known.match(request()) == {}
    assert holding(LOREM).match(request(tokens=1)) == {}


def test_adapters_and_kinds_of_key_do_not_share_prefixes():
    known = with_adapters("lora", known=holding(LOREM))
    assert known.match(request(served_name="lora")) == {}
    assert known.match(request(served_name="an alias of base")).keys() == {"a"}
    assert known.match(request(LOREM[:40], width=4, per_unit=1.0)) == {}
    assert sorted(known.stats()) == [1]


def test_a_request_without_a_key_is_neither_matched_nor_pinned():
    known = holding(LOREM)
    assert known.match(request(b"", tokens=5)) == {}
    assert known.insert("a", request(b"", tokens=5), 0.0) is None


def test_token_ids_are_counted_whole():
    known = Prefixes()
    known.insert("a", request(bytes(40), width=4, per_unit=1.0), 0.0)
    assert known.match(request(bytes(41), width=4, per_unit=1.0, tokens=50)) == {"a": 10}


def test_a_shared_prefix_is_pinned_once_and_until_the_last_release():
    known = Prefixes()
    first = known.insert("a", request(LOREM[:40]), 0.0)
    second = known.insert("a", request(LOREM[:60]), 0.0)
    assert known.pinned_tokens("a") == 15
    known.release(second, 1.0)
    assert known.pinned_tokens("a") == 10
    known.release(second, 1.0)
    assert known.pinned_tokens("a") == 10
    known.release(first, 1.0)
    assert known.pinned_tokens("a") == 0


def test_pins_add_up_over_adapters():
    known = with_adapters("lora")
    known.insert("a", request(LOREM[:40]), 0.0)
    known.insert("a", request(LOREM[:40], served_name="lora"), 0.0)
    known.insert("b", request(LOREM[:40]), 0.0)
    assert (known.pinned_tokens("a"), known.pinned_tokens("b"), known.pinned_tokens("c")) == (20, 10, 0)


def test_a_prompt_that_was_not_computed_is_forgotten_beyond_what_was_there():
    known = holding(LOREM[:40])
    pin = known.insert("a", request(LOREM[:60]), 1.0)
    known.release(pin, 1.0)
    known.forget("a", request(LOREM[:60]), 10)
    assert known.match(request()) == {"a": 10}
    known.forget("a", request(b"never seen", served_name="lora"), 0)


def test_a_worker_holds_no_more_than_its_capacity():
    known = Prefixes()
    known.set_capacity("a", 5)
    known.release(known.insert("a", request(), 0.0), 1.0)
    assert known.match(request()) == {"a": 5}


@pytest.mark.parametrize(
    "kinds", [[{}], [{}, {"width": 4, "per_unit": 1.0}], [{"salt": b"one"}, {"salt": b"other"}]]
)
def test_a_worker_holds_no_more_than_its_capacity_whatever_the_number_of_adapters_and_kinds_of_key(kinds):
    """As one LRU cache would: what was used last, under any name, and nothing of what came before."""
    names = ["base", "l1", "l2", "l3"]
    known = with_adapters(*names[1:], kv_tokens=1000)
    asked = [
        request(bytes([65 + number]) * (400 * kind.get("width", 1) // int(4 * kind.get("per_unit", 0.25))), **kind)
        for number in range(10)
        for kind in kinds
    ]
    asked = [replace(one, served_name=name) for name in names for one in asked]
    for now, one in enumerate(asked):
        known.release(known.insert("a", one, float(now)), float(now))
        assert known.held_tokens("a") <= 1000
    assert known.held_tokens("a") > 900
    found = [known.match(one).get("a", 0) for one in asked]
    assert found[:-10] == [0] * (len(asked) - 10)
    assert min(found[-9:]) >= 99
    assert known.sizes()["prefix_spaces"] <= 10


def test_what_a_byte_of_text_counts_follows_what_is_learned_and_the_bound_with_it():
    known = with_adapters(kv_tokens=100)
    for number in range(10):
        text = bytes([65 + number]) * 40
        known.release(known.insert("a", request(text), float(number)), float(number))
    assert known.held_tokens("a") == 100
    known.release(known.insert("a", request(b"x" * 40, per_unit=0.5), 11.0), 11.0)
    assert known.held_tokens("a") == 100


def test_an_adapter_that_nobody_serves_any_more_does_not_keep_what_it_held():
    known = Prefixes()
    for number in range(50):
        with_adapters(f"lora{number}", kv_tokens=100, known=known)
        one = request(b"%03d" % number * 100, served_name=f"lora{number}")
        known.release(known.insert("a", one, float(number)), float(number))
    assert known.held_tokens("a") <= 100
    assert known.sizes()["prefix_spaces"] <= 2
    assert sum(stats.bytes for stats in known.stats().values()) <= 400


def test_a_worker_that_left_leaves_nothing():
    known = with_adapters("lora", kv_tokens=100)
    for name in ("base", "lora"):
        known.insert("a", request(served_name=name), 0.0)
        answer(known, request(b"what?", served_name=name), 9)
    known.remove_worker("a")
    assert known.sizes() == dict.fromkeys(known.sizes(), 0)
    assert (known._budget.capacities, known._adapters_of, known._adapters) == ({}, {}, frozenset())


def test_a_capacity_told_later_is_applied():
    known = holding(LOREM)
    known.set_capacity("a", 4)
    assert known.match(request()) == {"a": 4}
    known.set_capacity("a", 4)
    assert known.match(request()) == {"a": 4}


def test_a_worker_that_is_removed_holds_nothing_and_its_pins_are_gone():
    known = holding(LOREM, worker="b")
    pin = known.insert("a", request(), 0.0)
    known.remove_worker("a")
    assert known.match(request()).keys() == {"b"}
    assert known.pinned_tokens("a") == 0
    known.release(pin, 1.0)
    known.insert("a", request(LOREM[:40]), 2.0)
    assert known.pinned_tokens("a") == 10


# -- answers that are in the next prompt


def answer(known, asked, tokens, *, worker="a", found=None):
    """A worker answers at such length, and says how much of the prompt it has found in its cache."""
    pinned = known.insert(worker, asked, 0.0)
    if found is not None:
        known.record_continuation(pinned, found)
    known.record_answer(pinned, asked.input_tokens, tokens)
    known.release(pinned, 1.0)


def talking(tokens=9, known=None, **kind):
    """An index in which a prompt of ten tokens was answered; answers were in the next prompt so far."""
    known = Prefixes() if known is None else known
    answer(known, request(b"good day" * 5, **kind), 9)
    answer(known, request(b"good day" * 9, **kind), 0, found=18)
    answer(known, request(LOREM[:40], **kind), tokens)
    return known


IN_TOKENS = {"width": 4, "per_unit": 1.0}


@pytest.mark.parametrize("kind", [{}, IN_TOKENS, IN_TOKENS | {"salt": b"pepper"}])
def test_an_answer_is_in_the_cache_of_who_gave_it(kind):
    assert talking(**kind).match(request(LOREM * 2, **kind)) == {"a": 10 + 9 - 1}


def test_an_answer_longer_than_what_follows_ends_with_the_prompt():
    assert talking(tokens=500).match(request()) == {"a": 16}


def test_without_an_answer_there_is_none():
    assert talking(tokens=0).match(request()) == {"a": 10}


@pytest.mark.parametrize("act", ["cleared", "remove_worker"])
def test_answers_go_with_the_cache(act):
    known = talking()
    getattr(known, act)("a")
    known.insert("a", request(LOREM[:40]), 2.0)
    assert known.match(request()) == {"a": 10}


def test_answers_that_are_left_out_of_the_next_prompt_are_no_longer_supposed():
    known = talking()
    for number in range(3):
        text = b"%d and so on" % number
        answer(known, request(text * 4), 30)
        answer(known, request(text * 9), 0, found=11)
    assert known.match(request()) == {"a": 10}


def test_an_answer_that_fills_no_block_says_nothing():
    known = talking(**IN_TOKENS)
    known.update_facts(WorkerFacts("a", frozenset({"base"}), block_size=8))
    for number in range(3):
        text = b"%d and so on" % number
        answer(known, request(text * 4, **IN_TOKENS), 4)
        answer(known, request(text * 9, **IN_TOKENS), 0, found=8)
    assert known.match(request(LOREM * 2, **IN_TOKENS)) == {"a": 16}


@pytest.mark.parametrize("fields", [{"sequences": 3}, {"resume_tokens": 5}])
def test_what_is_no_plain_answer_teaches_nothing(fields):
    known = talking()
    for number in range(3):
        text = b"%d and so on" % number
        answer(known, request(text * 4), 30)
        answer(known, replace(request(text * 9), **fields), 0, found=0)
    assert known.match(request(LOREM * 2)) == {"a": 18}


def test_of_several_answers_to_one_request_the_mean_counts():
    known = talking()
    answer(known, replace(request(b"several" * 6), sequences=3), 30)
    assert known.match(request(b"several" * 20)) == {"a": 10 + 10 - 1}


def test_of_a_worker_that_reports_its_answers_are_known_by_its_reports():
    known = talking(known=reporting(), **IN_TOKENS)
    known.insert("a", request(LOREM[:40], **IN_TOKENS), 2.0)
    assert known.match(request(LOREM * 2, **IN_TOKENS)) == {"a": 8}


# -- workers that report


IDS = tuple(range(100, 120))


def reporting(*events, worker="a"):
    known = Prefixes()
    known.update_facts(WorkerFacts(worker, frozenset({"base", "sql"}), adapters=frozenset({"sql"}), block_size=4))
    known.reports.start(worker)
    known.reports.caught_up(worker)
    for event in events:
        known.stored(worker, event)
    return known


def test_a_cache_that_was_emptied_long_ago_takes_nothing_from_what_was_sent_since():
    known = Prefixes()
    known.update_facts(WorkerFacts("a", frozenset({"base"}), block_size=4))
    known.reports.start("a")
    known.stored("a", stored(IDS[:8]))
    known.release(known.insert("a", asking(IDS), 1.0), 1.1)
    known.cleared("a")
    assert known.match(asking(IDS, arrived=1.2)) == {"a": 16}
    known.reports.caught_up("a")
    assert known.reports.trust("a") is Trust.EXACT
    assert known.match(asking(IDS, arrived=9.0)) == {}
    known.cleared("a")
    assert known.match(asking(IDS)) == {}


def test_what_is_reported_is_held_without_having_been_sent():
    known = reporting(stored(IDS))
    assert known.match(asking(IDS)) == {"a": 16}
    assert known.match(asking(IDS, served_name="alias of base")) == {"a": 16}
    assert known.match(asking(IDS, served_name="sql")) == {}
    assert known.match(asking(IDS, salt="pepper")) == {}
    assert known.held_tokens("a") == 20


def test_an_adapter_has_blocks_of_its_own():
    known = reporting(stored(IDS, lora="sql", extra_keys=(("sql",),) * 5))
    assert (known.match(asking(IDS)), known.match(asking(IDS, served_name="sql"))) == ({}, {"a": 16})
    known.update_facts(WorkerFacts("a", frozenset({"base"}), block_size=4))
    assert known.match(asking(IDS, served_name="sql")) == {}


def test_a_prompt_under_way_is_foreseen_until_it_must_have_been_reported():
    known = reporting()
    pin = known.insert("a", asking(IDS), 10.0)
    assert known.match(asking(IDS, arrived=50.0)) == {"a": 16}
    known.release(pin, 60.0)
    assert known.match(asking(IDS, arrived=60.5)) == {"a": 16}
    assert known.match(asking(IDS, arrived=61.5)) == {}


@pytest.mark.parametrize("served_name", ["base", "sql"])
def test_what_is_reported_when_a_request_ends_is_foreseen_no_longer(served_name):
    lora = None if served_name == "base" else served_name
    known = reporting()
    pin = known.insert("a", asking(IDS, served_name=served_name), 10.0)
    other = known.insert("a", asking((*IDS[:8], 1, 2, 3, 4), served_name=served_name), 10.0)
    known.stored("a", stored(IDS, lora=lora, extra_keys=lora and ((lora,),) * 5))
    known.release(pin, 10.1)
    assert known.match(asking(IDS, served_name=served_name, arrived=10.1)) == {"a": 16}
    for end in (20, 16, 12):
        known.removed("a", removed(IDS[:end], lora=lora))
    assert known.match(asking(IDS, served_name=served_name, arrived=10.1)) == {"a": 8}
    assert known.match(asking((*IDS[:8], 1, 2, 3, 4, 5), served_name=served_name, arrived=10.1)) == {"a": 12}
    known.release(other, 10.1)
    assert known.pinned_tokens("a") == 0


def test_what_is_reported_after_the_end_is_foreseen_no_longer_either():
    known = reporting()
    known.release(known.insert("a", asking(IDS), 10.0), 10.1)
    known.stored("a", stored(IDS[:12]))
    assert known.match(asking(IDS, arrived=10.2)) == {"a": 16}
    known.stored("a", stored(IDS, after=12))
    for end in (20, 16, 12):
        known.removed("a", removed(IDS[:end]))
    assert known.match(asking(IDS, arrived=10.2)) == {"a": 8}
    assert known._unreported == {}


def test_nobody_waits_for_reports_for_long():
    known = reporting()
    known.release(known.insert("a", asking(IDS), 10.0), 10.1)
    assert len(known._unreported["a"]) == 1
    known.match(asking(IDS, arrived=20.0))
    assert known._unreported == {}


def test_who_is_not_believed_any_more_has_nothing_to_report():
    known = reporting()
    known.release(known.insert("a", asking(IDS), 10.0), 10.1)
    known.stored("a", stored(IDS, size=5))
    assert known._unreported == {}
    assert known.match(asking(IDS, arrived=10.2)) == {"a": 16}


def test_a_prompt_of_less_than_a_block_is_nothing_to_wait_for():
    known = reporting(stored(IDS[:4]))
    known.release(known.insert("a", asking(IDS[:3]), 0.0), 0.0)
    assert known.stats()[4].nodes == 0


def test_what_is_foreseen_expires_by_its_own_end():
    known = reporting()
    first = known.insert("a", asking(IDS[:8]), 0.0)
    second = known.insert("a", asking(IDS), 0.0)
    known.release(second, 1.0)
    known.release(first, 1.9)
    assert known.match(asking(IDS, arrived=2.2)) == {"a": 8}
    assert known.match(asking(IDS, arrived=3.2)) == {}


def test_what_is_reported_stays_when_the_prediction_ends():
    known = reporting()
    pin = known.insert("a", asking(IDS), 0.0)
    known.stored("a", stored(IDS[:12]))
    known.release(pin, 1.0)
    assert known.match(asking(IDS, arrived=9.0)) == {"a": 12}


def test_a_report_in_part_leaves_predictions_alone():
    known = reporting()
    known.reports.lost("a")
    known.release(known.insert("a", asking(IDS), 0.0), 1.0)
    assert known.match(asking(IDS, arrived=99.0)) == {"a": 16}
    assert known.held_tokens("a") == 20


def test_text_is_predicted_also_where_tokens_are_reported():
    known = reporting(stored(IDS))
    known.release(known.insert("a", request(LOREM[:40]), 0.0), 1.0)
    known.insert("b", request(LOREM[:20]), 0.0)
    assert known.match(request()) == {"a": 10, "b": 5}
    known.cleared("a")
    assert known.match(request()) == {"b": 5}
    assert known.held_tokens("a") == 0


def test_an_emptied_cache_keeps_what_is_under_way():
    known = reporting(stored(IDS))
    known.insert("a", asking(IDS[:12]), 0.0)
    known.cleared("a")
    assert known.match(asking(IDS)) == {"a": 12}


def test_salted_prompts_are_predicted_apart():
    known = Prefixes()
    known.insert("a", asking(IDS, salt="pepper"), 0.0)
    assert known.match(asking(IDS, salt="pepper")) == {"a": 19}
    assert known.match(asking(IDS[:7], salt="pepper")) == {"a": 6}
    assert known.match(asking((1, 2), salt="pepper")) == {}
    assert (known.match(asking(IDS)), known.match(asking(IDS, salt="salt"))) == ({}, {})


def test_a_salted_prompt_that_was_not_computed_is_forgotten():
    known = Prefixes()
    known.release(known.insert("a", asking(IDS, salt="pepper"), 0.0), 1.0)
    known.forget("a", asking(IDS, salt="pepper"), 8)
    assert known.match(asking(IDS, salt="pepper")) == {"a": 8}


def test_a_worker_that_left_is_not_believed_under_its_old_name():
    known = reporting(stored(IDS))
    known.remove_worker("a")
    known.update_facts(WorkerFacts("a", frozenset({"base"})))
    assert (known.match(asking(IDS)), known.held_tokens("a")) == ({}, 0)


def test_answers_are_judged_for_plain_prompts_of_tokens_only():
    known = reporting(stored(IDS))
    for _ in range(50):
        known.record_cached("a", request(LOREM), {}, 400)
        known.record_cached("a", asking(IDS, sequences=2), {}, 400)
    assert known.reports.trust("a") is Trust.EXACT
    for _ in range(24):
        known.record_cached("a", asking(IDS), {"b": 400}, 400)
    assert known.reports.trust("a") is Trust.PREDICTED


class OneWorker(RuleBasedStateMachine):
    """A cache that reports, in a pool that asks: once all is over and reported, the two agree."""

    def __init__(self):
        super().__init__()
        self.pool = LruPool(12, 2)
        self.known = reporting()
        self.known.update_facts(WorkerFacts("a", frozenset({"base"}), block_size=2))
        self.running = []
        self.now = 0.0

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=10))
    def start(self, prompt):
        self.running.append((self.known.insert("a", asking(prompt), self.now), prompt))

    @rule()
    def end(self):
        if self.running:
            pin, prompt = self.running.pop(0)
            for event in self.pool.run(prompt):
                report = self.known.stored if isinstance(event, Stored) else self.known.removed
                report("a", event)
            self.known.release(pin, self.now)

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def ask(self, prompt):
        found = self.known.match(asking(prompt, arrived=self.now)).get("a", 0)
        assert found >= self.pool.hits(prompt)
        assert found % 2 == 0
        assert found < len(prompt)

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def ask_when_all_is_over(self, prompt):
        while self.running:
            self.end()
        self.now += 2.0
        assert self.known.match(asking(prompt, arrived=self.now)).get("a", 0) == self.pool.hits(prompt)


TestOneWorker = OneWorker.TestCase
TestOneWorker.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
