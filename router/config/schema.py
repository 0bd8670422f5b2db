"""What an operator may say, as one frozen model, checked once at the start.

`sections` has its parts, `config_sources` reads it from file, environment and command line.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from router.config import sources as config_sources
from router.config.sections import (
    Admin,
    ClientConfig,
    Health,
    Isolation,
    Limits,
    Listen,
    Log,
    Metrics,
    Policies,
    Section,
    Status,
    Timeouts,
    off_is_a_word,
)
from router.config.sources import SeveralProblems
from router.config.worker import WorkerConfig
from router.config.yaml_lines import At
from router.port import ContinuationMode
from router.tokenization.settings import TokenizationSettings

T = TypeVar("T")


class Config(Section):
    """The whole configuration. A file that holds nothing but `workers` is complete."""

    listen: Listen = Field(default=Listen(), description="Where clients connect.")
    workers: tuple[WorkerConfig, ...] = Field(default=(), description="vLLM servers that already run.")
    clients: tuple[ClientConfig, ...] = Field(
        default=(),
        description="Clients, their keys and limits. Without keys it is open, and `user` names the client.",
    )
    isolation: Isolation = Field(default=Isolation(), description="What clients can learn of each other.")
    models: dict[str, str] = Field(default={}, description="Other names for models: `alias: model`.")
    limits: Limits = Field(default=Limits(), description="Bounds on what the gateway accepts.")
    continuation: Annotated[ContinuationMode, BeforeValidator(off_is_a_word)] = Field(
        default="off",
        description="Whether streams go on at another worker when theirs dies: exact (where the answer is one "
        "that the dead worker could have given as well), best_effort (also with a seed or penalties), or off.",
    )
    timeouts: Timeouts = Field(default=Timeouts(), description="How long the gateway waits for a worker.")
    policies: Policies = Field(default_factory=Policies, description="Which request is next, and where it runs.")
    tokenization: TokenizationSettings = Field(
        default=TokenizationSettings(), description="Whether prompts are known by their token ids."
    )
    health: Health = Field(default=Health(), description="How workers are watched.")
    admin: Admin | None = Field(default=None, description="Change the fleet while the gateway runs; unset: off.")
    status: Status = Field(
        default=Status(), description="Who sees /metrics, and what /ready and /version say of workers."
    )
    store: str = Field(
        default="memory",
        description="Where keys made at run time and used budgets are kept: memory, or sqlite:///PATH. With a "
        "file a key is needed from the start; gateways on one machine may share it.",
    )
    log: Log = Field(default=Log(), description="What is written to standard error.")
    metrics: Metrics = Field(default=Metrics(), description="What /metrics shows.")

    _notes: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        env: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read file, environment and command line, in rising order. Raises ConfigError with every problem."""
        env = os.environ if env is None else env
        config, notes = config_sources.load(cls, path, env, overrides or {})
        config._notes = tuple(notes)  # noqa: SLF001  # its own
        return config

    @property
    def notes(self) -> tuple[str, ...]:
        """What was corrected while reading, for the file's author."""
        return self._notes

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        """A section whose lines are all commented out is null in YAML."""
        if not isinstance(value, dict):
            return value
        return {key: content for key, content in value.items() if content is not None}

    @field_validator("workers")
    @classmethod
    def _no_worker_twice(cls, workers: tuple[WorkerConfig, ...]) -> tuple[WorkerConfig, ...]:
        problems: list[tuple[At, str]] = []
        first: dict[str, int] = {}
        for index, worker in enumerate(workers):
            if worker.url in first:
                problems.append(((index, "url"), f"the same server as workers[{first[worker.url]}]"))
            first.setdefault(worker.url, index)
        return _unless(problems, workers)

    @field_validator("clients")
    @classmethod
    def _no_client_mistaken(cls, clients: tuple[ClientConfig, ...]) -> tuple[ClientConfig, ...]:
        """Two clients must not be taken for one another, by name, by key or by a path below a name."""
        problems: list[tuple[At, str]] = []
        names: dict[str, int] = {}
        owners: dict[str, int] = {}
        for index, client in enumerate(clients):
            if client.name in names:
                problems.append(((index, "name"), f"the same name as clients[{names[client.name]}]"))
            names.setdefault(client.name, index)
            for which, digests in (("keys", client.keys), ("key_hashes", client.key_hashes)):
                for place, digest in enumerate(digests):
                    if digest in owners:
                        owner = f"clients[{owners[digest]}]"
                        problems.append(((index, which, place), f"the same key as one of {owner}"))
                    owners.setdefault(digest, index)
        for name, index in names.items():
            parts = name.split("/")
            for above in ("/".join(parts[:length]) for length in range(1, len(parts))):
                if above in names:
                    message = f"lies below the client `{above}`, whose users would be taken for it"
                    problems.append(((index, "name"), message))
        return _unless(problems, clients)

    @field_validator("store")
    @classmethod
    def _a_store(cls, store: str) -> str:
        if store == "memory":
            return store
        path = store.removeprefix("sqlite:///")
        if path == store or not path:
            raise ValueError("should be `memory` or `sqlite:///PATH`")
        if not Path(path).parent.is_dir():
            raise ValueError(f"the folder {Path(path).parent} does not exist")
        return store

    @property
    def store_path(self) -> Path | None:
        """The file of the store; None: memory."""
        return None if self.store == "memory" else Path(self.store.removeprefix("sqlite:///"))

    @field_validator("models")
    @classmethod
    def _aliases_of_models(cls, models: dict[str, str]) -> dict[str, str]:
        problems: list[tuple[At, str]] = []
        for alias, target in models.items():
            if not alias or not target:
                problems.append(((alias,), "both names have to be there"))
            elif target == alias:
                problems.append(((alias,), "an alias of itself"))
            elif target in models:
                problems.append(((alias,), f"an alias of the alias `{target}`; name the model itself"))
        return _unless(problems, models)


def _unless(problems: list[tuple[At, str]], value: T) -> T:
    if problems:
        raise SeveralProblems(problems)
    return value
