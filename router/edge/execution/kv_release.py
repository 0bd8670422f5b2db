"""Prompts whose KV will not be fetched: the worker that keeps them is told, so that it need not wait.

A vLLM that turns a decode request down tells the worker that holds its KV. So the way to release is to send a
decode worker a request that it has to refuse; the word goes out with the next step of its engine, and arrives with
the next of the other's.

KV that is pushed is held until it has been, and its worker does not rest meanwhile. So there a decode worker asks
for it, with the least of prompts: what it gets is the end of the KV, under a salt of its own, so that no request
ever takes it for what it stands for. Which KV is meant is found by the request's id.

Where that fails, the lease of the KV ends by itself (30 s).
"""

import asyncio
import re
from dataclasses import dataclass
from random import getrandbits
from typing import Any

from policies.model import WorkerId
from router.edge.api.rewrite import for_release
from router.edge.execution.worker_connections import WorkerConnection, WorkerConnections
from router.edge.headers import Header
from workers.http.upstream import UpstreamError

_WITHIN_S = 30.0
"""As long as the lease: a worker that is busy answers late."""
_TRIED = 2
_PUSHED = re.compile(r"(?:(cmpl)-(.+)-0|chatcmpl-(.+))-[0-9a-f]{8}")
"""What vLLM makes of a request's id. Pushes are matched by what stands before the last dash."""
_ANSWER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Word:
    """The request that lets a prefill go."""

    target: bytes
    headers: list[Header]
    body: bytes


def is_pushed(kv: dict[str, Any]) -> bool:
    """Whether the KV comes from its worker, instead of being fetched from there."""
    return kv.get("transfer_mode") == "push"


def _word(served_name: str, kv: dict[str, Any]) -> _Word:
    found = _PUSHED.fullmatch(str(kv.get("remote_request_id"))) if is_pushed(kv) else None
    if found is None:
        return _Word(b"/v1/completions", [], for_release(served_name, kv))
    completion, text_id, chat_id = found.groups()
    target = b"/v1/completions" if completion else b"/v1/chat/completions"
    request_id = (text_id or chat_id).encode()
    body = for_release(served_name, kv, chat=not completion, salt=f"{getrandbits(64):016x}")
    return _Word(target, [(b"x-request-id", request_id)], body)


class KvReleases:
    """Releases under way. Nothing waits for them."""

    def __init__(self, connections: WorkerConnections) -> None:
        self._connections = connections
        self._under_way: set[asyncio.Task[None]] = set()

    def release(self, served_name: str, kv: dict[str, Any], *, prefill: WorkerId, decode: WorkerId) -> None:
        """Let `prefill` know by way of `decode`, or of another worker of the model if that cannot be reached."""
        workers = [each for each in self._connections.usable(served_name) if each.address.id != prefill]
        workers.sort(key=lambda each: each.address.id != decode)
        task = asyncio.get_running_loop().create_task(_tell(workers[:_TRIED], _word(served_name, kv)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _tell(workers: list[WorkerConnection], word: _Word) -> None:
    for worker in workers:
        headers = [(b"content-type", b"application/json"), *word.headers, *worker.headers]
        try:
            async with asyncio.timeout(_WITHIN_S):
                exchange = await worker.upstream.send(b"POST", word.target, headers, word.body)
                try:
                    await exchange.read_all(_ANSWER_BYTES)
                finally:
                    exchange.abort()
        except (UpstreamError, TimeoutError):
            continue
        return
