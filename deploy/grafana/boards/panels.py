"""The kinds of panel that the dashboards use, as plain values, and how Grafana's builders make them.

Every panel says in its description what a good value looks like, and has a unit; a threshold stands where a value
begins to hurt.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")


class Unit(Enum):
    """Grafana's names of units."""

    COUNT = "short"
    SECONDS = "s"
    SHARE = "percentunit"
    PERCENT = "percent"
    BYTES = "bytes"
    MEBIBYTES = "mbytes"
    BYTES_PER_SECOND = "Bps"
    REQUESTS_PER_SECOND = "reqps"
    PER_SECOND = "cps"
    WATTS = "watt"
    CELSIUS = "celsius"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what a series is called (`{{label}}`)."""

    expr: str
    legend: str = ""


class Kind(Enum):
    LINES = "lines"
    STACK = "stack"
    STAT = "stat"
    TABLE = "table"
    MATRIX = "matrix"
    """A table of one value by two labels: `matrix` names the rows' and the columns'."""
    HEATMAP = "heatmap"
    STATES = "states"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `warn` and `bad` are thresholds, rising or falling; `names` are words for the values."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.COUNT
    kind: Kind = Kind.LINES
    span: int = 8
    warn: float | None = None
    bad: float | None = None
    most: float | None = None
    signed: bool = False
    """Values may be below zero."""
    names: tuple[tuple[int, str, str], ...] = ()
    """Value, word, colour."""
    matrix: tuple[str, str] = ("", "")

    def build(self) -> Any:
        """The builder of this panel."""
        panel = _MAKERS[self.kind](self)
        panel.title(self.title).description(self.description).datasource(SOURCE)
        panel.unit(self.unit.value).span(self.span).height(4 if self.kind is Kind.STAT else 8)
        if self.most is not None:
            panel.max(self.most)
        if not self.signed and self.kind not in _TABLES:
            panel.min(0)
        if self.warn is not None or self.bad is not None:
            panel.thresholds(_thresholds(self.warn, self.bad))
        if self.names:
            panel.mappings([_words(self.names)])
        return panel


def quantiles(metric: str, selector: str, by: str = "model") -> tuple[Query, ...]:
    """p50, p95 and p99 of a histogram."""
    inner = f"sum by ({by}, le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return tuple(
        Query(f"histogram_quantile({share}, {inner})", f"p{round(share * 100)} {{{{{by}}}}}")
        for share in (0.5, 0.95, 0.99)
    )


def _target(query: Query, letter: str, kind: Kind) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(SOURCE)
    if query.legend:
        target.legend_format(query.legend)
    if kind in _TABLES:
        return target.instant().format(PromQueryFormat.TABLE)
    return target.range().format(PromQueryFormat.HEATMAP if kind is Kind.HEATMAP else PromQueryFormat.TIME_SERIES)


def _with_targets(builder: Any, panel: Panel) -> Any:
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        builder.with_target(_target(query, letter, panel.kind))
    return builder


def _lines(panel: Panel) -> Any:
    legend = (
        common.VizLegendOptions()
        .display_mode(choices.LegendDisplayMode.TABLE)
        .placement(choices.LegendPlacement.BOTTOM)
        .show_legend(show_legend=True)
        .calcs(["lastNotNull", "mean", "max"])
    )
    tooltip = common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI).sort(choices.SortOrder.DESCENDING)
    builder = timeseries.Panel().legend(legend).tooltip(tooltip).line_width(1)
    builder.show_points(choices.VisibilityMode.NEVER)
    if panel.kind is Kind.STACK:
        builder.fill_opacity(30).stacking(common.StackingConfig().mode(choices.StackingMode.NORMAL))
    if panel.warn is not None or panel.bad is not None:
        style = common.GraphThresholdsStyleConfig().mode(choices.GraphThresholdsStyleMode.DASHED)
        builder.thresholds_style(style)
    return _with_targets(builder, panel)


def _stat(panel: Panel) -> Any:
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    builder = stat.Panel().reduce_options(last).graph_mode(choices.BigValueGraphMode.AREA)
    return _with_targets(builder.color_mode(choices.BigValueColorMode.VALUE), panel)


def _table(panel: Panel) -> Any:
    hidden = {"excludeByName": dict.fromkeys(("Time", "Value", "__name__", "job", "instance"), True)}
    organised = models.DataTransformerConfig(id_val="organize", options=hidden)
    return _with_targets(table.Panel(), panel).with_transformation(organised)


def _matrix(panel: Panel) -> Any:
    row, column = panel.matrix
    numbers = [{"targetField": label, "destinationType": "number"} for label in panel.matrix]
    steps = {
        "convertFieldType": {"conversions": numbers},  # labels are words, which would be sorted as such
        "sortBy": {"sort": [{"field": column}]},
        "groupingToMatrix": {"rowField": row, "columnField": column, "valueField": "Value"},
    }
    builder = _with_targets(table.Panel(), panel)
    for name, options in steps.items():
        builder.with_transformation(models.DataTransformerConfig(id_val=name, options=options))
    return builder


def _heatmap(panel: Panel) -> Any:
    return _with_targets(heatmap.Panel().calculate(calculate=False).show_legend(), panel)


def _states(panel: Panel) -> Any:
    return _with_targets(statetimeline.Panel().merge_values(merge_values=True), panel)


_TABLES = (Kind.TABLE, Kind.MATRIX)
_MAKERS = {
    Kind.LINES: _lines,
    Kind.STACK: _lines,
    Kind.STAT: _stat,
    Kind.TABLE: _table,
    Kind.MATRIX: _matrix,
    Kind.HEATMAP: _heatmap,
    Kind.STATES: _states,
}


def _thresholds(warn: float | None, bad: float | None) -> builders.ThresholdsConfig:
    """Green, yellow from `warn`, red from `bad`; the other way round where low values are the bad ones."""
    steps: list[tuple[float | None, str]]
    if bad is not None and warn is not None and bad < warn:
        steps = [(None, "red"), (bad, "yellow"), (warn, "green")]
    else:
        given = [(warn, "yellow"), (bad, "red")]
        steps = [(None, "green"), *((value, colour) for value, colour in given if value is not None)]
    config = builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return config.steps([models.Threshold(value=value, color=colour) for value, colour in steps])


def _words(names: tuple[tuple[int, str, str], ...]) -> models.ValueMap:
    options = {
        str(value): models.ValueMappingResult(text=word, color=colour, index=index)
        for index, (value, word, colour) in enumerate(names)
    }
    return models.ValueMap(options=options)
