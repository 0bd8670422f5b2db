"""The first half of a pair: one worker computes the prompt, another one goes on from there.

    prefill attempt ──► its KV stays there, parameters come back ──► decode attempt, which fetches the KV with them
         └──► the answer is over with its first token: it is the answer

The sequence is vLLM's (NIXL, pulling or pushing): the same path and body, one token long and not streamed; the
`kv_transfer_params` of its answer go with the request that follows, unread, and once: a worker frees what has been
fetched, so that a second request with them would read memory that has become another's. Connectors that find
the KV by themselves (a shared file) answer without parameters, and the request that follows has none.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from policies.model import AttemptFailure, Outcome, Usage
from router.edge.api.parsed_request import Surface
from router.edge.api.stream_chunks import as_events
from router.edge.api.stream_monitor import read_usage, whole_aborted
from router.edge.execution.attempt import GIVEN_UP, Attempt
from router.edge.execution.worker_answer import WHOLE_BYTES, AttemptFailed
from workers.http.upstream import Response

_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@dataclass(slots=True)
class PrefillAttempt(Attempt):
    """The attempt on the prefill worker. With an `outcome` the client is answered, else decode follows."""

    params: dict[str, Any] | None = None
    """What the decode attempt has to bring, once."""

    @property
    def in_one_piece(self) -> bool:
        """One token is asked for: it is late as soon as the first byte of a stream would be."""
        return False

    async def _whole(self, exchange: Response) -> None:
        body = await exchange.read_all(WHOLE_BYTES)
        if whole_aborted(body, anthropic=self.ask.surface is Surface.MESSAGES):
            raise AttemptFailed(AttemptFailure.SHUTDOWN, GIVEN_UP)
        answer = _parsed(body)
        params = answer.get("kv_transfer_params")
        if isinstance(params, dict):
            self.params = params
        usage = answer.get("usage")
        spent = read_usage(usage)
        self.prompt_cached = spent.cached_tokens if spent is not None else None
        if self._is_over(answer):
            await self._answer(exchange, answer, spent)

    async def _stream(self, _: Response) -> None:
        raise AttemptFailed(AttemptFailure.LOST, "the worker streams what was not to be streamed")

    def _is_over(self, answer: dict[str, Any]) -> bool:
        """Whether the model had no more to say than this token. Not known where more was demanded of it."""
        if self.ask.surface is Surface.MESSAGES or self.ask.min_tokens:
            return False
        choice = _choice(answer)
        return choice is not None and choice.get("finish_reason") == "stop"

    async def _answer(self, exchange: Response, answer: dict[str, Any], spent: Usage | None) -> None:
        """Hand the one token on, in the form that the client wants."""
        self.first_byte_at = self.clock()
        self._settle(Outcome.COMPLETED, spent or Usage(self.dispatch.input_tokens, 1), exact=spent is not None)
        answer = {**answer, "kv_transfer_params": None}
        if self.ask.stream:
            events = as_events(answer, usage=self.ask.wants_usage, continuous=self.ask.continuous_usage)
            await self.answer.whole(exchange.status, _EVENTS, events)
        else:
            await self.answer.whole(exchange.status, exchange.headers, orjson.dumps(answer))


def _choice(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The choice of an answer that has one, and has the form of a completion or chat completion."""
    choices = answer.get("choices")
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        return None
    choice: dict[str, Any] = choices[0]
    message = choice.get("message")
    sound = isinstance(answer.get("object", ""), str) and (message is None or isinstance(message, dict))
    return choice if sound else None


def _parsed(body: bytes) -> dict[str, Any]:
    """The answer, every part of which can be written again. Raises AttemptFailed."""
    try:
        answer = orjson.loads(body)
        orjson.dumps(answer)  # raises where it is nested more deeply than can be written
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        answer = None
    if not isinstance(answer, dict):
        raise AttemptFailed(AttemptFailure.LOST, "the worker's answer to the prefill is no JSON object")
    return answer
