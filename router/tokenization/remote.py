"""The worker's own tokenizer, asked over HTTP: exact for every model that it serves, at the price of a round trip.

Answers are remembered by a digest of what was asked. A conversation that goes on is a new question each time.
"""

from array import array
from collections.abc import Callable
from typing import Any

import orjson
from xxhash import xxh3_128_digest

from router.edge.execution.worker_connections import WorkerConnection
from router.tokenization.pieces import Pieces
from router.tokenization.prompt import Chat, Ids, Inexact, Prompt, Texts, Why
from workers.http.upstream import UpstreamError

_PATH = b"/tokenize"
_ANSWER_BYTES = 64 << 20
_HEADERS = ((b"content-type", b"application/json"), (b"accept-encoding", b"identity"))


class NoAnswer(Exception):
    """A worker does not tokenize. `str()` is the reason, for people."""


class RemoteTokenizer:
    """`/tokenize` of whichever worker `choose` names; `model` is the name that they serve."""

    def __init__(self, model: str, choose: Callable[[], WorkerConnection | None], cache_bytes: int) -> None:
        self._model = model
        self._choose = choose
        self.pieces = Pieces(cache_bytes)

    async def ids(self, prompt: Prompt) -> bytes:
        """The ids of a prompt, as `LocalTokenizer.ids` gives them. Raises Inexact."""
        if isinstance(prompt, Ids):
            return prompt.data
        try:
            return b"".join([await self._known(question) for question in self._questions(prompt)])
        except NoAnswer as error:
            raise Inexact(Why.FAILED, str(error)) from error

    async def _known(self, question: dict[str, Any]) -> bytes:
        body = orjson.dumps(question)
        digest = xxh3_128_digest(body)
        (ids,) = self.pieces.known((digest,))
        if ids is None:
            member = self._choose()
            if member is None:
                raise NoAnswer("no worker is there to be asked")
            ids = await ask(member, body)
            self.pieces.keep(((digest, ids),))
        return ids

    def _questions(self, prompt: Texts | Chat) -> list[dict[str, Any]]:
        return [{"model": self._model, **question} for question in questions(prompt)]


def questions(prompt: Texts | Chat) -> list[dict[str, Any]]:
    """What to ask a worker's /tokenize, but for the model."""
    if isinstance(prompt, Texts):
        return [{"prompt": text, "add_special_tokens": prompt.special_tokens} for text in prompt.texts]
    arguments = dict(prompt.arguments)
    settled: dict[str, Any] = {
        name: arguments.pop(name)
        for name in ("add_generation_prompt", "continue_final_message")
        if name in arguments
    }
    tools = {} if prompt.tools is None else {"tools": prompt.tools}
    return [
        {
            "messages": prompt.messages,
            "add_special_tokens": prompt.special_tokens,
            "chat_template_kwargs": arguments,
            **settled,
            **tools,
        }
    ]


async def ask(member: WorkerConnection, body: bytes) -> bytes:
    """One question to one worker: the ids, 4 bytes each. Raises NoAnswer."""
    answer = await exchange(member, b"POST", _PATH, body)
    tokens = answer.get("tokens")
    try:
        return array("I", tokens).tobytes() if isinstance(tokens, list) else _nonsense()
    except (TypeError, OverflowError, ValueError):
        return _nonsense()


def _nonsense() -> bytes:
    raise NoAnswer("its answer holds no token ids")


async def exchange(member: WorkerConnection, method: bytes, path: bytes, body: bytes = b"") -> dict[str, Any]:
    """A small request to a worker, and its answer as an object. Raises NoAnswer."""
    try:
        sent = await member.upstream.send(method, path, [*_HEADERS, *member.headers], body)
        try:
            await sent.head()
            data = await sent.read_all(_ANSWER_BYTES)
        finally:
            sent.abort()
    except UpstreamError as error:
        raise NoAnswer(str(error)) from error
    if sent.status != 200:
        raise NoAnswer(f"it answers {sent.status}: {data[:200].decode('utf-8', 'replace')}")
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise NoAnswer("its answer is not JSON") from None
    if not isinstance(answer, dict):
        raise NoAnswer("its answer is no object")
    return answer
