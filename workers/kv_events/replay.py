"""Past batches, repeated by the engine on request.

vLLM keeps the last `buffer_steps` batches, 10,000 by default. A DEALER asks with a number; every kept batch from
that one on comes back, and at the end a message with the number -1. Beyond the high-water mark of its socket the
engine drops answers without a word, so numbers may be missing in their midst, and the end may, too.
"""

from collections.abc import AsyncGenerator

import zmq

from workers.kv_events.decode import GarbledMessageError, read_reply, replay_request
from workers.kv_events.sockets import LoopSocket, UnreachableError
from workers.kv_events.sources import KvSource


class ReplayError(Exception):
    """Nothing (more) is repeated. `str()` is the reason."""


async def replay(
    context: "zmq.Context[zmq.Socket[bytes]]", source: KvSource, start: int, within_s: float
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield numbers and payloads from `start` on, as far as they are kept. Close it when leaving early.

    Raises ReplayError when nothing comes for `within_s`.
    """
    if source.replay_endpoint is None:
        raise ReplayError("no replay endpoint is known")
    try:
        with LoopSocket(context, zmq.DEALER, source.replay_endpoint) as socket:
            socket.send(replay_request(start))
            while (reply := read_reply(await socket.receive(within_s))) is not None:
                yield reply
    except TimeoutError:
        raise ReplayError(f"{source.replay_endpoint} repeats nothing within {within_s:g} s") from None
    except (GarbledMessageError, UnreachableError) as error:
        raise ReplayError(f"{source.replay_endpoint}: {error}") from None
