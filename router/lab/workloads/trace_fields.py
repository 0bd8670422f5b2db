"""Fields of one line of a trace, checked. Each function raises ValueError with what is wrong, for `BrokenLine`."""

# ruff: noqa: TRY004  # whatever is wrong with a line is one kind of error

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

MAX_TOKENS = 2**31 - 1


def json_object(line: bytes) -> dict[str, Any]:
    """The line as an object."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("should be a JSON object")
    return value


def number(record: dict[str, Any], name: str) -> float:
    """A finite number."""
    value = _needed(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} should be a number, not {shown(value)}")
    return float(value)


def tokens(record: dict[str, Any], name: str, least: int) -> int:
    """A number of tokens, at least `least`."""
    return whole(_needed(record, name), name, least, MAX_TOKENS)


def whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number, `5.0` included."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} should be a whole number from {least} to {most}, not {shown(value)}")
    return value


def text(record: dict[str, Any], name: str) -> str | None:
    """A text that is not empty, or None where there is none."""
    value = record.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} should be a text, not {shown(value)}")
    return value


def flag(record: dict[str, Any], name: str, *, default: bool) -> bool:
    """True or false."""
    value = record.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} should be true or false, not {shown(value)}")
    return value


def units(record: dict[str, Any], name: str) -> Sequence[int]:
    """Names of blocks; none where there are none. That each is an 8-byte number is for `Prompts.name` to find."""
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{name} should be a list of whole numbers, not {shown(value)}")
    return value


def moment(value: Any, name: str) -> float:
    """A date with its time of day, as seconds since 1970; without a zone it is taken as UTC."""
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} should be a date and time, not {shown(value)}") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def shown(value: Any) -> str:
    """A value as it may stand in a message."""
    written = repr(value)
    return written if len(written) <= 60 else written[:57] + "..."


def _needed(record: dict[str, Any], name: str) -> Any:
    try:
        return record[name]
    except KeyError:
        raise ValueError(f"{name} is missing") from None
