"""Where settings come from, which source wins, and how a mistake in one is explained.

The file is overridden by environment variables (`FAIRLEAD_LISTEN__PORT=9000`; lists and mappings as JSON), those
by the command line. Mappings are merged key by key, everything else is replaced as a whole. All problems of all
sources are collected before anything is refused, each with its source, its path and the nearest right name.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource

from router.config.yaml_lines import At, ConfigError, Problem, SettingsFile, dotted, read

PREFIX = "FAIRLEAD_"
NESTED = "__"
NOT_SETTINGS = re.compile(
    # Kubernetes gives every container FAIRLEAD_SERVICE_HOST, FAIRLEAD_PORT_8000_TCP and the like for a Service
    # that is called "fairlead"; FAIRLEAD_VLLM_* belong to the script that prepares a vLLM for the tests,
    # FAIRLEAD_URL and FAIRLEAD_ADMIN_KEY to the operator's commands (`fairlead explain`), FAIRLEAD_IMAGE to the
    # compose files.
    r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)"
    r"|^FAIRLEAD_VLLM_|^FAIRLEAD_(URL|ADMIN_KEY|IMAGE)$"
)
SECRET = ("key", "keys", "key_hash", "key_hashes", "api_key")
"""Values below these names are never repeated in a message."""

C = TypeVar("C", bound=BaseModel)


class SeveralProblems(PydanticCustomError):  # named after what it holds
    """Raised by a validator that looks at many values at once and finds something wrong with several."""

    def __new__(cls, problems: list[tuple[At, str]]) -> Self:
        return super().__new__(cls, "several", "several problems", {"problems": problems})


def load(
    model: type[C], path: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[C, list[str]]:
    """Read and check all sources. Returns the configuration and notes for its author, or raises ConfigError."""
    problems: list[Problem] = []
    file = SettingsFile(name="")
    try:
        file = read(path) if path is not None else file
    except ConfigError as error:
        problems += error.problems
    variables = _Variables(model)
    for name in sorted(env):
        problems += variables.take(name, env[name])
    data = merged(merged(file.data, variables.data), overrides)
    notes: list[str] = []
    # References to files with secrets are relative to the configuration that makes them.
    context = {"env": env, "folder": path.parent if path else Path(), "notes": notes}
    try:
        config = model.model_validate(data, context=context)
    except ValidationError as error:
        for at, message in _explained(error, model):
            source = _source(at, file, variables, overrides)
            problems.append(Problem(message, at, source))
    if problems:
        raise ConfigError(sorted(problems, key=_place))
    return config, notes


def merged(below: Any, above: Any) -> Any:
    """`above` wins; mappings are merged key by key."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
    return above


class _Variables:
    """The environment variables that are settings, as nested data, and which variable said what."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.data: dict[str, Any] = {}
        self.names: dict[At, str] = {}
        self._model = model
        # pydantic-settings asks its own kind of class for the fields.
        shape = type("Shape", (model, BaseSettings), {"__module__": __name__})
        self._source = EnvSettingsSource(shape, env_prefix=PREFIX, env_nested_delimiter=NESTED)

    def take(self, name: str, value: str) -> list[Problem]:
        """Add one variable; those that are none of ours are left alone."""
        if not name.upper().startswith(PREFIX) or NOT_SETTINGS.search(name.upper()):
            return []
        at: At = tuple(name[len(PREFIX) :].lower().split(NESTED))
        if at[0] not in self._model.model_fields:
            if "://" in value:  # Kubernetes again: FAIRLEAD_PORT=tcp://10.0.0.1:8000
                return []
            return [Problem(f"no such setting; {self._hint(at)}", source=f"environment: {name}")]
        if len(at) > 1 and get_origin(self._model.model_fields[at[0]].annotation) is tuple:
            message = f"a list is given as a whole, as JSON in {PREFIX}{at[0].upper()}"
            return [Problem(message, source=f"environment: {name}")]
        self._source.env_vars = {name.lower(): value}
        try:
            data = self._source()
        except ValueError:
            message = """lists and mappings are given as JSON, for instance '["http://10.0.0.7:8000"]'"""
            return [Problem(message, source=f"environment: {name}")]
        self.names[at] = name
        self.data = merged(self.data, data)
        return []

    def _hint(self, at: At) -> str:
        known = {dotted(path): path for path in _paths(self._model)}
        # FAIRLEAD_PORT means FAIRLEAD_LISTEN__PORT: a last step that is right counts more than letters.
        ends = [path for path in known.values() if path[-1] == at[-1] and len(path) > 1]
        close = difflib.get_close_matches(dotted(at), known, n=1)
        best = known[close[0]] if close else ends[0] if ends else None
        if best is None:
            return f"known are {PREFIX}SECTION__KEY with the sections {_listed(self._model.model_fields)}"
        return f"did you mean {PREFIX}{NESTED.join(map(str, best)).upper()}?"


def _paths(model: type[BaseModel], above: At = ()) -> Iterator[At]:
    for name, info in model.model_fields.items():
        at = (*above, name)
        inner = _inner_model(info.annotation)
        yield at
        if inner is not None:
            yield from _paths(inner, at)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)


def _keys_at(model: type[BaseModel], at: At) -> list[str]:
    """The names that are known at a place."""
    inner: type[BaseModel] | None = model
    for step in at:
        if isinstance(step, str):
            info = inner.model_fields.get(step) if inner else None
            inner = _inner_model(info.annotation) if info else None
    return list(inner.model_fields) if inner else []


def _explained(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[At, str]]:
    for details in error.errors(include_url=False):
        at: At = details["loc"]
        if details["type"] == "several":
            for below, message in details["ctx"]["problems"]:
                yield (*at, *below), message
        elif details["type"] == "extra_forbidden":
            yield at, unknown(str(at[-1]), _keys_at(model, at[:-1]))
        else:
            yield at, _message(details)


def unknown(name: str, known: list[str]) -> str:
    """Say that a name is not known, and which one was probably meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return "not a known key; " + (f"did you mean `{close[0]}`?" if close else f"known are {_listed(known)}")


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _message(details: ErrorDetails) -> str:
    """Pydantic's message in the tone of the others, with the value where it is short and no secret."""
    kind = details["type"]
    if kind == "missing":
        return "is required"
    if kind in {"value_error", "assertion_error"}:
        return str(details["ctx"]["error"])
    if kind == "model_type":
        return "should be a mapping of keys to values"
    if kind in {"string_too_short", "too_short"}:
        return "should not be empty"
    message = re.sub(r"^\w+ should", "should", details["msg"])
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
    value = details["input"]
    if any(step in SECRET for step in details["loc"]) or not isinstance(value, str | int | float):
        return message
    return f"{message} (it is {json.dumps(value, ensure_ascii=False)[:80]})"


def _source(at: At, file: SettingsFile, variables: _Variables, overrides: Mapping[str, Any]) -> str:
    """Who said the value: the strongest source that has it."""
    if _holds(overrides, at):
        return "command line"
    for length in range(len(at), 0, -1):
        if at[:length] in variables.names:
            return f"environment: {variables.names[at[:length]]}"
    if at not in file.lines:  # about a section as a whole, some of whose values came from elsewhere
        for path, name in variables.names.items():
            if path[: len(at)] == at:
                return f"environment: {name}"
    return file.source(at)


def _holds(data: Any, at: At) -> bool:
    """Whether the data has a value there, or one above that is no mapping."""
    for step in at:
        if not isinstance(data, Mapping):
            return True
        if step not in data:
            return False
        data = data[step]
    return True


def _place(problem: Problem) -> tuple[str, int]:
    """Order of problems: by source, within a file by line."""
    name, _, line = problem.source.rpartition(":")
    return (name, int(line)) if line.isdigit() else (problem.source, 0)
