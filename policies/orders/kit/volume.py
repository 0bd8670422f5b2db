"""How much KV cache a request occupies over its life: its size, for orders that prefer small ones.

`volume = s*o + o*(o+1)/2` (arXiv 2606.22327): s tokens held over o steps, and one more after each step. For a
router prefill is time as well, so the tokens to compute weigh in as steps of their own.
"""

from policies.model import RequestView


def volume(request: RequestView, matched_tokens: int) -> float:
    """Token-steps, private to this request; what is cached already is shared and does not count."""
    private = max(1, request.input_tokens - matched_tokens)
    steps = request.expected_output_tokens + 1
    return request.sequences * (private * steps + steps * (steps + 1) / 2)
