"""How long will the answer be? An estimate per client, from the answers it has had."""

from collections import OrderedDict

_PRIOR_TOKENS = 256.0
_RATE = 0.1
_MAX_CLIENTS = 4096


class Lengths:
    """Decayed means of output tokens per sequence, by client, falling back to all clients together.

    Bounded: the clients seen least recently are forgotten first.
    """

    def __init__(self) -> None:
        self._all = _PRIOR_TOKENS
        self._by_client: OrderedDict[str, float] = OrderedDict()

    def expect(self, client: str, max_output_tokens: int | None) -> int:
        """Mean output tokens of one answer, at least 1 and at most what the request allows."""
        mean = max(1, round(self._by_client.get(client, self._all)))
        return mean if max_output_tokens is None else max(0, min(mean, max_output_tokens))

    def saw(self, client: str, output_tokens: float) -> None:
        """Learn from one finished answer."""
        self._all += _RATE * (output_tokens - self._all)
        before = self._by_client.pop(client, self._all)
        self._by_client[client] = before + _RATE * (output_tokens - before)
        if len(self._by_client) > _MAX_CLIENTS:
            self._by_client.popitem(last=False)
