"""What is remembered of one request, and told once at its end: to the metrics and to the log."""

from collections.abc import MutableSequence
from typing import Any

import xxhash

from policies.model import Outcome, Usage
from router.edge.api.fingerprint import fingerprint
from router.edge.api.parsed_request import ParsedRequest
from router.edge.errors import RequestError
from router.edge.execution.attempt import Attempt
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog
from router.port import Dispatch, Identity, shown

_UNKNOWN = Identity("", "")
_HEAD_BYTES = 1024
"""Prompts are compared by their first bytes."""
_ERROR_CHARACTERS = 1000
"""How much of an error, which may be a worker's, stands in the log."""


class Record:
    """Filled in step by step. Times are the loop's, in seconds."""

    __slots__ = (
        "_dispatch",
        "_first_byte_at",
        "_head",
        "_path",
        "_prefix",
        "_prompt",
        "_prompt_bytes",
        "_request",
        "_stream",
        "address",
        "arrived",
        "error",
        "identity",
        "outcome",
        "served_name",
        "status",
        "usage",
    )

    def __init__(self, request: str, path: str, now: float) -> None:
        self.address = ""
        """The client's."""
        self.arrived = now
        self.identity = _UNKNOWN
        self.served_name = ""
        self.outcome = Outcome.REJECTED
        self.status = 0
        self.error: str | None = None
        self.usage: Usage | None = None
        self._request = request
        self._path = path
        self._stream = False
        self._head: int | None = None
        """How the prompt begins, hashed."""
        self._prefix = ""
        self._prompt_bytes = 0
        self._prompt: str | None = None
        self._dispatch: Dispatch | None = None
        self._first_byte_at: float | None = None

    def name(self, request: str) -> None:
        """The request's id, as the log has it."""
        self._request = request

    def asked(self, ask: ParsedRequest, served_name: str, log: RequestLog) -> None:
        """The request is understood: it goes to this model."""
        self._stream = ask.stream
        self.served_name = served_name
        self._head = xxhash.xxh3_64_intdigest(ask.prompt[:_HEAD_BYTES])
        if log.prefixes:
            self._prefix, self._prompt_bytes = fingerprint(ask, served_name), ask.prompt_bytes
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

    def passed_on(self, status: int, why: str) -> None:
        """The client gets the error that a worker has answered."""
        self.error = why
        self.outcome = Outcome.REFUSED if status < 500 else Outcome.FAILED

    def answered(self, attempt: Attempt) -> None:
        """The last attempt has ended, with an answer or without.

        An answer that was all there stays one, although the client may have hung up on its closing bytes.
        """
        self._first_byte_at = attempt.first_byte_at
        self.usage = attempt.usage
        if attempt.outcome is not None:
            self.outcome = attempt.outcome

    def write(
        self, now: float, metrics: Metrics, log: RequestLog, decisions: MutableSequence[dict[str, Any]]
    ) -> None:
        """Tell the world; `decisions` collects the lines of what was placed."""
        dispatch, usage = self._dispatch, self.usage
        ttft = None if self._first_byte_at is None else self._first_byte_at - self.arrived
        took = now - self.arrived
        metrics.finished(
            served_name=self.served_name,
            client=self.identity.account,
            weight=self.identity.weight,
            outcome=self.outcome,
            streamed=self._stream,
            ttft_s=ttft,
            e2e_s=took,
            usage=usage,
            dispatch=dispatch,
            prompt_head=self._head,
        )
        line: dict[str, Any] = {
            "request_id": self._request,
            "outcome": self.outcome._value_,  # `value` runs Python code
            "status": self.status,
            "client": self.identity.client,
            "model": self.served_name,
            "path": shown(self._path),
            "stream": self._stream,
            "e2e_s": round(took, 6),
        }
        if dispatch is not None:
            line["worker"] = dispatch.worker
            if dispatch.prefill is not None:
                line["prefill_worker"] = dispatch.prefill
            line["reason"] = dispatch.reason._value_
            line["matched_tokens"] = dispatch.matched_tokens
            line["attempt"] = dispatch.attempt
            line["wait_s"] = round(dispatch.waited_s, 6)
            line["input_tokens"] = dispatch.input_tokens
        if ttft is not None:
            line["ttft_s"] = round(ttft, 6)
        if usage is not None:
            line["input_tokens"] = usage.input_tokens
            line["output_tokens"] = usage.output_tokens
            line["cached_tokens"] = usage.cached_tokens
        if log.addresses:
            line["address"] = self.address
        if self.error is not None:
            line["error"] = shown(self.error, _ERROR_CHARACTERS)
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
