"""One engine's events from beginning to end: heard, put in order, repeated where something was missed, handed on.

Its life: find a publisher at the endpoint; subscribe; have everything repeated from batch 0 on, so that a router
that starts late knows what is there; then take what is published. While something is repeated, what is published
waits in the socket, in order, and is told apart by its number afterwards. The listener hears when all that is past
has been repeated, for the past says nothing of what was sent to the worker meanwhile.

What was handed on holds until it is said to be lost, and that happens for three reasons only: batches are missing
that cannot be repeated, a batch cannot be read, or another process publishes at the endpoint.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Protocol

import zmq

from workers.bounds.backoff import Backoff
from workers.bounds.log_limit import LogLimit
from workers.kv_events.batch_order import BatchOrder, Place
from workers.kv_events.decode import Batch, GarbledMessageError, KvEvent, cost, decode, read_message
from workers.kv_events.replay import ReplayError, replay
from workers.kv_events.sockets import LoopSocket, UnreachableError, reach
from workers.kv_events.sources import KvSource
from workers.kv_events.work_slices import WorkSlices

logger = logging.getLogger("fairlead.kv_events")


class KvListener(Protocol):
    """Who is told. Called on the event loop; must neither block nor raise."""

    def on_following(self, worker_id: str) -> None:
        """A worker was heard: once, before all else. From its birth on, unless `on_lost` follows at once."""

    def on_caught_up(self, worker_id: str) -> None:
        """What happens from now on is told as it happens: once after `on_following`, and after each `on_lost`."""

    def on_batch(self, worker_id: str, events: Sequence[KvEvent]) -> None:
        """What happened in a worker's cache, in order; never more than a slice (see `WorkSlices`)."""

    def on_lost(self, worker_id: str, why: str) -> None:
        """All that was reported of the worker is void. What it reports from now on holds."""


@dataclass(slots=True)
class KvCounts:
    """Totals of one worker since it is followed."""

    batches: int = 0
    blocks: int = 0
    """Stored or removed."""
    repeated: int = 0
    """Batches that came by replay."""
    known: int = 0
    """Batches that were published and known already."""
    gaps: int = 0
    lost: int = 0
    garbled: int = 0
    """Messages that could not be read."""
    unknown: int = 0
    """Events of types that are not known here."""


@dataclass(frozen=True, slots=True)
class KvEventsSettings:
    """How patiently engines are listened to."""

    reach_timeout_s: float = 2.0
    replay_timeout_s: float = 5.0
    """Between two repeated batches; an engine looks for requests between its own steps only."""
    retry_first_s: float = 1.0
    """After no publisher was found at an endpoint; doubles up to `retry_longest_s`."""
    retry_longest_s: float = 30.0
    slice_blocks: int = 128
    """How many blocks are handed on in one turn of the event loop."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            if not getattr(self, setting.name) > 0:
                raise ValueError(f"{setting.name} must be greater than 0")


class Subscription:
    """Follows one engine while `run` runs; cancel it to end."""

    def __init__(
        self,
        worker_id: str,
        source: KvSource,
        listener: KvListener,
        settings: KvEventsSettings,
        *,
        context: "zmq.Context[zmq.Socket[bytes]]",
        slices: WorkSlices,
    ) -> None:
        self.source = source
        self.counts = KvCounts()
        self._id = worker_id
        self._listener = listener
        self._settings = settings
        self._context = context
        self._slices = slices
        self._order = BatchOrder()
        self._heard = False
        self._behind = False
        """What is handed on is past, and the listener awaits to hear when it no longer is."""
        self._void = False
        """All was lost, the listener knows, and nothing was handed on since."""
        self._log_limit = LogLimit(logger)

    async def run(self) -> None:
        settings, failures = self._settings, 0
        retry = Backoff(settings.retry_first_s, max(settings.retry_first_s, settings.retry_longest_s))
        while True:
            try:
                await reach(self.source.endpoint, settings.reach_timeout_s)
                with LoopSocket(self._context, zmq.SUB, self.source.endpoint) as socket:
                    socket.subscribe(self.source.topic)
                    await self._follow(socket)
            except UnreachableError as error:
                self._warn(
                    "unreachable", f"cannot listen to {self.source.endpoint}: {error}; trying again", str(error)
                )
            except Exception:  # whatever it is, the next process may be better; the worker is served meanwhile
                logger.exception("KV events of %s: listening broke down", self._id)
                self._lose("listening broke down")
                self._order = BatchOrder()
            failures += 1
            await asyncio.sleep(retry.delay_s(failures))

    async def _follow(self, socket: LoopSocket) -> None:
        if why := await self._repeat():
            self._warn("replay", f"what happened before is not known: {why}")
        else:
            self._begin()
        self._catch_up()
        while True:
            await self._hear(await socket.receive())
            self._catch_up()

    async def _hear(self, frames: Sequence[bytes]) -> None:
        """Take in a message as it was published."""
        try:
            number, payload = read_message(frames)
        except GarbledMessageError as error:
            self._garbled(f"a message cannot be read: {error}")
            await self._slices.pass_over()
            return
        batch = self._read(number, payload)
        ts = batch.ts if batch is not None else -math.inf
        place = self._order.place(number, ts)
        if place is Place.ANOTHER_PROCESS:
            self._another_process()
            place = self._order.place(number, ts)
        if place is Place.AFTER_GAP:
            await self._close_gap(number)
        self._order.hear(number)
        if number == self._order.next:
            self._begin()
            self._catch_up()
            await self._take(number, batch)
        else:
            self.counts.known += 1
            await self._slices.pass_over()

    async def _close_gap(self, number: int) -> None:
        """Fill in what is missing before a batch that was published, or give it up."""
        self.counts.gaps += 1
        why = await self._repeat()
        if (first := self._order.next) < number:
            missing = f"batch {first} is" if first == number - 1 else f"batches {first} to {number - 1} are"
            self._lose(f"{missing} missing, {why or 'and not repeated'}")
            self._order.skip_to(number)

    async def _repeat(self) -> str:
        """Have everything from the wanted batch on repeated; return why it could not be, or nothing."""
        while True:
            wanted, order = self._order.next, self._order
            try:
                if await self._ask():
                    return ""
            except ReplayError as error:
                if order is self._order and order.next == wanted:
                    return str(error)

    async def _ask(self) -> bool:
        """Ask once; False where it is worth asking again. Raises ReplayError."""
        order = self._order
        wanted = order.next
        # One batch more than is wanted, where it is known: if it is another one, so is the process.
        start = wanted if order.before is None else wanted - 1
        asked = replay(self._context, self.source, start, self._settings.replay_timeout_s)
        async with aclosing(asked) as replies:
            async for number, payload in replies:
                batch = self._read(number, payload)
                if number < order.next:
                    if order.next == wanted and batch is not None and batch.ts != order.before:
                        self._another_process()
                        return False
                    continue
                if number > order.next:
                    if order.next > wanted:
                        return False  # the engine dropped answers, and has dropped more by now
                    self._lose(f"batches {order.next} to {number - 1} are no longer kept")
                    order.skip_to(number)
                self.counts.repeated += 1
                await self._take(number, batch)
        return True

    async def _take(self, number: int, batch: Batch | None) -> None:
        """Hand on the wanted batch; None: it cannot be read."""
        self._order.take(number, None if batch is None else batch.ts)
        if batch is None:
            self._lose(f"batch {number} cannot be read")
            await self._slices.pass_over()
            return
        self._begin()
        self.counts.batches += 1
        self.counts.unknown += batch.unknown
        if batch.unknown:
            self._warn("unknown", "some events are of a type that is not known here; they are passed over")
        await self._slices.apply(batch.events, self._hand_on)

    def _hand_on(self, events: Sequence[KvEvent]) -> None:
        self._void = False
        self.counts.blocks += cost(events)
        self._listener.on_batch(self._id, events)

    def _begin(self) -> None:
        if not self._heard:
            self._heard = self._behind = True
            logger.info("KV events of %s: following %s", self._id, self.source.endpoint)
            self._listener.on_following(self._id)

    def _catch_up(self) -> None:
        if self._behind:
            self._behind = False
            self._listener.on_caught_up(self._id)

    def _another_process(self) -> None:
        self._lose("another process publishes at its endpoint")
        self._order = BatchOrder()

    def _lose(self, why: str) -> None:
        if self._void:
            return
        level = logging.WARNING if self._heard else logging.INFO
        self._begin()
        logger.log(level, "KV events of %s: %s; what it holds is learned anew", self._id, why)
        self._void = self._behind = True
        self.counts.lost += 1
        self._listener.on_lost(self._id, why)

    def _read(self, number: int, payload: bytes) -> Batch | None:
        try:
            return decode(payload)
        except GarbledMessageError as error:
            self._garbled(f"batch {number} cannot be read: {error}")
            return None

    def _garbled(self, what: str) -> None:
        self.counts.garbled += 1
        self._warn("garbled", what)

    def _warn(self, subject: str, what: str, cause: str = "") -> None:
        now = asyncio.get_running_loop().time()
        self._log_limit.warn(subject, cause, now, "KV events of %s: %s", self._id, what)
