"""A subscription over real sockets: gaps, restarts, silence, noise, and how long it holds the loop."""

import asyncio
import logging
import socket
from dataclasses import replace

import pytest
import uvloop

from tests.workers.kv_events.fake_engine import (
    ID,
    QUICK,
    Told,
    fake_engine,
    followed,
    following,
    recorded,
    removed,
    stored,
    until,
)
from workers.kv_events.decode import cost
from workers.kv_events.sources import KvSource
from workers.kv_events.subscription import KvEventsSettings


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_is_published_is_handed_on_in_order():
    async with followed() as (engine, told, counts):
        await engine.publish(stored(1, 2))
        await engine.publish(removed(1), stored(3, parent=2))
        await engine.publish({"type": "AllBlocksCleared"})
        await until(lambda: len(told.hashes) == 5)
        assert told.hashes == [1, 2, 1, 3, 0]
        assert told.calls[0] == ("following", ID)
        assert told.losses == []
        assert (counts().batches, counts().gaps, counts().known) == (3, 0, 0)
        assert counts().blocks == 5


@pytest.mark.parametrize("version", ["0.32.0", "0.23.0"])
async def test_frames_of_a_real_engine_are_followed(version):
    async with followed() as (engine, told, counts):
        frames = recorded(version)["published"]
        for message in frames:
            await engine.send_raw(*message)
        await until(lambda: counts().batches == len(frames))
        assert told.losses == []
        assert {type(event).__name__.strip("_")[0] for _, batch in told.batches for event in batch} <= set("BASRC")


@pytest.mark.parametrize("topic", [True, False], ids=["with topic", "without topic"])
async def test_who_comes_late_learns_what_is_there(topic):
    before = [(stored(1),), (stored(2, parent=1),), (stored(3, parent=2),)]
    async with followed(before=before, topic_in_replies=topic) as (engine, told, counts):
        assert told.hashes == [1, 2, 3]
        assert engine.asked == [0]
        await engine.publish(stored(4, parent=3))
        await until(lambda: len(told.hashes) == 4)
        assert told.losses == []
        assert [kind for kind, _ in told.calls].count("following") == 1
        assert told.calls[0] == ("following", ID)
        assert counts().repeated == 3


async def test_a_fresh_engine_is_followed_before_it_has_said_anything():
    async with followed() as (_, told, _counts):
        await until(lambda: len(told.calls) == 2)
        assert told.calls == [("following", ID), ("caught up", ID)]


@pytest.mark.parametrize("topic", [True, False], ids=["with topic", "without topic"])
async def test_a_gap_is_filled_in(topic):
    async with followed(topic_in_replies=topic) as (engine, told, counts):
        await until(lambda: told.calls)
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        engine.make(stored(2))
        engine.make(stored(3))
        await engine.publish(stored(4))
        await engine.publish(stored(5))
        await until(lambda: len(told.hashes) == 5)
        assert told.hashes == [1, 2, 3, 4, 5]
        assert told.losses == []
        assert counts().gaps == 1


async def test_what_nobody_keeps_any_more_is_lost_and_the_rest_goes_on():
    async with followed() as (engine, told, counts):
        await until(lambda: told.calls)
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        gone = [engine.make(stored(h)) for h in (2, 3)]
        engine.make(stored(4))
        for number in (0, *gone):
            del engine.kept[number]
        await engine.publish(stored(5))
        await until(lambda: len(told.hashes) == 3)
        assert told.hashes == [1, 4, 5]
        assert told.losses == ["batches 1 to 2 are no longer kept"]
        await until(lambda: told.calls[-1][0] == "caught up")
        told_again = ["lost", "batch", "batch", "caught up"]
        assert [kind for kind, _ in told.calls] == ["following", "caught up", "batch", *told_again]
        assert counts().lost == 1


async def test_without_a_replay_endpoint_a_gap_is_a_loss():
    async with followed(replay=False) as (engine, told, _):
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        engine.make(stored(2))
        await engine.publish(stored(3))
        await engine.publish(stored(4))
        await until(lambda: len(told.hashes) == 3)
        assert told.hashes == [1, 3, 4]
        assert told.losses == ["batch 1 is missing, no replay endpoint is known"]


async def test_an_engine_that_cannot_repeat_its_beginning_is_followed_with_a_loss():
    async with fake_engine(replay=False) as engine, following(told := Told()) as subscriptions:
        for h in (1, 2):
            engine.make(stored(h))
        subscriptions.follow(ID, engine.source)
        await until(lambda: engine.subscribers)
        assert told.calls == []
        await engine.publish(stored(3))
        await until(lambda: told.hashes == [3])
        assert [kind for kind, _ in told.calls] == ["following", "lost", "caught up", "batch"]


async def test_what_is_past_ends_with_the_replay():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        engine.make(stored(1))
        engine.make(stored(2))
        subscriptions.follow(ID, engine.source)
        await until(lambda: len(told.calls) == 4)
        await engine.publish(stored(3))
        await until(lambda: told.hashes == [1, 2, 3])
        assert [kind for kind, _ in told.calls] == ["following", "batch", "batch", "caught up", "batch"]


async def test_a_buffer_that_begins_late_is_a_loss_at_the_start():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        for h in (1, 2, 3):
            engine.make(stored(h))
        del engine.kept[0]
        subscriptions.follow(ID, engine.source)
        await until(lambda: told.hashes == [2, 3] and len(told.calls) == 5)
        assert [kind for kind, _ in told.calls] == ["following", "lost", "batch", "batch", "caught up"]


async def test_answers_that_were_dropped_on_the_way_are_asked_for_again():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        for h in range(1, 7):
            engine.make(stored(h))
        whole = dict(engine.kept)

        async def drop():
            engine.kept = {n: b for n, b in whole.items() if len(engine.asked) > 1 or n not in (3, 4)}

        engine.when_asked = drop
        subscriptions.follow(ID, engine.source)
        await until(lambda: len(told.hashes) == 6)
        assert told.hashes == [1, 2, 3, 4, 5, 6]
        assert engine.asked == [0, 2]
        assert told.losses == []


async def test_a_process_that_begins_anew_is_a_loss_and_is_learned_from_its_beginning():
    async with followed(before=[(stored(1),), (stored(2),)]) as (engine, told, _):
        await engine.publish(stored(3))
        await until(lambda: told.hashes == [1, 2, 3])
        engine.restart()
        engine.make(stored(11))
        await engine.publish(stored(12))
        await until(lambda: len(told.hashes) == 5)
        assert told.hashes == [1, 2, 3, 11, 12]
        assert told.losses == ["another process publishes at its endpoint"]
        await until(lambda: told.calls[-1][0] == "caught up")
        assert [kind for kind, _ in told.calls[-4:]] == ["lost", "batch", "batch", "caught up"]


async def test_a_process_that_begins_anew_with_its_clock_set_back_is_noticed():
    async with followed() as (engine, told, _):
        await until(lambda: told.calls)
        for h in (1, 2):
            await engine.publish(stored(h))
        await until(lambda: told.hashes == [1, 2])
        engine.restart()
        engine.ts = 0.0
        await engine.publish(stored(11))
        await until(lambda: told.hashes == [1, 2, 11])
        assert told.losses == ["another process publishes at its endpoint"]


async def test_a_process_that_begins_anew_right_after_the_replay_is_noticed():
    async with followed(before=[(stored(1),), (stored(2),)]) as (engine, told, _):
        engine.restart()
        await engine.publish(stored(11))
        await until(lambda: 11 in told.hashes)
        assert told.losses == ["another process publishes at its endpoint"]


async def test_another_process_behind_a_gap_is_noticed():
    async with followed() as (engine, told, _):
        await until(lambda: told.calls)
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        engine.restart()
        for h in (11, 12, 13):
            engine.make(stored(h))
        await engine.publish(stored(14))
        await until(lambda: 14 in told.hashes)
        assert told.hashes == [1, 11, 12, 13, 14]
        assert told.losses == ["another process publishes at its endpoint"]


async def test_what_is_published_during_a_replay_comes_after_it_and_once():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        for h in (1, 2, 3):
            engine.make(stored(h))
        published = []

        async def publish_meanwhile():
            await until(lambda: engine.subscribers)
            if not published:
                published.extend((4, 5))
                await engine.publish(stored(4))
                late = dict(engine.kept)
                await engine.publish(stored(5))
                engine.kept = late

        engine.when_asked = publish_meanwhile
        subscriptions.follow(ID, engine.source)
        await until(lambda: len(told.hashes) >= 5)
        await engine.publish(stored(6))
        await until(lambda: len(told.hashes) >= 6)
        assert told.hashes == [1, 2, 3, 4, 5, 6]
        assert told.losses == []
        assert subscriptions.counts()[ID].known == 1


async def test_a_replay_endpoint_that_says_nothing_does_not_keep_events_back(caplog):
    impatient = replace(QUICK, replay_timeout_s=0.5)
    async with followed(settings=impatient, answers=False) as (engine, told, _):
        await until(lambda: warnings(caplog))
        assert told.calls == []
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        assert [kind for kind, _ in told.calls] == ["following", "caught up", "batch"]
        assert "repeats nothing within 0.5 s" in warnings(caplog)[0]


class Mute:
    """Listens, and answers with what it is told to, or nothing."""

    def __init__(self, says=b""):
        self.says = says
        self.calls = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def _accept(self, reader, writer):
        self.calls += 1
        writer.write(self.says)
        await reader.read()
        writer.close()

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()


@pytest.mark.parametrize(
    ("says", "reason"),
    [(b"", "no ZMQ greeting within 1 s"), (b"HTTP/1.1 400 Bad\r\n", "no ZMQ is spoken there")],
)
async def test_an_endpoint_that_speaks_no_zmq_is_warned_of_once_and_tried_on(says, reason, caplog):
    impatient = replace(QUICK, reach_timeout_s=1.0)
    async with Mute(says) as mute, following(told := Told(), impatient) as subscriptions:
        subscriptions.follow(ID, KvSource(mute.endpoint))
        await until(lambda: mute.calls >= 3)
        [said] = warnings(caplog)
        assert said.startswith(f"KV events of {ID}: cannot listen to {mute.endpoint}: {reason}")
        assert told.calls == []


async def test_an_endpoint_where_nobody_is_yet_is_found_later(caplog):
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        with socket.socket() as reserved:  # bound, and not listening
            reserved.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{reserved.getsockname()[1]}"
            subscriptions.follow(ID, replace(engine.source, endpoint=endpoint))
            await until(lambda: warnings(caplog))
        engine.make(stored(1))
        engine.pub.bind(endpoint)
        await until(lambda: told.hashes == [1])
        [said] = warnings(caplog)
        assert "connection refused" in said


async def test_a_message_that_is_none_is_passed_over_and_warned_of_once(caplog):
    async with followed() as (engine, told, counts):
        await until(lambda: told.calls)
        await engine.send_raw(b"kv")
        await engine.send_raw(b"kv", b"123", b"")
        await engine.publish(stored(1))
        await until(lambda: told.hashes == [1])
        assert told.losses == []
        assert counts().garbled == 2
        assert len(warnings(caplog)) == 1


async def test_a_batch_that_cannot_be_read_is_a_loss_and_the_rest_goes_on(caplog):
    async with followed(before=[(stored(1),)]) as (engine, told, counts):
        for _ in range(2):
            number = engine.make()
            engine.kept[number] = b"\xc1 not msgpack"
            await engine.send(number)
        await engine.publish(stored(2))
        await until(lambda: told.hashes == [1, 2])
        assert told.losses == ["batch 1 cannot be read"]
        assert (counts().garbled, counts().lost) == (2, 1)
        assert "the payload is no batch" in warnings(caplog)[0]


async def test_a_batch_that_cannot_be_read_is_a_loss_where_it_is_repeated():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        engine.make(stored(1))
        engine.kept[engine.make()] = b"\xc1"
        engine.make(stored(3))
        subscriptions.follow(ID, engine.source)
        await until(lambda: told.hashes == [1, 3])
        assert told.losses == ["batch 1 cannot be read"]


async def test_unknown_events_are_counted_and_change_nothing():
    async with followed() as (engine, told, counts):
        await engine.publish({"type": "BlockMoved"}, stored(1))
        await until(lambda: told.hashes == [1])
        assert told.losses == []
        assert counts().unknown == 1


async def test_a_large_batch_is_handed_on_in_slices_with_turns_of_the_loop_between():
    turns = 0
    told, seen = Told(), []
    told.on_call = lambda: seen.append((turns, cost(told.batches[-1][1])))
    settings = replace(QUICK, slice_blocks=16)

    def turn():
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async with fake_engine() as one, fake_engine() as other, following(told, settings) as subscriptions:
        subscriptions.follow("one", one.source)
        subscriptions.follow("other", other.source)
        await until(lambda: one.subscribers and other.subscribers and len(told.calls) == 4)
        asyncio.get_running_loop().call_soon(turn)
        for engine in (one, other):
            for first in range(0, 200, 50):
                await engine.publish(stored(*range(first, first + 50)))
            for h in range(40):
                await engine.publish(removed(h))
        await until(lambda: len(told.hashes) == 480)
        for worker in ("one", "other"):
            hashes = [h for to, batch in told.batches if to == worker for event in batch for h in event.hashes]
            assert hashes == [*range(200), *range(40)]
        by_turn = {}
        for turn_number, blocks in seen:
            by_turn[turn_number] = by_turn.get(turn_number, 0) + blocks
        # A slice that is nearly full takes one more part, of a slice at most.
        assert max(by_turn.values()) < 2 * 16
        assert len(by_turn) >= 480 / 32


async def test_nobody_is_called_for_a_worker_that_was_left():
    async with fake_engine() as engine, following(told := Told()) as subscriptions:
        told.on_call = lambda: subscriptions.leave(ID)
        subscriptions.follow(ID, engine.source)
        await until(lambda: told.calls and engine.subscribers)
        await engine.publish(stored(*range(1000)))
        await until(lambda: engine.subscribers == 0)
        assert [kind for kind, _ in told.calls if kind != "caught up"] == ["following", "batch"]
        assert dict(subscriptions.counts()) == {}


async def test_a_worker_that_publishes_elsewhere_is_learned_anew():
    async with fake_engine() as old, fake_engine() as new, following(told := Told()) as subscriptions:
        old.make(stored(1))
        new.make(stored(2))
        subscriptions.follow(ID, old.source)
        await until(lambda: told.hashes == [1])
        subscriptions.follow(ID, old.source)
        subscriptions.follow(ID, new.source)
        await until(lambda: told.hashes == [1, 2])
        assert told.losses == ["its events are published elsewhere now"]
        assert [kind for kind, _ in told.calls if kind != "caught up"][:3] == ["following", "batch", "lost"]


async def test_a_listener_that_fails_is_told_of_a_loss_and_served_on(caplog):
    told = Told()

    def fail_once():
        told.on_call = lambda: None
        raise KeyError("a mistake of the listener")

    async with followed(told) as (engine, _, _counts):
        await until(lambda: told.calls)
        told.on_call = fail_once
        await engine.publish(stored(1))
        await until(lambda: told.losses == ["listening broke down"])
        await until(lambda: told.hashes == [1, 1])
        assert any(record.exc_info for record in caplog.records)
        caplog.clear()


def test_it_works_on_uvloop():
    async def scenario():
        async with followed(before=[(stored(1),)]) as (engine, told, _):
            engine.make(stored(2))
            for h in (3, 4, 5):
                await engine.publish(stored(h))
            await until(lambda: len(told.hashes) == 5)
            return told.hashes, told.losses

    assert uvloop.run(scenario()) == ([1, 2, 3, 4, 5], [])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="slice_blocks must be greater than 0"):
        KvEventsSettings(slice_blocks=0)
