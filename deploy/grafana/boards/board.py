"""A dashboard: rows of panels, variables, links to the others, and marks where something was changed."""

import json
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.boards.panels import SOURCE, Panel

_TAG = "fairlead"


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the page, with `All` as its default."""

    name: str
    query: str
    regex: str = ""
    """Part of the label's value that is offered."""


MODEL = Variable("model", "label_values(fairlead_requests_total, model)")
CLIENT = Variable("client", "label_values(fairlead_client_requests_total, client)")
WORKER = Variable("worker", "label_values(fairlead_worker_state, worker)", "/([^#@]+)/")
INSTANCE = Variable("instance", "label_values(fairlead_build_info, instance)")


@dataclass(frozen=True, slots=True)
class Mark:
    """An annotation: a vertical line wherever the query has a value."""

    name: str
    expr: str
    title: str
    colour: str


_MARKS = (
    Mark(
        "Configuration reloads",
        "sum by (instance, result) (increase(fairlead_config_reloads_total[$__rate_interval])) > 0",
        "configuration {{result}}",
        "blue",
    ),
    Mark(
        "Worker changes",
        "sum by (server, state) "
        '(increase(fairlead_worker_transitions_total{state!="suspect"}[$__rate_interval])) > 0',
        "{{server}} {{state}}",
        "orange",
    ),
)


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; `name` is its file and the end of its address."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def document(board: Board) -> str:
    """The JSON that Grafana reads."""
    builder = (
        builders.Dashboard(board.title)
        .uid(f"fairlead-{board.name}")
        .description(board.description)
        .tags([_TAG])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(_link_to_the_others())
    )
    for variable in board.variables:
        builder.with_variable(_variable(variable))
    for mark in _MARKS:
        builder.annotation(_annotation(mark))
    for title, panels in board.rows:
        builder.with_row(builders.Row(title))
        for panel in panels:
            builder.with_panel(panel.build())
    content = json.loads(JSONEncoder(sort_keys=True).encode(builder.build()))
    _name_the_marks(content)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _link_to_the_others() -> builders.DashboardLink:
    link = builders.DashboardLink("fairlead").type(models.DashboardLinkType.DASHBOARDS).tags([_TAG])
    return link.include_vars(include_vars=True).keep_time(keep_time=True)


def _variable(variable: Variable) -> builders.QueryVariable:
    builder = (
        builders.QueryVariable(variable.name)
        .datasource(SOURCE)
        .query(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )
    return builder.regex(variable.regex) if variable.regex else builder


def _annotation(mark: Mark) -> builders.AnnotationQuery:
    builder = builders.AnnotationQuery().name(mark.name).datasource(SOURCE).enable(enable=True)
    return builder.expr(mark.expr).icon_color(mark.colour)


def _name_the_marks(content: dict[str, Any]) -> None:
    """Fields of Prometheus' own annotations, which the general builder does not know."""
    titles = {mark.name: mark.title for mark in _MARKS}
    for annotation in content["annotations"]["list"]:
        annotation["titleFormat"] = titles[annotation["name"]]
        annotation["step"] = "15s"
