"""What Prometheus sees of tokens mode, read when it asks."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.tokenization.prompt import Why
from router.tokenization.tokenization import Tokenization

_KINDS = ("local", "worker", "text")


class TokenizationSeries(Collector):
    """One row per model; a model whose prompts are routed as text has only its `tokenizer`."""

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization

    def describe(self) -> Iterable[Metric]:
        return _families()

    def collect(self) -> Iterator[Metric]:
        kinds, results, miscounts, size, pieces = families = _families()
        for model, kind in self._tokenization.kinds.items():
            for each in _KINDS:
                kinds.add_metric([model, each], float(each == kind))
        for model, desk in self._tokenization.desks.items():
            results.add_metric([model, "exact"], desk.exact)
            for why in Why:
                results.add_metric([model, why.value], desk.as_text[why])
            miscounts.add_metric([model], desk.miscounts)
            size.add_metric([model], desk.pieces.bytes)
            pieces.add_metric([model], len(desk.pieces))
        yield from families


def _families() -> tuple[
    GaugeMetricFamily, CounterMetricFamily, CounterMetricFamily, GaugeMetricFamily, GaugeMetricFamily
]:
    return (
        GaugeMetricFamily("fairlead_tokenizer", "1 for what makes token ids of prompts", labels=["model", "kind"]),
        CounterMetricFamily(
            "fairlead_tokenizations",
            "Prompts whose token ids were known (exact), and why others went on as text",
            labels=["model", "result"],
        ),
        CounterMetricFamily(
            "fairlead_token_miscounts", "Exact prompts whose worker reported another length", labels=["model"]
        ),
        GaugeMetricFamily("fairlead_token_cache_bytes", "Token ids of pieces kept for reuse", labels=["model"]),
        GaugeMetricFamily("fairlead_token_cache_pieces", "Pieces of prompts in it", labels=["model"]),
    )
