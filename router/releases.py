"""Prompts whose KV nobody is going to fetch: the worker that keeps them is told, so that it need not wait.

A vLLM that turns a decode request down tells the worker that holds its KV. So the way to release is to send a
decode worker a request that it has to refuse; the word goes out with the next step of its engine, and arrives with
the next of the other's. Where that fails, the lease of the KV ends by itself (30 s).
"""

import asyncio
from typing import Any

from policies.model import WorkerId
from router.pools import Member, Pools
from router.rewrite import for_release
from workers.upstream import UpstreamError

_WITHIN_S = 5.0
_TRIED = 2
_TARGET = b"/v1/completions"
_ANSWER_BYTES = 1 << 16


class Releases:
    """Releases under way. Nobody waits for them."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._under_way: set[asyncio.Task[None]] = set()

    def release(self, line: str, kv: dict[str, Any], *, prefill: WorkerId, decode: WorkerId) -> None:
        """Let `prefill` know by way of `decode`, or of another worker of the line if that cannot be reached."""
        members = [member for member in self._pools.usable(line) if member.worker.id != prefill]
        members.sort(key=lambda member: member.worker.id != decode)
        task = asyncio.get_running_loop().create_task(self._tell(members[:_TRIED], for_release(line, kv)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _tell(self, members: list[Member], body: bytes) -> None:
        for member in members:
            headers = [(b"content-type", b"application/json"), *member.headers]
            try:
                async with asyncio.timeout(_WITHIN_S):
                    with self._pools.busy(member):
                        exchange = await member.upstream.send(b"POST", _TARGET, headers, body)
                        try:
                            await exchange.read_all(_ANSWER_BYTES)
                        finally:
                            exchange.abort()
            except (UpstreamError, TimeoutError):
                continue
            return
