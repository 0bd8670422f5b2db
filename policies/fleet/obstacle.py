"""What keeps a request from starting on a worker that could serve it: the words that explain a wait."""

from enum import Enum


class Obstacle(Enum):
    """Why a request does not start somewhere, or waits. Values are words of the operating guide's glossary."""

    TURN = "turn"
    """The turn of other requests comes first: they are served now, or the worker's room is left to them."""
    PREFILL_WINDOW = "prefill_window"
    """The worker owes as much prefill as it can compute in about one step."""
    SLOT = "slot"
    """The worker runs as many sequences as it can at once."""
    KV = "kv"
    """Prompt and expected answer do not fit into the worker's KV cache beside what is in flight."""
    HOLD = "hold"
    """A worker has room, but another one holds so much of the prompt that waiting for it is worth it."""


EASIEST_FIRST = (Obstacle.TURN, Obstacle.PREFILL_WINDOW, Obstacle.SLOT, Obstacle.KV)
"""Of what workers lack, in the order in which it usually ends."""
