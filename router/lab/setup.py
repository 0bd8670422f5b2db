"""What a replay runs: how many engines of which role, and a configuration with the chosen policies.

Settings are given by name, in the words of the configuration:

    queue.quantum=2048  placement.match_ratio=0.5  prefill_window_s=0.1  queue_wait_s=60  engine.max_num_seqs=64
    machine.cores=2
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from policies.model import Stage
from router.config import policy_catalog
from router.config.policy_catalog import Entry, Kind, NoSuchPolicy
from router.config.schema import Config
from router.config.sections import Policies
from router.lab.fleet_changes import FleetChange, Role, parse_changes
from router.lab.machine import Machine
from router.lab.profiling.profile_file import ProfileFileError, read_profile
from workers.simulator.profiles import PROFILES, Profile
from workers.simulator.sequences import EngineConfig

DEFAULT_PROFILE = "h100-llama-3.1-8b"
DEFAULT_WORKERS = 8
Keys = Literal["tokens", "text"]
STAGES: Mapping[Role, frozenset[Stage]] = {
    "mixed": frozenset(Stage),
    "prefill": frozenset((Stage.PREFILL,)),
    "decode": frozenset((Stage.DECODE,)),
}
_CHOSEN = ("placement", "queue", "binding")
_LIMITS = ("queue_requests", "queue_wait_s", "attempts")
_ENGINE = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "kv_tokens", "scheduling", "prefix_caching")


class SetupError(ValueError):
    """A setup that cannot be made; the message is for the person who asked for it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One combination of policies over a fleet of equal simulated workers."""

    placement: str
    queue: str
    """As they were named, with `+order` where one was given."""
    config: Config
    profile: Profile
    roles: tuple[Role, ...]
    """Of each worker."""
    seed: int = 0
    """Decides what policies leave to chance."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Limits of each engine that differ from the profile's."""
    read_every_s: float = 5.0
    """Between two readings of a worker's metrics; `Health.scrape_every_s`."""
    probe_every_s: float = 2.0
    """Between two health checks of a worker; `Health.probe_every_s`."""
    keys: Keys = "tokens"
    """What the scheduler is given of prompts: exact token blocks, or text as a gateway without a tokenizer has
    it."""
    changes: tuple[FleetChange, ...] = ()
    """Workers that come and go, in the order of their times."""
    machine: Machine = Machine()  # noqa: RUF009  # frozen
    """What lies around the engines."""

    @property
    def workers(self) -> int:
        return len(self.roles)

    @property
    def stages(self) -> list[frozenset[Stage]]:
        """What each worker may be used for."""
        return [STAGES[role] for role in self.roles]

    @property
    def binding(self) -> str:
        return self.config.policies.binding

    def engine_config(self, block_tokens: int) -> EngineConfig:
        """Limits of an engine with blocks of the workload's size. Raises SetupError."""
        given = dict(self.engine)
        kv_blocks = given.pop("kv_tokens", self.profile.kv_tokens) // block_tokens
        limits: dict[str, Any] = {
            "max_num_seqs": self.profile.max_num_seqs,
            "max_num_batched_tokens": self.profile.max_num_batched_tokens,
            "max_model_len": max(1, min(EngineConfig().max_model_len, kv_blocks * block_tokens)),
            **given,
            "kv_blocks": kv_blocks,
            "block_size": block_tokens,
        }
        try:
            return TypeAdapter(EngineConfig).validate_python(limits)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
            raise SetupError(f"engine: {problems}") from None


def make_setup(
    *,
    placement: str | None = None,
    queue: str | None = None,
    binding: str | None = None,
    workers: int | None = None,
    roles: str | None = None,
    profile: str = DEFAULT_PROFILE,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    keys: str = "tokens",
    changes: str = "",
    lenient: bool = False,
) -> Setup:
    """Build a setup from names and settings.

    `workers` are mixed ones; `roles`, such as `6xmixed,1xprefill,1xdecode`, says more and may replace it.
    `profile` is a name, or the path of a file made by `fairlead profile`.
    `keys` is `tokens` or `text`. `changes`: workers that come and go, see `fleet_changes`.
    `lenient`: settings that only other policies have are left out, for comparisons. Raises SetupError for an
    unknown name, ConfigError for a value that does not do.
    """
    placement = placement or policy_catalog.default("placement")
    queue = queue or policy_catalog.default("queue")
    timing = _profile(profile)
    fleet = parse_roles(f"{workers or DEFAULT_WORKERS}xmixed" if roles is None else roles)
    if roles is not None and workers not in (None, len(fleet)):
        raise SetupError(f"--workers {workers} and --roles {roles}, which are {len(fleet)} workers: leave one out")
    if keys not in get_args(Keys):
        raise SetupError(f"there are no keys `{keys}`; known are {', '.join(get_args(Keys))}")
    try:
        coming_and_going = parse_changes(changes, len(fleet))
    except ValueError as error:
        raise SetupError(f"workers that come and go: {error}") from None
    parts: dict[str, dict[str, Any]] = {
        "placement": _named("placement", placement),
        "queue": _named("queue", queue),
    }
    policies: dict[str, Any] = {"binding": binding} if binding else {}
    limits: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    known = known_settings([placement], [queue])
    given = settings or {}
    if lenient:
        given = {name: value for name, value in given.items() if name in known}
    refuse_unknown(given, known)
    for name, value in given.items():
        part, _, key = name.rpartition(".")
        if part in parts:
            parts[part][key] = value
        elif part == "engine":
            engine[key] = value
        elif part == "machine":
            machine[key] = value
        elif name in _LIMITS:
            limits[name] = value
        else:
            policies[name] = value
    config = Config.load(None, {}, {"policies": {**policies, **parts}, "limits": limits})
    health = config.health
    return Setup(
        placement,
        queue,
        config,
        timing,
        fleet,
        seed,
        engine,
        health.scrape_every_s,
        health.probe_every_s,
        cast("Keys", keys),
        coming_and_going,
        _machine(machine),
    )


def known_settings(placements: Iterable[str], queues: Iterable[str]) -> list[str]:
    """Every name that a setting may have with these policies."""
    names = [name for name in Policies.model_fields if name not in _CHOSEN] + list(_LIMITS)
    parts: tuple[tuple[Kind, Iterable[str]], ...] = (("placement", placements), ("queue", queues))
    for part, chosen in parts:
        for choice in chosen:
            entry = _entry(part, choice.partition("+")[0])
            names += [f"{part}.{each.name}" for each in dataclasses.fields(entry.settings)]
    around = [f"machine.{each.name}" for each in dataclasses.fields(Machine)]
    return list(dict.fromkeys(names + [f"engine.{name}" for name in _ENGINE] + around))


def refuse_unknown(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise SetupError for a name that is not among the known ones."""
    for name in given:
        if name not in known:
            raise SetupError(f"there is no setting `{name}` here; known are {', '.join(known)}")


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`name=value` as given on a command line; values are read as in the configuration file. Raises SetupError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise SetupError(f"--set {pair}: expected NAME=VALUE, such as queue.quantum=2048")
        try:
            settings[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise SetupError(f"--set {pair}: the value cannot be read") from None
    return settings


def parse_roles(roles: str) -> tuple[Role, ...]:
    """The role of each worker in `6xmixed,1xprefill,1xdecode`. Raises SetupError."""
    fleet: list[Role] = []
    for part in roles.split(","):
        found = re.fullmatch(r"\s*(?:([1-9][0-9]{0,3})\s*x\s*)?(mixed|prefill|decode)\s*", part)
        if found is None:
            raise SetupError(
                f"--roles {roles}: expected numbers and roles such as 6xmixed,1xprefill,1xdecode; "
                "roles are mixed, prefill, decode"
            )
        fleet += [cast(Role, found[2])] * int(found[1] or 1)
    return tuple(fleet)


def _machine(given: Mapping[str, Any]) -> Machine:
    """Raises SetupError."""
    try:
        return TypeAdapter(Machine).validate_python(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise SetupError(f"machine: {problems}") from None


def _profile(name: str) -> Profile:
    """A profile by its name, or else from a file. Raises SetupError."""
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.exists():
        raise SetupError(
            f"there is no profile `{name}`; known are {', '.join(PROFILES)}, and files made by `fairlead profile`"
        )
    try:
        return read_profile(path)
    except ProfileFileError as error:
        raise SetupError(str(error)) from None


def _entry(part: Kind, name: str) -> Entry:
    """A policy by its name or as `module:Class`. Raises SetupError."""
    try:
        return policy_catalog.find(part, name)
    except NoSuchPolicy as error:
        raise SetupError(str(error)) from None


def _named(part: Kind, choice: str) -> dict[str, Any]:
    """`dlpm+svf` is the policy dlpm with its setting `order` at svf. Raises SetupError."""
    name, plus, order = choice.partition("+")
    entry = _entry(part, name)
    if not plus:
        return {"name": name}
    if "order" not in {each.name for each in dataclasses.fields(entry.settings)}:
        raise SetupError(f"{part} policy `{name}` has no order of its own, so `+{order}` says nothing")
    return {"name": name, "order": order}
