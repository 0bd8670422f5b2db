"""A YAML file as plain data that remembers where each value stands, and the problems found in it.

A person who mistyped a key wants to be told the line. So the file is read as a tree of nodes (PyYAML keeps a
mark on each) and turned into dictionaries and lists here, with one line number per path. Keys given twice are
refused, which PyYAML's own loader does not do.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Step = str | int
At = tuple[Step, ...]
"""Where a value stands in the configuration: `("workers", 0, "url")`."""

MAX_BYTES = 16 * 1024 * 1024
MAX_NODES = 200_000
"""Aliases can make a small file unfold into an endless tree; no real configuration has this many values."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `source` says where it was read: `fairlead.yaml:12`, `environment`."""

    message: str
    at: At = ()
    source: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, dotted(self.at), self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used. Holds every problem that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(at: At) -> str:
    """`("workers", 0, "url")` as people write it: `workers[0].url`."""
    text = ""
    for step in at:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


@dataclass(slots=True)
class SettingsFile:
    """What a file says, and on which line it says it."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[At, int] = field(default_factory=dict)

    def source(self, at: At) -> str:
        """File and line of a value, or of the nearest thing around it."""
        while at and at not in self.lines:
            at = at[:-1]
        return f"{self.name}:{self.lines[at]}" if at in self.lines else self.name


def read(path: Path) -> SettingsFile:
    """Read a file. Raises ConfigError for everything that keeps it from being a mapping of settings."""
    name = str(path)
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(f"not valid YAML: {what}", source=f"{name}:{line}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem(f"not valid YAML: {' '.join(str(error).split())}", source=name)]) from None
    except RecursionError:
        raise ConfigError([Problem("nested too deeply", source=name)]) from None
    result = SettingsFile(name)
    if node is None:
        return result
    reading = _Reading(result)
    try:
        data = reading.value(node, ())
    except RecursionError:
        raise ConfigError([Problem("nested too deeply", source=name)]) from None
    if reading.problems:
        raise ConfigError(reading.problems)
    if data is None:
        return result
    if not isinstance(data, dict):
        raise ConfigError([Problem(_not_a_mapping(data), source=f"{name}:{node.start_mark.line + 1}")])
    result.data = data
    return result


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(f"cannot be read: {error.strerror}", source=str(path))]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError([Problem(f"larger than {MAX_BYTES} bytes", source=str(path))])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError([Problem("not a text file in UTF-8", source=str(path))]) from None
    if "\0" in text:
        raise ConfigError([Problem("not a text file", source=str(path))])
    return text


def _not_a_mapping(data: object) -> str:
    what = "a list" if isinstance(data, list) else f"just the value {str(data)[:40]!r}"
    return f"this is {what}; expected a mapping with keys such as `workers:`"


class _Reading:
    """One walk over the tree of nodes."""

    def __init__(self, file: SettingsFile) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._scalars = yaml.SafeLoader("")
        self._above: set[int] = set()
        self._merged: set[int] = set()
        self._nodes = 0

    def value(self, node: yaml.Node, at: At) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ConfigError([Problem("aliases make it unfold without end", source=self._file.name)])
        if id(node) in self._above:
            self._problem(node, at, "an alias that contains itself")
            return None
        self._above.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*at, index)) for index, child in enumerate(node.value)]
            return self._scalar(node, at)
        finally:
            self._above.discard(id(node))

    def _item(self, node: yaml.Node, at: At) -> Any:
        self._file.lines[at] = node.start_mark.line + 1
        return self.value(node, at)

    def _mapping(self, node: yaml.MappingNode, at: At) -> dict[str, Any]:
        if id(node) not in self._merged:  # an alias leads here again, to a node that is already merged
            self._merged.add(id(node))
            self._refuse_duplicates(node, at)
            self._merge(node, at)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, at)
            if key is not None:
                self._file.lines[(*at, key)] = key_node.start_mark.line + 1
                result[key] = self.value(value_node, (*at, key))
        return result

    def _merge(self, node: yaml.MappingNode, at: At) -> None:
        """`<<: *defaults`; what stands in the mapping itself comes last and wins."""
        try:
            self._scalars.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self._problem(node, at, f"not valid YAML: {error.problem}")

    def _refuse_duplicates(self, node: yaml.MappingNode, at: At) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in first:
                self._problem(
                    key_node, (*at, key_node.value), f"given twice, first on line {first[key_node.value]}"
                )
            first.setdefault(key_node.value, line)

    def _key(self, node: yaml.Node, at: At) -> str | None:
        """Keys are taken as they are written: a client or model may well be called `on` or `7`."""
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        self._problem(node, at, "a list or a mapping cannot be a key")
        return None

    def _scalar(self, node: yaml.Node, at: At) -> Any:
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            what = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
            self._problem(node, at, f"not a value that a configuration can hold: {what}")
            return None

    def _problem(self, node: yaml.Node, at: At, message: str) -> None:
        self.problems.append(Problem(message, at, f"{self._file.name}:{node.start_mark.line + 1}"))
