"""A profile as a file: written by `fairlead profile`, read by `fairlead simulate --profile FILE`."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from router.lab.profiling.fit import Fit
from workers.simulator.profiles import Profile

_FIELDS = {each.name for each in dataclasses.fields(Profile)}
_MOST_BYTES = 16 * 1024 * 1024


class ProfileFileError(ValueError):
    """A file that is no profile; the message names the file and the reason."""


def document(fit: Fit, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds: the profile, how it was measured, and every point."""
    return {
        "profile": dataclasses.asdict(fit.profile),
        "conditions": {**conditions, "transport_s": fit.transport_s, "mean_error": fit.error()},
        "points": [
            {
                "kind": point.kind,
                "prompt_tokens": point.prompt_tokens,
                "batch": point.batch,
                "context": sum(step.context for step in point.steps),
                "measured_s": point.measured_s,
                "predicted_s": fit.predicted_s(point),
                "residual": fit.residual(point),
            }
            for point in fit.points
        ],
    }


def read_profile(path: Path) -> Profile:
    """Read the profile of a file. Raises ProfileFileError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ProfileFileError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, so no profile")
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ProfileFileError(f"cannot read {path}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ProfileFileError(f"{path}: not JSON: {error}") from None
    fields = content.get("profile") if isinstance(content, dict) else None
    if not isinstance(fields, dict):
        raise ProfileFileError(f"{path}: no file of `fairlead profile`: there is no object `profile` in it")
    if unknown := sorted(set(fields) - _FIELDS):
        raise ProfileFileError(f"{path}: a profile has no {', '.join(unknown)}")
    try:
        profile = TypeAdapter(Profile).validate_json(orjson.dumps(fields), strict=True)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileFileError(f"{path}: {problems}") from None
    _check(path, profile)
    return profile


def _check(path: Path, profile: Profile) -> None:
    for name, value in dataclasses.asdict(profile).items():
        if name.endswith("_s") and not (math.isfinite(value) and value >= 0):
            raise ProfileFileError(f"{path}: {name} is {value}, not a time")
        if isinstance(value, int) and value < 1:
            raise ProfileFileError(f"{path}: {name} is {value}, not a positive number")
    if profile.overhead_s + profile.weights_s <= 0 and profile.token_s + profile.sample_s <= 0:
        raise ProfileFileError(f"{path}: a step of this profile takes no time")
