"""Batches of KV events: both formats as real engines wrote them, and everything that may be wrong with one."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.kv_events.fake_engine import payload, recorded, removed, stored
from workers.kv_events.decode import (
    AllBlocksCleared,
    BlocksRemoved,
    BlocksStored,
    GarbledMessageError,
    cost,
    decode,
    parts,
    read_message,
    read_reply,
    replay_request,
)


def batches(version):
    return [decode(read_message(frames)[1]) for frames in recorded(version)["published"]]


def as_array(event, *more):
    return [*event.values(), *more]


def test_maps_of_a_real_engine_are_read():
    first, child, salted, *_, cleared = batches("0.32.0")
    [one] = first.events
    assert isinstance(one, BlocksStored)
    assert (len(one.hashes), one.parent, one.block_size) == (3, None, 32)
    assert one.token_ids == tuple(10 + at % 200 for at in range(96))
    assert (one.medium, one.group, one.kind, one.lora) == ("GPU", 0, "full_attention", None)
    assert one.extra_keys == (None, None, None)
    assert child.events[0].parent == one.hashes[-1]
    assert child.events[0].token_ids[:4] == (106, 107, 108, 109)
    assert salted.events[0].extra_keys == (("tenant-a",), None, None)
    assert salted.events[0].token_ids == one.token_ids
    assert salted.events[0].hashes != one.hashes
    assert [type(event) for event in cleared.events] == [AllBlocksCleared, BlocksStored]


def test_blocks_that_a_real_engine_hands_out_again_were_stored_before():
    events = [event for batch in batches("0.32.0") for event in batch.events]
    known, gone = set(), []
    for event in events:
        if isinstance(event, BlocksRemoved):
            gone += event.hashes
            assert event.medium == "GPU"
            assert event.group == 0
        elif isinstance(event, BlocksStored):
            known.update(event.hashes)
    assert gone
    assert known > set(gone)


def test_arrays_of_a_real_engine_are_read():
    first, child, salted, adapter, long, cleared = batches("0.23.0")
    [one] = first.events
    assert isinstance(one, BlocksStored)
    assert one.hashes == (0x8000000000000001, 0x102, 0x103)
    assert (one.parent, one.block_size, one.token_ids) == (None, 16, tuple(range(48)))
    assert (one.medium, one.group, one.kind, one.window) == ("GPU", 0, "full_attention", None)
    assert child.events[0].parent == 0x103
    assert isinstance(salted.events[0], BlocksRemoved)
    assert salted.events[0].hashes == (0x104,)
    assert salted.events[1].extra_keys == (("tenant-a",),)
    [tuned] = adapter.events
    assert (tuned.lora, tuned.lora_id, tuned.kind, tuned.window) == ("sql", 7, "sliding_window", 4096)
    [digest] = long.events
    assert digest.hashes == (bytes(range(32)),)
    assert digest.parent == bytes(range(32, 64))
    assert [type(event).__mro__[1] for event in cleared.events[:2]] == [AllBlocksCleared, AllBlocksCleared]


@pytest.mark.parametrize("version", ["0.32.0", "0.23.0"])
def test_what_is_repeated_is_what_was_published(version):
    told = recorded(version)
    *replies, last = [read_reply(frames) for frames in told["replayed"]]
    assert replies == [read_message(frames) for frames in told["published"]]
    assert [number for number, _ in replies] == list(range(len(replies)))
    assert last is None


def test_a_replay_is_asked_for_with_an_empty_frame_and_a_number():
    assert replay_request(258) == [b"", bytes([0, 0, 0, 0, 0, 0, 1, 2])]


def test_an_adapter_without_a_name_goes_by_its_number():
    [event] = decode(payload(1.0, stored(1, lora_id=3))).events
    assert event.lora == "3"


@pytest.mark.parametrize("form", [dict, list])
def test_events_of_the_oldest_versions_are_shorter(form):
    event = {k: v for k, v in stored(1).items() if k not in ("medium", "lora_name")}
    gone = {"type": "BlockRemoved", "block_hashes": [1]}
    whole = [event, gone] if form is dict else [as_array(event), as_array(gone)]
    one, other = decode(msgspec.msgpack.encode([1.0, whole])).events
    assert (one.hashes, one.medium, one.group) == ((1,), None, None)
    assert (other.hashes, other.medium) == ((1,), None)


@pytest.mark.parametrize("form", [dict, list])
def test_fields_that_are_not_known_are_passed_over(form):
    event = stored(1) | {"extra_keys": None, "group_idx": 0, "kv_cache_spec_kind": "mla"}
    event |= {"kv_cache_spec_sliding_window": None, "lookahead_token_ids": [[1, 2]], "locality": "LOCAL"}
    events = [event, {"type": "AllBlocksCleared", "why": "because"}]
    given = events if form is dict else [as_array(one) for one in events]
    batch = decode(msgspec.msgpack.encode([1.0, given, 0, "a field of tomorrow"]))
    assert batch.unknown == 0
    assert batch.events[0].kind == "mla"
    assert isinstance(batch.events[1], AllBlocksCleared)


@pytest.mark.parametrize("form", [dict, list])
def test_events_of_types_that_are_not_known_are_left_out_and_counted(form):
    events = [{"type": "BlockMoved", "to": "CPU"}, stored(1), {"type": "Sneezed"}, removed(2)]
    given = events if form is dict else [as_array(one) for one in events]
    batch = decode(msgspec.msgpack.encode([1.0, given, 0]))
    assert batch.unknown == 2
    assert [type(event).__name__.strip("_")[:6] for event in batch.events] in (
        ["Blocks", "Blocks"],
        ["Stored", "Remove"],
    )
    assert batch.events[0].hashes == (1,)


DEEP = b"\x91" * 100_000
WRONG_PAYLOADS = {
    "nothing": (b"", "the payload is no batch"),
    "noise": (b"\xc1\xff\x00", "the payload is no batch"),
    "cut off": (payload(1.0, stored(1))[:-5], "the payload is no batch"),
    "text": (b"hello, this is not what you wanted", "the payload is no batch"),
    "a map": (msgspec.msgpack.encode({"ts": 1.0}), "the payload is no batch"),
    "no date": (msgspec.msgpack.encode(["now", []]), "the payload is no batch"),
    "events that are no list": (msgspec.msgpack.encode([1.0, 7, 0]), "the payload is no batch"),
    "an event that is a number": (msgspec.msgpack.encode([1.0, [7]]), "event 0 does not say its type"),
    "an event without a type": (msgspec.msgpack.encode([1.0, [{"a": 1}]]), "event 0 does not say its type"),
    "an event that is empty": (msgspec.msgpack.encode([1.0, [[]]]), "event 0 does not say its type"),
    "tokens that are text": (
        payload(1.0, removed(1), stored(1, tokens="abc")),
        r"event 1, BlockStored: .*token_ids",
    ),
    "no hashes": (payload(1.0, {"type": "BlockRemoved"}), r"event 0, BlockRemoved: .*block_hashes"),
    "too short an array": (msgspec.msgpack.encode([1.0, [["BlockStored", [1]]]]), "event 0, BlockStored: "),
    "hashes that are text": (payload(1.0, removed("a")), "event 0, BlockRemoved: "),
    "text that is no text": (
        b"\x93\xcb" + bytes(8) + b"\x91\x81\xa4type\xa2\xff\xfe\x00",
        "event 0 is not msgpack|the payload is no batch",
    ),
    "without end": (DEEP, "the payload is no batch"),
    "an event without end": (b"\x93\xcb" + bytes(8) + b"\x91\x82\xa4type\xa1x\xa1y" + DEEP, "."),
}


@pytest.mark.parametrize("name", WRONG_PAYLOADS)
def test_what_is_wrong_with_a_payload_is_said(name):
    wrong, message = WRONG_PAYLOADS[name]
    with pytest.raises(GarbledMessageError, match=message):
        decode(wrong)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_that_were_changed_are_read_or_refused_and_nothing_else(data):
    whole = bytearray(payload(1.0, stored(1, 2, extra_keys=[["s"], None]), removed(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(GarbledMessageError):
        decode(bytes(whole))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "0 frames"),
        ([b"kv", b"1" * 8], "2 frames"),
        ([b"kv", b"1" * 8, b"", b""], "4 frames"),
        ([b"kv", b"1", b""], "sequence number of 1 bytes"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(frames, message):
    with pytest.raises(GarbledMessageError, match=message):
        read_message(frames)


@pytest.mark.parametrize(
    "frames", [[], [b"", b"1" * 8], [b"kv", b"1" * 8, b""], [b"", b"kv", b"12", b""], [b""] * 5]
)
def test_an_answer_that_is_no_answer_is_refused(frames):
    with pytest.raises(GarbledMessageError):
        read_reply(frames)


def events_of(*given):
    return decode(payload(1.0, *given)).events


def test_a_long_event_becomes_a_chain_of_parts():
    keys = [["salt"], None, None, None, None]
    whole = events_of(stored(11, 12, 13, 14, 15, parent=10, size=3, extra_keys=keys))
    cut = [event for part in parts(whole, 2) for event in part]
    assert [event.hashes for event in cut] == [(11, 12), (13, 14), (15,)]
    assert [event.parent for event in cut] == [10, 12, 14]
    assert [event.token_ids for event in cut] == [tuple(range(6)), tuple(range(6, 12)), tuple(range(12, 15))]
    assert [event.extra_keys for event in cut] == [(("salt",), None), (None, None), (None,)]
    assert {event.block_size for event in cut} == {3}


def test_an_event_whose_tokens_do_not_fit_its_blocks_stays_whole():
    whole = events_of(stored(11, 12, 13, tokens=[1, 2, 3]))
    assert [list(part) for part in parts(whole, 2)] == [whole]


@given(
    st.lists(st.one_of(st.integers(1, 9), st.integers(-9, -1), st.just(0)), max_size=8),
    st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_parts_hold_everything_in_order_and_no_more_than_they_may(sizes, most):
    def event(size):
        if not size:
            return {"type": "AllBlocksCleared"}
        return stored(*range(size)) if size > 0 else removed(*range(-size))

    whole = events_of(*map(event, sizes))
    cut = [list(part) for part in parts(whole, most)]
    assert all(1 <= cost(part) <= most for part in cut)

    def told(events):
        return [
            (type(one), h)
            for one in events
            for h in (("all",) if isinstance(one, AllBlocksCleared) else one.hashes)
        ]

    assert told([one for part in cut for one in part]) == told(whole)
