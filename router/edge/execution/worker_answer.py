"""What a worker's answer means: a model's answer, the client's own mistake, or an attempt that came to nothing.

A worker is not believed more than a client is. A redirect, an answer without content and a web page are none of a
model's answers, whatever their status says: something else listens at the address, and as it answers fast it would
attract ever more requests. None of them reaches the client, which must not learn a worker's address.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.model import AttemptFailure, WorkerId
from router.edge.headers import Header, content_type
from workers.http.upstream import Frozen, NotConnected, Response, TimedOut, UpstreamError

WHOLE_BYTES = 64 << 20
"""The longest answer that is held whole before it is passed on."""
_SHUTDOWN = b"cannot schedule new futures after shutdown"
"""What a vLLM that drains says, with status 500, while its /health still says 200."""
_BUSY = (429, 503)
_DISTRUST = (401, 403)
"""The worker refuses the gateway's own key: that is not the client's fault."""
_PAGES = (b"text/html", b"application/xhtml+xml")
_NO_CONTENT = (204, 205)


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer with an error status, in one piece."""

    status: int
    headers: Sequence[Header]
    body: bytes


class AttemptFailed(Exception):
    """The attempt came to nothing. `why` is for people, clients among them; only `reason` is ever acted on."""

    def __init__(
        self, reason: AttemptFailure, why: str, worker: WorkerId = "", answer: WholeAnswer | None = None
    ) -> None:
        super().__init__(why)
        self.reason = reason
        self.why = why
        self.worker = worker
        """Where it was."""
        self.answer = answer
        """What the worker has answered, if that is a whole answer that a client could be given."""
        self.code: int | None = None
        """The status inside an error event, where there was one."""
        self.fetching = False
        """It was to fetch KV from another worker."""

    @classmethod
    def of(cls, error: UpstreamError) -> "AttemptFailed":
        """What an error of the connection means for the attempt."""
        if isinstance(error, NotConnected):
            return cls(AttemptFailure.CONNECT, error.what)
        if isinstance(error, Frozen):
            return cls(AttemptFailure.FROZEN, error.what)
        return cls(AttemptFailure.TIMEOUT if isinstance(error, TimedOut) else AttemptFailure.LOST, error.what)


def check_success(response: Response, *, empty: bool = False) -> None:
    """Raises AttemptFailed for a head that is no success of vLLM's. `empty`: it may have no content."""
    status = response.status
    if status >= 300:
        what = f"with a redirect ({status})"
    elif status in _NO_CONTENT and not empty:
        what = f"without content ({status})"
    elif content_type(response.headers).lower().startswith(_PAGES):
        what = "with a web page"
    else:
        return
    raise AttemptFailed(AttemptFailure.ERROR, f"the worker answered {what}, as vLLM never does")


async def read_refusal(response: Response) -> WholeAnswer:
    """Read an answer with an error status; return the client's own mistake. Raises AttemptFailed for the rest."""
    answer = WholeAnswer(response.status, response.headers, await response.read_all(WHOLE_BYTES))
    judge(answer, f"the worker answered {response.status}")
    return answer


def judge(answer: WholeAnswer, what: str) -> None:
    """Raises AttemptFailed where an error answer is not the client's mistake. `what` begins its description."""
    status, told = answer.status, excerpt(answer.body)
    if status in _BUSY:
        raise AttemptFailed(AttemptFailure.BUSY, f"the worker is busy: {told}")
    if status in _DISTRUST:
        raise AttemptFailed(AttemptFailure.ERROR, f"the worker refuses the gateway's key with status {status}")
    if status >= 500 and status != 501:
        if _SHUTDOWN in answer.body:
            raise AttemptFailed(AttemptFailure.SHUTDOWN, f"{what}: {told}")
        raise AttemptFailed(AttemptFailure.ERROR, f"{what}: {told}", answer=answer)


def excerpt(body: bytes) -> str:
    """The beginning of what a worker says, for a log line."""
    return body[:300].decode("utf-8", "replace").strip()
