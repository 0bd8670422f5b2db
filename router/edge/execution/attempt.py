"""One attempt of a request on one worker: send it there, and pass the answer on as it comes.

An attempt ends in an answer, whole, streamed or a 4xx of the worker's own, or in `AttemptFailed`. As long as the
client has seen nothing of it, a failed attempt can be replaced by another; so nothing is sent before the worker's
first token has shown that the stream is none of the errors that vLLM hides inside a 200. Comments, and the events
with which a stream opens before its prompt is computed, are no token (`StreamMonitor.begun`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from policies.model import AttemptFailure, Outcome, Usage
from router.edge.api.answer_body import AnswerBody, id_of, small, usage_of
from router.edge.api.background import may_be_under_way, progress
from router.edge.api.parsed_request import ParsedRequest, Surface
from router.edge.api.stream_monitor import (
    LONGEST_ID,
    StreamMonitor,
    error_of_event,
)
from router.edge.api.stream_record import StreamRecord
from router.edge.errors import Overloaded
from router.edge.execution.background import End, Ending
from router.edge.execution.worker_answer import (
    WHOLE_BYTES,
    AttemptFailed,
    WholeAnswer,
    check_success,
    excerpt,
    judge,
    read_refusal,
)
from router.edge.headers import EVENT_STREAM, content_type
from router.edge.pieces import Payload
from router.edge.response import ResponseWriter
from router.port import Control, Dispatch, Settled
from workers.http.upstream import Response, Upstream, UpstreamError

_OUTPUT_EVERY = 32
_OUTPUT_EVERY_S = 0.25
"""How often the scheduler hears of output: whichever comes first."""
_OUTCOMES = {
    Ending.COMPLETED: Outcome.COMPLETED,
    Ending.CANCELLED: Outcome.CANCELLED,
    Ending.FAILED: Outcome.FAILED,
    Ending.GONE: Outcome.FAILED,
    Ending.LATE: Outcome.FAILED,
}
GIVEN_UP = "the worker gave the answer up (finish_reason abort)"


@dataclass(slots=True)
class Attempt:
    """An attempt under way. `usage` and `outcome` are set when the answer is all there."""

    request: str
    """The request's id to control."""
    dispatch: Dispatch
    ask: ParsedRequest
    answer: ResponseWriter
    control: Control
    clock: Callable[[], float]
    body: Payload = b""
    """What to send, until it is sent."""
    exchange: Response | None = None
    first_byte_at: float | None = None
    outcome: Outcome | None = None
    usage: Usage | None = None
    exact: bool = False
    """The usage is what the worker reported, not an estimate."""
    prompt_cached: int | None = None
    """Prompt tokens that were cached where another worker computed the prompt; this one only knows its own."""
    fetching: bool = False
    """It brings parameters by which the worker fetches KV that another one has computed."""
    pending: str | None = None
    """Of a response in the background that is not over with its answer: its id."""
    on_stored: Callable[[str], None] | None = None
    """Is told the id of a response, once it is known."""
    monitor: StreamMonitor | None = None
    """Of an answer in events, once it has begun to come."""
    told: int = 0
    """Events of the stream that control has heard of."""
    tell_after: float = math.inf
    """It hears again once there are this many, or at this time of the clock; not before the stream has begun."""
    tell_at: float = math.inf
    output_at: float = math.inf
    """When control last heard of any."""
    record: StreamRecord | None = None
    """What comes of the stream, so that it can go on elsewhere; None: it will not."""
    on_begun: Callable[[], None] | None = None
    """Is told when an answer that goes on here has its first token."""
    idle_s: float = math.inf
    """How long a stream may bring nothing but comments, which are no sign of an engine that works."""

    async def run(self, upstream: Upstream, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Perform it on this worker. Raises AttemptFailed; the worker is left alone afterwards in any case."""
        self.idle_s = upstream.timeouts.idle_s
        try:
            exchange = self.exchange = await upstream.send(
                b"POST", target, headers, self.body, whole=self.in_one_piece
            )
            self.body = b""
            await exchange.head()
            if exchange.status >= 400:
                await self._refused(exchange)
                return
            check_success(exchange)
            if content_type(exchange.headers).startswith(EVENT_STREAM):
                await self._stream(exchange)
            else:
                await self._whole(exchange)
        except UpstreamError as error:
            if self.outcome is None:
                raise AttemptFailed.of(error) from error
            # The answer had said its last word; only the framing after it is missing.
            await self.answer.body(b"", more=False)
        finally:
            if self.exchange is not None:
                self.exchange.abort()
            self.answer.holding.drop_answer()
            if self.record is not None:
                self.record.counted = 0
            monitor = self.monitor
            if self.outcome is None and monitor is not None and monitor.begun and monitor.events > self.told:
                # It ends before its end: what has come by now is charged.
                self.control.output(self.request, monitor.events - self.told)

    @property
    def in_one_piece(self) -> bool:
        """The answer comes when all of it is generated, which takes as long as it is long."""
        return not self.ask.stream

    async def _refused(self, exchange: Response) -> None:
        """A client's own mistake passes through untouched; the rest is the worker's."""
        await self._pass_refusal(await read_refusal(exchange))

    async def _refused_in_stream(self, event: bytes) -> None:
        """The same for an error inside a 200, of which nothing was sent yet: it gets the status that it names."""
        code, body = error_of_event(event)
        headers = [(b"content-type", b"application/json")]
        refusal = WholeAnswer(500 if code is None else code, headers, body)
        judge(refusal, "an error inside the stream")
        await self._pass_refusal(refusal)

    async def _pass_refusal(self, refusal: WholeAnswer) -> None:
        self._settle(Outcome.REFUSED, Usage(0, 0), exact=False, not_found=refusal.status == 404)
        await self.answer.whole(refusal.status, list(refusal.headers), refusal.body)

    async def _whole(self, exchange: Response) -> None:
        """An answer in one piece."""
        answer = AnswerBody(self.ask.surface)
        while piece := await exchange.read():
            self.answer.holding.add_answer(len(piece))
            answer.add(piece)
            if answer.size > WHOLE_BYTES:
                raise AttemptFailed(AttemptFailure.LOST, f"an answer of more than {WHOLE_BYTES} bytes")
        if answer.aborted:
            raise AttemptFailed(AttemptFailure.SHUTDOWN, GIVEN_UP)
        body = answer.finished()
        self.first_byte_at = self.clock()
        if self.ask.surface is Surface.RESPONSES:
            self._hold(id_of(body))
            now = progress(small(body)) if may_be_under_way(small(body)) else None
            if now is not None and now.under_way:
                self.pending = now.id or ""
                await self.answer.whole(exchange.status, exchange.headers, body)
                return
        usage, dispatch = usage_of(body), self.dispatch
        guess = Usage(dispatch.input_tokens, dispatch.output_tokens)
        self._settle(Outcome.COMPLETED, usage or guess, exact=usage is not None)
        await self.answer.whole(exchange.status, exchange.headers, body)

    async def _stream(self, exchange: Response) -> None:
        """An answer in events: once it has begun, each is passed on in the very moment in which it arrives."""
        monitor = self.monitor = StreamMonitor(
            self.ask.surface, strip_usage=not self.ask.wants_usage, choices=self.ask.sequences
        )
        events = await self._next(exchange, monitor)
        if monitor.error is not None:
            await self._refused_in_stream(monitor.error)
            return
        await self._begin(exchange)
        pass_on = self._passing(monitor)
        while events:
            await self.answer.body(events, more=True)
            if pass_on is not None:
                await exchange.feed(pass_on)
            events = await self._next(exchange, monitor)
        await self.answer.body(monitor.rest(), more=False)

    async def _next(self, exchange: Response, monitor: StreamMonitor) -> bytes:
        """The next events for the client; b"" at the end. Raises AttemptFailed if that is none of a stream."""
        record = self.record
        if record is not None and record.broken is not None:
            raise _broken_off(monitor, record.broken)
        while piece := await exchange.read():
            events = monitor.feed(piece if record is None else record.clean(piece))
            if record is not None and record.broken is not None and not (events and self.answer.started):
                events += monitor.feed(record.broken + b"\n\n")
            self._observe(monitor)
            if events:
                return events
            if not monitor.begun:
                exchange.unanswered()
        if not monitor.done:
            raise AttemptFailed(AttemptFailure.LOST, "the stream ended before its end")
        return b""

    def _passing(self, monitor: StreamMonitor) -> Callable[[bytes], bool] | None:
        """What passes each further piece on at once: every token goes through it. None without a wire."""
        if self.answer.wire is None:
            return None
        feed, write, now = monitor.feed, self.answer.wire.write, self.clock
        record = self.record
        if record is not None:
            return self._passing_noted(monitor, record, write)

        def pass_on(piece: bytes) -> bool:
            events = feed(piece)
            if monitor.over or monitor.events >= self.tell_after or now() >= self.tell_at:
                self._observe(monitor)
            return not events or write(events)

        return pass_on

    def _passing_noted(
        self, monitor: StreamMonitor, record: StreamRecord, write: Callable[[bytes], bool]
    ) -> Callable[[bytes], bool]:
        """The same for a stream whose tokens are noted; what comes before a worker's giving up is passed on."""
        feed, clean, now, note = monitor.feed, record.clean, self.clock, record.note
        middle, skip, end, null = record.middle, len(record.middle), record.END, record.null
        head, start = record.head, record.start

        def pass_on(piece: bytes) -> bool:
            nonlocal head, start
            if piece.startswith(head):  # `record.plain`, here without its call: every token comes this way
                at = piece.find(middle, start)
                if at > 0 and piece.endswith(end) and piece.find(b"\n", start) == len(piece) - 2:
                    note(piece[start:at])
                    note(piece[at + skip : -6])
                    monitor.events = events = monitor.events + 1
                    if events >= self.tell_after or now() >= self.tell_at:
                        self._observe(monitor)
                    return write(piece[:at] + null)
            told = feed(clean(piece))
            head, start = record.head, record.start
            if monitor.over or monitor.events >= self.tell_after or now() >= self.tell_at:
                self._observe(monitor)
            more = not told or write(told)
            if record.broken is not None:
                raise _broken_off(monitor, record.broken)
            return more

        return pass_on

    async def _begin(self, exchange: Response) -> None:
        """The first token is there, and none of the errors that vLLM hides inside a 200."""
        self.answer.holding.drop_request(len(self.ask.body))
        self.ask.forget()  # once the client has seen a part of the answer, the request cannot start anew
        await self.answer.start(exchange.status, exchange.headers)

    def _observe(self, monitor: StreamMonitor) -> None:
        """Report to control what has come, before the client gets it. Raises AttemptFailed.

        An error that comes first is left to `_stream`, which can still answer with its status.
        """
        if monitor.aborted or (monitor.error is not None and self.answer.started):
            raise _broken(monitor)
        if monitor.error is not None:
            return
        if self.first_byte_at is None and monitor.begun:
            self.first_byte_at = self.output_at = now = self.clock()
            self.tell_after, self.tell_at = _OUTPUT_EVERY, now + _OUTPUT_EVERY_S
            self.control.first_token(self.request)
            self._hold(monitor.response_id)
        if monitor.done:
            if self.outcome is None:
                if not monitor.begun:
                    self._hold(monitor.response_id)
                # Settled before its last bytes leave: the client's next request meets true accounts.
                self._streamed(monitor)
        elif monitor.events >= self.tell_after or self.clock() >= self.tell_at:
            self._report_output(monitor.events)

    def _report_output(self, events: int) -> None:
        """`events` events have come; comments alone are silence. Raises AttemptFailed after too much of it."""
        now = self.clock()
        record = self.record
        if record is not None and record.size > record.counted:
            try:
                self.answer.holding.add_answer(record.size - record.counted)
                record.counted = record.size
            except Overloaded:
                record.spoil("memory")
        if events > self.told:
            self.control.output(self.request, events - self.told)
            self.told, self.output_at = events, now
        elif now - self.output_at > self.idle_s:
            raise AttemptFailed(AttemptFailure.TIMEOUT, f"nothing but comments for {self.idle_s:g} s")
        self.tell_after, self.tell_at = events + _OUTPUT_EVERY, now + _OUTPUT_EVERY_S

    def _streamed(self, monitor: StreamMonitor) -> None:
        """The stream is complete; without reported usage its events are the estimate."""
        seen = Usage(self.dispatch.input_tokens, max(0, monitor.events - 2))
        self._settle(Outcome.COMPLETED, monitor.usage or seen, exact=monitor.usage is not None)

    def _settle(self, outcome: Outcome, usage: Usage, *, exact: bool, not_found: bool = False) -> None:
        if self.prompt_cached is not None and outcome is Outcome.COMPLETED:
            usage = replace(usage, cached_tokens=self.prompt_cached)
        self.outcome, self.usage, self.exact = outcome, usage, exact
        fetched = self.fetching and outcome is Outcome.COMPLETED
        self.control.settled(Settled(self.request, outcome, usage, exact, fetched, not_found))

    def conclude(self, end: End) -> None:
        """A response in the background has ended, as the worker was asked."""
        outcome = _OUTCOMES[end.ending]
        if end.usage is None and outcome is not Outcome.COMPLETED:
            self.outcome = outcome
            self.control.cancelled(self.request)  # what was computed is charged, as far as that is known
            return
        guess = Usage(self.dispatch.input_tokens, self.dispatch.output_tokens)
        self._settle(outcome, end.usage or guess, exact=end.usage is not None)

    def _hold(self, response: str | None) -> None:
        """The worker stores the answer under the id that it names, or that the client has chosen."""
        if self.ask.stores:
            stored_as = self.ask.response or response
            if stored_as is not None and len(stored_as) <= LONGEST_ID:
                self.control.stored(self.request, stored_as)
                if self.on_stored is not None:
                    self.on_stored(stored_as)


def _broken(monitor: StreamMonitor) -> AttemptFailed:
    """The worker says inside the stream that there will be no answer."""
    if monitor.error is None:
        return AttemptFailed(AttemptFailure.SHUTDOWN, GIVEN_UP)
    failure = AttemptFailed(AttemptFailure.ERROR, f"an error inside the stream: {excerpt(monitor.error)}")
    failure.code, _ = error_of_event(monitor.error)
    return failure


def _broken_off(monitor: StreamMonitor, event: bytes) -> AttemptFailed:
    """The same, by the event that was kept back for it."""
    monitor.feed(event + b"\n\n")
    return _broken(monitor)
