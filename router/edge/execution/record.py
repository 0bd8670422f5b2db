"""What is remembered of one request, and told once at its end: to the metrics and to the log."""

from collections.abc import MutableSequence
from typing import Any

from policies.model import Dispatch, Outcome, Usage
from router.edge.api.fingerprint import fingerprint
from router.edge.api.parsed_request import ParsedRequest
from router.edge.errors import RequestError
from router.edge.execution.attempt import Attempt
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog


class Record:
    """Filled in step by step. Times are the loop's, in seconds."""

    __slots__ = (
        "_dispatch",
        "_first_byte_at",
        "_path",
        "_prefix",
        "_prompt",
        "_prompt_bytes",
        "_request",
        "_stream",
        "arrived",
        "client",
        "error",
        "line",
        "outcome",
        "status",
        "usage",
        "weight",
    )

    def __init__(self, request: str, path: str, now: float) -> None:
        self.arrived = now
        self.client = ""
        self.weight = 1.0
        self.line = ""
        self.outcome = Outcome.REJECTED
        self.status = 0
        self.error: str | None = None
        self.usage: Usage | None = None
        self._request = request
        self._path = path
        self._stream = False
        self._prefix = ""
        self._prompt_bytes = 0
        self._prompt: str | None = None
        self._dispatch: Dispatch | None = None
        self._first_byte_at: float | None = None

    def asked(self, ask: ParsedRequest, line: str, log: RequestLog) -> None:
        """The request is understood: it goes to this line."""
        self._stream = ask.stream
        self.line = line
        if log.prefixes:
            self._prefix, self._prompt_bytes = fingerprint(ask, line), len(ask.prompt)
        if log.prompts:
            self._prompt = ask.prompt.decode("utf-8", "replace")

    def placed(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def refused(self, error: RequestError) -> None:
        self.error = error.message
        if error.source == "client":
            self.outcome = Outcome.REFUSED
        elif error.source == "worker":
            self.outcome = Outcome.FAILED

    def answered(self, leg: Attempt) -> None:
        """The last leg has ended, with an answer or without.

        An answer that was all there stays one, although the client may have hung up on its closing bytes.
        """
        self._first_byte_at = leg.first_byte_at
        self.usage = leg.usage
        if leg.outcome is not None:
            self.outcome = leg.outcome

    def write(
        self, now: float, metrics: Metrics, log: RequestLog, decisions: MutableSequence[dict[str, Any]]
    ) -> None:
        """Tell the world; `decisions` collects the lines of what was placed."""
        dispatch, usage = self._dispatch, self.usage
        ttft = None if self._first_byte_at is None else self._first_byte_at - self.arrived
        took = now - self.arrived
        metrics.finished(
            line=self.line,
            client=self.client,
            weight=self.weight,
            outcome=self.outcome,
            streamed=self._stream,
            ttft_s=ttft,
            e2e_s=took,
            usage=usage,
            dispatch=dispatch,
        )
        line: dict[str, Any] = {
            "request_id": self._request,
            "outcome": self.outcome._value_,  # `value` runs Python code
            "status": self.status,
            "client": self.client,
            "model": self.line,
            "path": self._path,
            "stream": self._stream,
            "e2e_s": round(took, 6),
        }
        if dispatch is not None:
            place = dispatch.place
            line["worker"] = place.placement.decode
            if place.placement.prefill is not None:
                line["prefill_worker"] = place.placement.prefill
            line["reason"] = place.reason._value_
            line["matched_tokens"] = place.matched_tokens
            line["attempt"] = dispatch.ticket.attempt
            line["wait_s"] = round(dispatch.waited_s, 6)
            line["input_tokens"] = dispatch.request.input_tokens
        if ttft is not None:
            line["ttft_s"] = round(ttft, 6)
        if usage is not None:
            line["input_tokens"] = usage.input_tokens
            line["output_tokens"] = usage.output_tokens
            line["cached_tokens"] = usage.cached_tokens
        if self.error is not None:
            line["error"] = self.error
        if dispatch is not None:
            decisions.append(line)
        if self._prompt is not None or self._prefix:
            line = {**line, **self._what_was_asked()}
        log.write(line)

    def _what_was_asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        if self._prefix:
            asked |= {"prefix": self._prefix, "prompt_bytes": self._prompt_bytes}
        if self._prompt is not None:
            asked["prompt"] = self._prompt
        return asked
