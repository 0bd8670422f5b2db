"""A configuration as YAML with a comment above each key: what `fairlead print-config` shows.

What is printed can be read again and means the same, except that keys appear only as hashes and the keys of
workers not at all.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, SecretStr

from router.config import policy_catalog
from router.config.policy_catalog import Kind
from router.config.policy_choice import Choice
from router.config.schema import Config
from router.config.sections import Admin, ClientConfig, Status

INDENT = "  "


def as_yaml(config: Config) -> str:
    """The whole configuration, defaults included."""
    lines: list[str] = []
    for name, info in Config.model_fields.items():
        lines += ["", f"# {info.description}", *_entry(name, getattr(config, name))]
        if getattr(config, name) == ():
            lines += _template(info.annotation)
    return "\n".join(lines[1:]) + "\n"


def _entry(name: str, value: Any) -> Iterator[str]:
    """One key with everything below it."""
    if isinstance(value, SecretStr):
        yield f"# {name}: set, not shown"
    elif isinstance(value, BaseModel):
        yield f"{name}:"
        yield from _indented(_section(value))
    elif isinstance(value, Choice):
        yield f"{name}:"
        yield from _indented(_choice("placement" if name == "placement" else "queue", value))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        yield f"{name}:"
        for item in value:
            first, *rest = [line for line in _section(item) if not line.startswith("#") or "not shown" in line]
            yield f"{INDENT}- {first}"
            yield from _indented(_indented(iter(rest)))
    else:
        yield f"{_scalar(name)}: {_scalar(value)}"


def _section(section: BaseModel) -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(section, ClientConfig) and name in {"keys", "key_hashes"}:
            if name == "keys":
                continue
            value = section.digests
        if isinstance(section, Admin | Status) and name in {"key", "key_hash"}:
            if name == "key":
                continue
            value = section.digest
        yield f"# {info.description}"
        yield from _entry(name, value)


def _choice(kind: Kind, choice: Choice) -> Iterator[str]:
    yield f"# {policy_catalog.find(kind, choice.name).question}"
    yield f"name: {choice.name}"
    for field in dataclasses.fields(choice.settings):
        yield f"{field.name}: {_scalar(getattr(choice.settings, field.name))}"


def _template(annotation: Any) -> Iterator[str]:
    """What an item of an empty list may say, as a comment."""
    for model in get_args(annotation):
        if isinstance(model, type) and issubclass(model, BaseModel):
            for number, (name, info) in enumerate(model.model_fields.items()):
                default = "..." if info.is_required() else _scalar(info.default)
                yield f"# {'  ' if number else '- '}{name}: {default}  # {info.description}"


def _indented(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield INDENT + line


def _scalar(value: Any) -> str:
    """A value on one line. Nothing here holds a mapping deeper than `models`."""
    if isinstance(value, Path):
        value = str(value)
    elif isinstance(value, tuple | set | frozenset):
        value = sorted(value) if isinstance(value, set | frozenset) else list(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
