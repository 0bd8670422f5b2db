"""One attempt of one request, from its dispatch to its end."""

from dataclasses import dataclass, field

from policies.model import Placement, RequestView


@dataclass(slots=True, eq=False)
class Leg:
    """What it takes from whoever runs it is taken and given back in `load.py`."""

    request: RequestView
    placement: Placement
    extend_tokens: int
    """Of the prompt, to be computed."""
    reserved: int
    """KV tokens that the answers are expected to hold at their end; more once they outlive that."""
    dispatched_at: float
    context: int
    """Tokens of context per sequence so far: the prompt, then the answer as it grows."""
    first_token_at: float | None = None
    output_tokens: int = 0
    prefilling: bool = True
    prefilled_at: float | None = None
    """When the prefill worker of a pair was done."""
    pair: bool = field(init=False)
    """Whether another worker computes the prompt."""

    def __post_init__(self) -> None:
        decode, prefill, _ = self.placement
        self.pair = prefill is not None and prefill != decode

    @property
    def prefill_seen(self) -> bool:
        """Whether the driver sees the end of the prefill, or the scheduler has to predict it."""
        return self.request.streams or self.pair

    @property
    def remaining(self) -> int:
        """Steps until the answers have their expected length."""
        left = self.reserved - self.output_tokens
        return -(-left // self.request.sequences) if left > 0 else 0
