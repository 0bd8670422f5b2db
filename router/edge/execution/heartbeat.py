"""Signs of life in a stream that has not begun: comments, which clients skip and proxies take for traffic.

Proxies cut a connection after some 60 s without a byte; a queue and a long prefill may take longer. The first
comment sends the head of the answer, with status 200, so an error that follows becomes an event of the stream. As
nothing but comments has been sent, a failed attempt is still replaced by another.
"""

import asyncio

from router.edge.response import ResponseWriter


class Heartbeat:
    """A comment every `every_s` seconds, from the first interval's end until the answer begins, or `stop`."""

    __slots__ = ("_answer", "_every_s", "_loop", "_timer")

    def __init__(self, answer: ResponseWriter, every_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._answer = answer
        self._every_s = every_s
        self._loop = loop
        self._timer = loop.call_later(every_s, self._beat)

    def stop(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        if self._answer.comment():
            self._timer = self._loop.call_later(self._every_s, self._beat)
