"""A policy as a configuration names it: looked up by its name, its settings checked by its own dataclass."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_settings import NoDecode

from router.config import policy_catalog
from router.config.policy_catalog import Kind, NoSuchPolicy
from router.config.sources import SeveralProblems, unknown

if TYPE_CHECKING:
    from router.config.yaml_lines import At


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy's name, or `module:Class`, and its settings, an instance of its own frozen dataclass."""

    name: str
    settings: Any


def choose(kind: Kind, value: Any) -> Choice:
    """Turn a name, a mapping with `name` and settings, or None (the default) into a choice.

    Raises SeveralProblems, a pydantic error.
    """
    given = _mapping(value)
    name = str(given.pop("name", policy_catalog.default(kind)))
    try:
        settings = policy_catalog.find(kind, name).settings
    except NoSuchPolicy as error:
        raise SeveralProblems([(("name",) if isinstance(value, dict) else (), str(error))]) from None
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


# NoDecode: an environment variable may hold a plain name as well as JSON.
PlacementChoice = Annotated[Choice, NoDecode, PlainValidator(lambda value: choose("placement", value))]
QueueChoice = Annotated[Choice, NoDecode, PlainValidator(lambda value: choose("queue", value))]
