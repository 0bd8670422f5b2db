"""What Prometheus sees of tokens mode, read when it asks."""

from collections.abc import Iterator

from router.observability.exposition import Metric, Snapshot, counter, gauge
from router.tokenization.prompt import Why
from router.tokenization.tokenization import Tokenization

_KINDS = ("local", "worker", "text")
_TOKENIZER = gauge("tokenizer", "1 for what makes token ids of prompts", "model", "kind")
_TOKENIZATIONS = counter(
    "tokenizations",
    "Prompts whose token ids were known (exact), and why others went on as text",
    "model",
    "result",
)
_MISCOUNTS = counter("token_miscounts", "Exact prompts whose worker reported another length", "model")
_CACHE_BYTES = gauge("token_cache_bytes", "Token ids of pieces kept for reuse", "model")
_CACHE_PIECES = gauge("token_cache_pieces", "Pieces of prompts in it", "model")


class TokenizationSeries:
    """One row per model; a model whose prompts are routed as text has only its `tokenizer`."""

    metrics: tuple[Metric, ...] = (_TOKENIZER, _TOKENIZATIONS, _MISCOUNTS, _CACHE_BYTES, _CACHE_PIECES)

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization

    def read(self, into: Snapshot) -> Iterator[None]:
        """All at once: base models are few."""
        for model, kind in self._tokenization.kinds.items():
            for each in _KINDS:
                into.add(_TOKENIZER, float(each == kind), model, each)
        for model, desk in self._tokenization.desks.items():
            into.add(_TOKENIZATIONS, desk.exact, model, "exact")
            for why in Why:
                into.add(_TOKENIZATIONS, desk.as_text[why], model, why.value)
            into.add(_MISCOUNTS, desk.miscounts, model)
            into.add(_CACHE_BYTES, desk.pieces.bytes, model)
            into.add(_CACHE_PIECES, len(desk.pieces), model)
        yield
