"""Prefixes in tokens: by line, at most the prompt less one, pinned while a request runs, bounded by the worker."""

from policies.model import PrefixKey, RequestView
from policies.prefixes import Prefixes

LOREM = b"lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod"


def request(prompt=LOREM, *, line="base", per_unit=0.25, width=1, tokens=None):
    return RequestView(
        id="r",
        client="anna",
        line=line,
        key=PrefixKey(prompt, width, per_unit),
        input_tokens=int(len(prompt) // width * per_unit) if tokens is None else tokens,
        expected_output_tokens=9,
        arrived=0.0,
    )


def holding(*prompts, worker="a", **fields):
    known = Prefixes()
    for prompt in prompts:
        known.release(known.insert(worker, request(prompt, **fields), 0.0), 1.0)
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


def test_lines_and_kinds_of_key_do_not_share_prefixes():
    known = holding(LOREM)
    assert known.match(request(line="lora")) == {}
    assert known.match(request(LOREM[:40], width=4, per_unit=1.0)) == {}
    assert sorted(known.stats()) == ["base/1"]


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


def test_pins_add_up_over_lines():
    known = Prefixes()
    known.insert("a", request(LOREM[:40]), 0.0)
    known.insert("a", request(LOREM[:40], line="lora"), 0.0)
    known.insert("b", request(LOREM[:40]), 0.0)
    assert (known.pinned_tokens("a"), known.pinned_tokens("b"), known.pinned_tokens("c")) == (20, 10, 0)


def test_a_prompt_that_was_not_computed_is_forgotten_beyond_what_was_there():
    known = holding(LOREM[:40])
    pin = known.insert("a", request(LOREM[:60]), 1.0)
    known.release(pin, 1.0)
    known.forget("a", request(LOREM[:60]), 10)
    assert known.match(request()) == {"a": 10}
    known.forget("a", request(b"never seen", line="lora"), 0)


def test_a_worker_holds_no_more_than_its_capacity():
    known = Prefixes()
    known.set_capacity("a", 5)
    known.release(known.insert("a", request(), 0.0), 1.0)
    assert known.match(request()) == {"a": 5}


def test_a_capacity_told_later_is_applied():
    known = holding(LOREM)
    known.set_capacity("a", 4)
    assert known.match(request()) == {"a": 4}
    known.set_capacity("a", 4)
    assert known.match(request()) == {"a": 4}


def test_a_worker_that_is_removed_holds_nothing_and_its_pins_are_gone():
    known = holding(LOREM, worker="b")
    pin = known.insert("a", request(), 0.0)
    known.remove("a")
    assert known.match(request()).keys() == {"b"}
    assert known.pinned_tokens("a") == 0
    known.release(pin, 1.0)
    known.insert("a", request(LOREM[:40]), 2.0)
    assert known.pinned_tokens("a") == 10
