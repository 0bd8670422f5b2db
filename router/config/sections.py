"""The sections of the configuration, each a frozen model that is checked by itself.

Names carry their units. Each field's description is what `fairlead print-config` prints above it.
"""

import os
import re
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from policies.scheduler.disaggregation import Disaggregate
from router.config import api_keys as keys
from router.config.policy_choice import PlacementChoice, QueueChoice, choose
from router.heatmap.file import read_heatmap

_NAME_PART = "[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}"
_ROOT_PATH = re.compile(r"/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
CLIENT_NAME = re.compile(f"{_NAME_PART}(/{_NAME_PART})*")


def _no_truth_value(value: object) -> object:
    """YAML's `yes` is a boolean, and Python counts booleans as numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number")  # noqa: TRY004  # pydantic collects ValueErrors
    return value


def _on_or_off(value: object) -> object:
    """YAML's `on` and `off` are booleans."""
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value


def off_is_a_word(value: object) -> object:
    """YAML's `off` is a boolean."""
    return "off" if value is False else value


def _secret(value: object, info: ValidationInfo) -> str:
    return keys.resolve(value, _surroundings(info))


def _digest(value: object, info: ValidationInfo) -> str:
    key = keys.resolve_key(value, _surroundings(info))
    if len(key) < keys.LEAST_CHARACTERS and info.context and "notes" in info.context:
        owner = info.data.get("name")
        whose = f"client {owner}" if owner else "the operator"
        info.context["notes"].append(f"a key of {whose} has {len(key)} characters: {keys.TOO_SHORT}")
    return keys.hash_key(key)


def _surroundings(info: ValidationInfo) -> keys.Surroundings | None:
    """None outside of a configuration: what comes over the network names no files and no variables."""
    context = info.context
    return None if not context or "env" not in context else keys.Surroundings(context["env"], context["folder"])


Whole = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, allow_inf_nan=False)]
Delay = Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, allow_inf_nan=False)]
"""Seconds, or 0 for none."""
Port = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=65535)]
PerMinute = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, allow_inf_nan=False)]
Secret = Annotated[SecretStr, BeforeValidator(_secret)]
KeyDigest = Annotated[str, BeforeValidator(_digest)]
"""A key on the way in, its hash from then on."""
Hash = Annotated[str, BeforeValidator(keys.checked_digest)]


class Section(BaseModel):
    """One part of the configuration: unknown keys are refused, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)


class Listen(Section):
    """Where clients connect."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 or :: for all."
    )
    port: Port = Field(default=8000, description="Port to listen on; 0: a free one.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate chain; if it is set, clients connect by https."
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the private key of the certificate.")
    keep_alive_s: Seconds = Field(default=75.0, description="How long an idle client connection stays open.")
    decision_headers: bool = Field(
        default=False, description="Answers carry x-fairlead-worker, -reason and -matched-tokens."
    )
    heartbeat_s: Seconds | None = Field(
        default=None,
        description="Interval of comments on streams that wait, for proxies that cut silence; unset: none.",
    )
    root_path: str = Field(
        default="", description="Path under which a proxy in front shows the gateway, such as /llm."
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description='Origins whose pages may use the API in a browser, such as https://chat.example, or "*".',
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(),
        description="Addresses or networks of proxies whose X-Forwarded-For says which address asks; others' is "
        "not believed.",
    )
    backlog: Whole = Field(
        default=2048, description="Connections that the kernel may queue before they are accepted."
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("`tls_certificate` and `tls_key` belong together: give both or neither")
        for file in (self.tls_certificate, self.tls_key):
            if file is not None and not os.access(file, os.R_OK):
                raise ValueError(f"the file {file} does not exist or cannot be read")
        if self.tls_certificate is not None:
            try:
                # A key with a passphrase would ask for it on the terminal: it is refused.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                    self.tls_certificate, self.tls_key, password=""
                )
            except OSError as error:  # ssl.SSLError is one
                why = getattr(error, "reason", None) or error
                raise ValueError(f"{self.tls_certificate} and {self.tls_key} cannot be used: {why}") from None
        return self

    @field_validator("root_path")
    @classmethod
    def _a_path(cls, value: str) -> str:
        if value and (not _ROOT_PATH.fullmatch(value) or "//" in value):
            raise ValueError("should begin with a slash and not end with one, such as /llm")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ip_network(value, strict=False)
            except ValueError:
                raise ValueError(f"{value!r} is no address and no network, such as 10.0.0.0/8") from None
        return values

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value != "*" and not _ORIGIN.fullmatch(value):
                raise ValueError(f"{value!r} is no origin: scheme, host and port, such as https://chat.example")
        return values

    @property
    def url(self) -> str:
        """What a client on this machine may use as its base."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


class ClientConfig(Section):
    """A sender of requests, and what is due to it."""

    name: str = Field(description="Label in metrics and logs; a/b puts b under the organisation a.")
    keys: tuple[KeyDigest, ...] = Field(
        default=(), repr=False, description="API keys: in the clear, env:NAME or file:PATH; hashed when read."
    )
    key_hashes: tuple[Hash, ...] = Field(
        default=(), repr=False, description="The same keys as hashes, from `fairlead hash-key`."
    )
    weight: Weight = Field(default=1.0, description="Share of the fleet relative to other clients.")
    requests_per_minute: PerMinute | None = Field(default=None, description="Unset: unlimited.")
    tokens_per_minute: PerMinute | None = Field(default=None, description="Prompt and answer together.")
    max_concurrent: Whole | None = Field(default=None, description="Requests open at once.")
    tokens_per_day: Whole | None = Field(default=None, description="Budget per day of UTC, as above.")
    tokens_per_month: Whole | None = Field(default=None, description="Budget per month of UTC.")
    shadow: bool = Field(default=False, description="What exceeds these limits is counted, not refused.")
    models: tuple[str, ...] = Field(default=(), description="Models it may use; empty: all.")
    team: str | None = Field(
        default=None,
        pattern=CLIENT_NAME.pattern,
        description="Clients of the same team share one turn: fairness counts the team first.",
    )
    priority_limit: Annotated[int, BeforeValidator(_no_truth_value)] = Field(
        default=0,
        description="Most urgent `priority` its requests may name; lower is earlier, requests without one have 0.",
    )
    cache_group: str | None = Field(
        default=None,
        pattern=CLIENT_NAME.pattern,
        description="With separate caches (`isolation`): clients of the same group share theirs.",
    )
    trust_user: bool = Field(
        default=False,
        description="Its `user` field is the client (a front end that serves many), not a part of it.",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not CLIENT_NAME.fullmatch(value):
            raise ValueError(
                "each part between / should be letters, digits and ._@+-, at most 64, the first no sign"
            )
        return value

    @property
    def digests(self) -> tuple[str, ...]:
        """Every key, hashed."""
        return (*self.keys, *self.key_hashes)


class Isolation(Section):
    """What clients can learn of each other."""

    caches: Literal["shared", "separate"] = Field(
        default="shared",
        description="shared: equal prompts are computed once for all, and one client can tell by the time to the "
        "first token whether another has sent a text; separate: once for each client or `cache_group`.",
    )


class Limits(Section):
    """Bounds on what the gateway takes in."""

    body_bytes: Whole = Field(default=32 * 1024 * 1024, description="Largest request body.")
    held_bytes: Whole = Field(
        default=1024 * 1024 * 1024,
        description="Bytes of all waiting bodies and unread answers together; more is turned away. Once answers "
        "take a quarter of it, workers wait for clients that read slowly.",
    )
    header_bytes: Whole = Field(default=64 * 1024, description="Largest request line and headers together.")
    concurrent_requests: Whole = Field(default=10_000, description="Requests open at once; further ones get 429.")
    send_timeout_s: Seconds = Field(
        default=60.0, description="A client that reads nothing of its answer for this long is disconnected."
    )
    queue_requests: Whole = Field(default=4096, description="Requests that may wait per model.")
    queue_wait_s: Seconds = Field(
        default=600.0, description="Longest time in the queue; then the request gets 429."
    )
    drain_s: Seconds = Field(
        default=30.0, description="Time that open requests get to finish when the gateway stops."
    )
    drain_delay_s: Delay = Field(
        default=0.0,
        description="After SIGTERM, before `drain_s`: new requests are still served, and /readyz says 503.",
    )
    wrong_keys_per_minute: PerMinute | None = Field(
        default=60.0,
        description="Wrong API keys that an address may send before it has to wait; unset (null): any number.",
    )
    background_responses: Literal["held", "refused"] = Field(
        default="held",
        description="Responses with `background: true`: held (room and limits taken until they end) or refused.",
    )
    attempts: Whole = Field(default=3, description="Workers tried for one request before it fails.")
    continuations: Whole = Field(
        default=64,
        description="Streams of dead workers that may be at their prefill elsewhere at once; more wait.",
    )


class Timeouts(Section):
    """How long a worker may keep the gateway waiting."""

    connect_s: Seconds = Field(default=5.0, description="Longest time to open a connection to a worker.")
    first_byte_s: Seconds = Field(
        default=600.0, description="Longest time from the request to the first byte of a streamed answer."
    )
    whole_answer_s: Seconds = Field(
        default=3600.0, description="Longest time from the request to the end of an answer that is not streamed."
    )
    idle_s: Seconds = Field(default=120.0, description="Longest pause between two chunks of an answer.")


def _readable_heatmap(path: Path | None) -> Path | None:
    if path is not None:
        read_heatmap(path)  # its error is a ValueError that names the file and what is wrong with it
    return path


class Policies(Section):
    """Which request is next, and where it runs."""

    placement: PlacementChoice = Field(
        default_factory=lambda: choose("placement", None),
        description="Where a request runs: a name, or a mapping with `name` and that policy's settings.",
    )
    queue: QueueChoice = Field(
        default_factory=lambda: choose("queue", None),
        description="Which request is next: a name, or a mapping with `name` and that policy's settings.",
    )
    binding: Literal["late", "early"] = Field(
        default="late",
        description="late: a request waits here until a worker has room; early: its worker is chosen on arrival.",
    )
    prefill_window_s: Seconds = Field(
        default=0.2,
        description="Prefill in flight at a worker, in seconds by its profile; more if the network is slow.",
    )
    prefill_window_tokens: Whole | None = Field(
        default=None,
        description="Prefill that may be in flight at a worker, in uncached tokens; replaces `prefill_window_s`.",
    )
    kv_margin: Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, lt=1)] = Field(
        default=0.02, description="Share of a worker's KV cache that is left free, as lengths are estimates."
    )
    hold_ms: Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, allow_inf_nan=False)] = Field(
        default=5000.0,
        description="How long in all a request may wait for a better worker while another has room; 0: never.",
    )
    hold_gain: Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.2,
        description="Seconds of prefill that each second of such a wait saves, where a placement counts seconds.",
    )
    disaggregate: Disaggregate = Field(
        default="heatmap",
        description="Use pairs of a prefill and a decode worker: as the heatmap says; printed, as it was measured "
        "and for the whole prompt, whatever is cached or owed; always; never (no roles).",
    )
    heatmap: Annotated[Path | None, AfterValidator(_readable_heatmap)] = Field(
        default=None, description="Heatmap file from `fairlead heatmap measure`; unset: the one that is shipped."
    )


class Health(Section):
    """How workers are watched."""

    probe_every_s: Seconds = Field(default=2.0, description="Interval between two health checks of one worker.")
    probe_timeout_s: Seconds = Field(default=2.0, description="Time after which a health check counts as failed.")
    scrape_every_s: Seconds = Field(
        default=5.0, description="Interval between two readings of a worker's metrics."
    )
    stale_after_s: Seconds = Field(default=15.0, description="Age from which on a reading of metrics is ignored.")
    kv_events: Annotated[Literal["auto", "off"], BeforeValidator(_on_or_off)] = Field(
        default="auto",
        description="auto: listen to workers that publish KV events, so that their caches are known; or off.",
    )

    @model_validator(mode="after")
    def _readings_live_long_enough(self) -> Self:
        if self.stale_after_s <= self.scrape_every_s:
            raise ValueError("`stale_after_s` should be greater than `scrape_every_s`, or no reading is ever used")
        return self


class Admin(Section):
    """Add, drain and remove workers while the gateway runs."""

    key: KeyDigest | None = Field(default=None, repr=False, description="In the clear, env:NAME or file:PATH.")
    key_hash: Hash | None = Field(
        default=None, repr=False, description="The key as a hash, from `fairlead hash-key`."
    )
    port: Port | None = Field(
        default=None, description="A listener of its own; unset: below /admin on the main one."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address of the separate listener.")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.key is None) == (self.key_hash is None):
            raise ValueError("needs `key` or `key_hash` (one of them): the admin API is never open")
        return self

    @property
    def digest(self) -> str:
        """The key, hashed."""
        return self.key or self.key_hash or ""


class Status(Section):
    """Who sees the pages that name workers and clients: /metrics, /ready's reasons and /version's workers."""

    access: Literal["auto", "open", "key"] = Field(
        default="auto",
        description="open: all; key: only with the key below or the admin's; auto: key if clients have keys.",
    )
    key: KeyDigest | None = Field(default=None, repr=False, description="In the clear, env:NAME or file:PATH.")
    key_hash: Hash | None = Field(
        default=None, repr=False, description="The key as a hash, from `fairlead hash-key`."
    )
    port: Port | None = Field(
        default=None,
        description="Port of a separate listener for these pages, without a key; unset: the main listener only.",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address of the separate listener.")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key is not None and self.key_hash is not None:
            raise ValueError("`key` and `key_hash` are the same thing: give one of them")
        return self

    @property
    def digest(self) -> str | None:
        """The key, hashed."""
        return self.key or self.key_hash


class Log(Section):
    """What is written to standard error."""

    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: text on a terminal, else json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is written."
    )
    prefixes: bool = Field(
        default=True,
        description="Whether request lines carry hashes of the prompt's blocks, for replay in the lab.",
    )
    prompts: bool = Field(default=False, description="Whether request lines carry the prompt's text.")
    sample: Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, le=1)] = Field(
        default=1.0,
        description="Share of the request lines that are written; those of slow and failed requests always are.",
    )
    slow_s: Seconds = Field(default=10.0, description="From how long on a request counts as slow.")
    addresses: bool = Field(
        default=False,
        description="Whether request lines carry the client's address (see `listen.trusted_proxies`).",
    )


class Metrics(Section):
    """What /metrics shows."""

    max_clients: Whole = Field(
        default=100,
        description="Labels for clients that are not configured (`user`); later ones are counted as `other`.",
    )
