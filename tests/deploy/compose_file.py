"""A compose file as Docker Compose reads it, as far as ours goes: variables, `.env`, profiles, mounts."""

import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")


def dotenv(path: Path = DEPLOY / ".env") -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def read(path: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The file with its variables filled in: from `env`, else by their defaults."""
    return interpolated(yaml.safe_load(path.read_text()), env or {})


def interpolated(value: Any, env: dict[str, str]) -> Any:
    def filled(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        if name is None:
            return "$"
        if match[2] is None and name not in env:
            raise AssertionError(f"the variable {name} has neither a value nor a default")
        return env.get(name) or match[2] or ""

    if isinstance(value, dict):
        return {key: interpolated(content, env) for key, content in value.items()}
    if isinstance(value, list):
        return [interpolated(item, env) for item in value]
    return _VARIABLE.sub(filled, value) if isinstance(value, str) else value


def active(document: dict[str, Any], *profiles: str) -> dict[str, Any]:
    """The services that start with these profiles."""
    return {
        name: service
        for name, service in document["services"].items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }


@dataclass(frozen=True)
class Mount:
    """Something of the host, or a volume, at a place in a container."""

    source: Path | str
    """A path of the host, or the name of a volume."""
    target: str


def mounts(document: dict[str, Any], service: dict[str, Any], folder: Path) -> list[Mount]:
    """Volumes, configs and secrets of a service of a file in `folder`."""
    found = []
    for volume in service.get("volumes", ()):
        source, target = volume.split(":")[:2]
        is_path = source.startswith((".", "/"))
        found.append(Mount(Path(os.path.normpath(folder / source)) if is_path else source, target))
    found += [
        Mount(folder / document["configs"][config["source"]]["file"], config["target"])
        for config in service.get("configs", ())
    ]
    found += [
        Mount(folder / document["secrets"][secret]["file"], f"/run/secrets/{secret}")
        for secret in service.get("secrets", ())
    ]
    return found


def device_ids(service: dict[str, Any]) -> list[str]:
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    return device["device_ids"]


def _validator() -> Validator:
    """For the compose specification's schema, as the package check-jsonschema brings it."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    # The schema uses `unevaluatedProperties`, which older drafts do not know and silently leave alone.
    return validator_for(schema, default=Draft202012Validator)(schema)


VALIDATOR = _validator()
