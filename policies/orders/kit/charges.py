"""What has each running attempt been charged, and what does its end correct?

One rule for every order that keeps accounts of service. Placing charges the prompt, output is charged as it
streams past; the end replaces both by what the worker reports. A failed attempt is not the client's fault and
is given back whole, with the output that was predicted; so is what a worker refused. What a client cancels stays
charged, or long prompts with early cancels would be free.

Invariant: what `of` returned for the events of one attempt sums up to what that attempt was worth.
"""

from dataclasses import dataclass

from policies.events import Left, Output, Placed
from policies.model import Outcome


@dataclass(slots=True, eq=False)
class _Charge:
    """Tokens."""

    matched: int
    prompt: int
    output: int = 0


class Charges:
    """By attempt; `whole_prompts` charges them as if nothing were cached."""

    def __init__(self, input_weight: float, output_weight: float, *, whole_prompts: bool = False) -> None:
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._whole_prompts = whole_prompts
        self._running: dict[str, _Charge] = {}

    def __len__(self) -> int:
        return len(self._running)

    def of(self, event: Placed | Output | Left) -> float | None:
        """Service that the event adds to its client's account; None if it is of no attempt that is charged."""
        if isinstance(event, Placed):
            prompt = event.request.input_tokens if self._whole_prompts else event.extend_tokens
            self._running[event.request.id] = _Charge(event.matched_tokens, prompt)
            return self._input_weight * prompt
        if isinstance(event, Output):
            charge = self._running.get(event.request.id)
            if charge is None:
                return None
            charge.output += event.tokens
            return self._output_weight * event.tokens
        charge = self._running.pop(event.request.id, None)
        return None if charge is None else self._correction(event, charge)

    def _correction(self, event: Left, charge: _Charge) -> float:
        usage = event.usage
        if event.outcome in (None, Outcome.REFUSED):
            return -self._input_weight * charge.prompt - self._output_weight * charge.output
        if usage is None or usage.input_tokens == 0:
            return 0.0
        cached = charge.matched if usage.cached_tokens is None else usage.cached_tokens
        prompt = usage.input_tokens if self._whole_prompts else max(0, usage.input_tokens - cached)
        return self._input_weight * (prompt - charge.prompt)
