"""The configuration as a JSON Schema, for editors: completion, descriptions, and errors while a file is written.

It accepts what the reader accepts. The reader says more: whether files exist, and names and numbers go together.
"""

import json
from typing import Any

from pydantic import TypeAdapter

from router.config.policy_catalog import Kind, built_in, default, names
from router.config.schema import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OWN_CLASS = "^[A-Za-z0-9_.]+:[A-Za-z0-9_.]+$"
"""A policy named as `module:Class`."""


def json_schema() -> dict[str, Any]:
    """The schema as a value."""
    schema: dict[str, Any] = _bounded(Config.model_json_schema())
    properties = schema["properties"]
    for name in list(properties):
        # A section whose lines are all commented out is null.
        properties[name] = {"anyOf": [properties[name], {"type": "null"}], **_told(properties[name])}
    workers = schema["$defs"]["WorkerConfig"]
    roles = workers["properties"]["roles"]
    workers["properties"]["roles"] = {"anyOf": [roles, {"type": "string"}], **_told(roles)}
    events = workers["properties"]["kv_events"]
    workers["properties"]["kv_events"] = _told(events)  # endpoints in several forms, which the reader checks
    schema["$defs"]["WorkerConfig"] = {"anyOf": [{"type": "string", "description": "Its URL."}, workers]}
    policies = schema["$defs"]["Policies"]["properties"]
    policies["placement"] |= _policy("placement")
    policies["queue"] |= _policy("queue")
    health = schema["$defs"]["Health"]["properties"]
    health["kv_events"]["enum"] = [*health["kv_events"]["enum"], True, False]  # YAML's on and off
    health["kv_events"].pop("type", None)
    return {"$schema": DIALECT, "title": "fairlead", **schema}


def as_json_schema() -> str:
    """The schema as indented JSON."""
    return json.dumps(json_schema(), indent=2) + "\n"


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _bounded(schema: Any) -> Any:
    """The schema with bounds of numbers in its own words: pydantic leaves those behind a validator as they are."""
    if isinstance(schema, list):
        return [_bounded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _BOUNDS.get(key, key) if isinstance(value, int | float) else key: _bounded(value)
        for key, value in schema.items()
        if key != "allow_inf_nan"
    }


def _told(field: dict[str, Any]) -> dict[str, Any]:
    return {key: field[key] for key in ("description", "default") if key in field}


def _policy(kind: Kind) -> dict[str, Any]:
    """A name, or a mapping with `name` and that policy's settings; of other packages' policies any settings."""
    known = built_in(kind)
    others = [name for name in names(kind) if name not in known]
    other = {"anyOf": [{"enum": others}, {"type": "string", "pattern": OWN_CLASS}]}
    choices: list[dict[str, Any]] = [
        {"enum": sorted(known)},
        other,
        {"type": "object", "properties": {"name": other}, "required": ["name"]},
        {"type": "null"},
    ]
    for name, entry in sorted(known.items()):
        settings = TypeAdapter(entry.settings).json_schema().get("properties", {})
        choices.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, **settings},
                "required": [] if name == default(kind) else ["name"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": choices}
