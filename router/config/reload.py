"""What becomes of each setting when the configuration is read again (SIGHUP).

A setting needs a restart unless it is in `LIVE`; `merged` keeps the old value of one that does, and names it. So a
new setting cannot be ignored silently: it is warned of until it is put into `LIVE` and taken over by the gateway.
The table in deploy/README.md is `as_markdown`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from router.config.schema import Config


@dataclass(frozen=True, slots=True)
class Live:
    """A setting that takes effect while the gateway runs."""

    effect: str
    """From when on, for the table."""
    if_set: bool = False
    """Only from one value to another: to set it, or to unset it, needs a restart."""


_NEXT = Live("the next request")
_CERTIFICATE = Live("the next connection; the files are read again at every SIGHUP", if_set=True)
_TO_WORKERS = Live("the next request to a worker")
_KEY = Live("the next request", if_set=True)
_WRITTEN = Live("the next line")

LIVE: Mapping[str, Live] = {
    "listen.tls_certificate": _CERTIFICATE,
    "listen.tls_key": _CERTIFICATE,
    "listen.keep_alive_s": Live("the next connection"),
    "listen.decision_headers": _NEXT,
    "workers": Live("at once; open streams go on"),
    "clients": Live("the next request; what has been used of a limit stays used"),
    "models": _NEXT,
    "limits.body_bytes": _NEXT,
    "limits.header_bytes": _NEXT,
    "limits.concurrent_requests": _NEXT,
    "limits.held_bytes": _NEXT,
    "limits.queue_requests": Live("the next request; those that wait go on waiting"),
    "limits.queue_wait_s": Live("requests that begin to wait from then on"),
    "limits.drain_s": Live("the next stop"),
    "limits.wrong_keys_per_minute": _NEXT,
    "limits.background_responses": _NEXT,
    "limits.attempts": Live("the next failed attempt"),
    "limits.continuations": Live("the next stream whose worker dies"),
    "continuation": _NEXT,
    "timeouts.connect_s": _TO_WORKERS,
    "timeouts.first_byte_s": _TO_WORKERS,
    "timeouts.whole_answer_s": _TO_WORKERS,
    "timeouts.idle_s": _TO_WORKERS,
    "admin.key": _KEY,
    "admin.key_hash": _KEY,
    "status.access": _NEXT,
    "status.key": _NEXT,
    "status.key_hash": _NEXT,
    "log.level": _WRITTEN,
    "log.prefixes": _WRITTEN,
    "log.prompts": _WRITTEN,
    "log.sample": _WRITTEN,
    "log.slow_s": _WRITTEN,
    "log.addresses": _WRITTEN,
    "metrics.max_clients": Live("clients not seen before"),
}
"""By name, in the order of the schema."""


def settings(model: type[BaseModel] = Config, above: str = "") -> Iterator[str]:
    """The name of each setting, sections resolved; a list or a policy with its own settings is one."""
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        if section is None:
            yield above + name
        else:
            yield from settings(section, f"{above}{name}.")


def merged(running: Config, read: Config) -> tuple[Config, list[str]]:
    """What is in force once `read` has been read while `running` was, and the settings that need a restart for it.

    A section that only one of them has is named as a whole.
    """
    restart: list[str] = []
    values = {
        name: _merge(name, getattr(running, name), getattr(read, name), restart) for name in _fields(running)
    }
    return running.model_copy(update=values), restart


def as_markdown() -> str:
    """The table of live settings."""
    rows = [f"| `{name}` | {LIVE[name].effect} |" for name in settings() if name in LIVE]
    return "\n".join(["| setting | takes effect for |", "|---|---|", *rows])


def _merge(name: str, running: Any, read: Any, restart: list[str]) -> Any:
    if isinstance(running, BaseModel) and isinstance(read, BaseModel):
        values = {
            field: _merge(f"{name}.{field}", getattr(running, field), getattr(read, field), restart)
            for field in _fields(running)
        }
        return running.model_copy(update=values)
    if running == read:
        return running
    live = LIVE.get(name)
    if live is not None and not (live.if_set and (running is None) != (read is None)):
        return read
    restart.append(name)
    return running


def _fields(section: BaseModel) -> list[str]:
    return list(type(section).model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, set or not; None for anything else."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one if annotation is one or type(None) in get_args(annotation) else None
    return None
