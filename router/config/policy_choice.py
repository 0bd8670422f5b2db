"""A policy as a configuration names it: looked up in the catalog, its settings checked by its own dataclass."""

import dataclasses
import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_settings import NoDecode

from policies import catalog
from router.config.sources import SeveralProblems, unknown

if TYPE_CHECKING:
    from router.config.yaml_lines import At

Kind = Literal["placement", "queue"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A name in the catalog and that policy's settings, an instance of its own frozen dataclass."""

    name: str
    settings: Any


def choose(kind: Kind, value: Any) -> Choice:
    """Turn a name, a mapping with `name` and settings, or None (the default) into a choice.

    Raises SeveralProblems, a pydantic error.
    """
    known: dict[str, catalog.Entry[Any]]
    if kind == "placement":
        known, default = dict(catalog.placement_policies()), catalog.DEFAULT_PLACEMENT
    else:
        known, default = dict(catalog.queue_policies()), catalog.DEFAULT_QUEUE
    given = _mapping(value)
    name = given.pop("name", default)
    if name not in known:
        raise SeveralProblems([(("name",) if isinstance(value, dict) else (), _no_such_policy(name, kind, known))])
    settings = known[name].settings
    names = [field.name for field in dataclasses.fields(settings)]
    problems: list[tuple[At, str]] = [
        ((key,), unknown(key, ["name", *names])) for key in given if key not in names
    ]
    try:
        checked = TypeAdapter(settings).validate_python(given)
    except ValidationError as error:
        problems += [(details["loc"], details["msg"]) for details in error.errors()]
    if problems:
        raise SeveralProblems(problems)
    return Choice(name, checked)


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str) and value.lstrip().startswith("{"):  # an environment variable
        try:
            value = json.loads(value)
        except ValueError:
            raise SeveralProblems([((), "not valid JSON")]) from None
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict):
        return dict(value)
    raise SeveralProblems([((), "should be a name, or a mapping with `name` and settings")])


def _no_such_policy(name: object, kind: Kind, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
    return f"there is no {kind} policy `{name}`; {meant} (`fairlead policies` explains them)"


# NoDecode: an environment variable may hold a plain name as well as JSON.
PlacementChoice = Annotated[Choice, NoDecode, PlainValidator(lambda value: choose("placement", value))]
QueueChoice = Annotated[Choice, NoDecode, PlainValidator(lambda value: choose("queue", value))]
