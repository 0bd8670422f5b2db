"""What the configuration says of one worker: where it is, what it may be used for, and what it does not tell."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from router.config.sections import Secret, Section, Whole
from workers.fleet.worker import WorkerSpec
from workers.http.tls import TlsFiles
from workers.kv_events.sources import KvSource

Role = Literal["prefill", "decode"]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _worker_url(value: str, info: ValidationInfo) -> str:
    """Scheme, host, port and an optional path prefix, in one spelling."""
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("a URL holds no spaces or control characters")
    if not value.lower().startswith(("http://", "https://")):
        meant = "" if "://" in value else f"; did you mean http://{value}?"
        raise ValueError(f"should begin with http:// or https://{meant}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials do not belong in the URL; use `api_key`")
    if not parts.hostname or port == 0:
        raise ValueError("should name a host and a port, such as http://10.0.0.7:8000")
    if parts.query or parts.fragment:
        raise ValueError("should have neither ? nor #")
    path = parts.path.rstrip("/")
    if path.endswith("/v1"):
        path = path.removesuffix("/v1").rstrip("/")
        if info.context and "notes" in info.context:
            info.context["notes"].append(f"{value}: /v1 is left out; the router adds it where it belongs")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, default) else f':{port}'}{path}"


class KvEventsConfig(Section):
    """Where one engine publishes what happens in its KV cache."""

    endpoint: str = Field(description="For instance tcp://10.0.0.7:5557, as of vLLM's --kv-events-config.")
    replay_endpoint: str | None = Field(
        default=None, description="Where it repeats what was missed; unset: what was missed is lost."
    )
    topic: str = Field(default="", description="Only messages whose topic begins like this.")

    @model_validator(mode="before")
    @classmethod
    def _bare_endpoint(cls, value: Any) -> Any:
        return {"endpoint": value} if isinstance(value, str) else value

    @field_validator("endpoint", "replay_endpoint")
    @classmethod
    def _can_be_connected_to(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            KvSource(endpoint)  # its ValueError says what is wrong
        return endpoint

    def source(self) -> KvSource:
        """The same as the fleet knows it."""
        return KvSource(self.endpoint, self.replay_endpoint, self.topic)


def _endpoints(value: object) -> object:
    """One endpoint, or one for each engine; `off` is YAML's false."""
    if value is False or value == "off":
        return ()
    return [value] if isinstance(value, str | dict) else value


class WorkerConfig(Section):
    """One vLLM server that already runs."""

    url: Annotated[str, AfterValidator(_worker_url)] = Field(description="For instance http://10.0.0.7:8000.")
    roles: Annotated[frozenset[Role], BeforeValidator(_one_or_many)] = Field(
        default=frozenset[Role](("prefill", "decode")), min_length=1, description="What it may be used for."
    )
    model: str | None = Field(
        default=None, min_length=1, description="Base model it should serve; unset: what it says itself."
    )
    api_key: Secret | None = Field(
        default=None, description="Key that the worker asks for: itself, env:NAME or file:PATH."
    )
    tls_authorities: Path | None = Field(
        default=None, description="PEM file of the authorities that sign its certificate; unset: the system's."
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with a client certificate to show to it (mutual TLS)."
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the key of that certificate; unset: it stands in the same file."
    )
    addresses: Literal["each", "one"] = Field(
        default="each",
        description="Whether each address of its host name is a worker of its own, or all are one.",
    )
    resolves_adapters: bool = Field(
        default=False,
        description="It loads LoRA adapters when asked for them (vLLM's LoRA resolvers): pass unknown names on.",
    )
    max_num_seqs: Whole | None = Field(
        default=None, description="vLLM's --max-num-seqs: sequences at once; unset: learned."
    )
    max_num_batched_tokens: Whole | None = Field(default=None, description="vLLM's option of this name.")
    kv_tokens: Whole | None = Field(
        default=None, description="Tokens of KV cache per engine; unset: read from its metrics."
    )
    data_parallel: Whole = Field(default=1, description="Engines (data-parallel ranks) behind the URL.")

    kv_events: Annotated[tuple[KvEventsConfig, ...] | None, BeforeValidator(_endpoints)] = Field(
        default=None,
        description="Where it publishes KV events, one entry per engine; unset: where it says itself; or off.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _an_endpoint_for_each_engine(self) -> Self:
        if self.kv_events and len(self.kv_events) != self.data_parallel:
            told, engines = len(self.kv_events), self.data_parallel
            raise ValueError(f"`kv_events` has {told} of them, for {engines} engines (`data_parallel`)")
        return self

    @model_validator(mode="after")
    def _readable_certificates(self, info: ValidationInfo) -> Self:
        named = any(file is not None for file in (self.tls_authorities, self.tls_certificate, self.tls_key))
        if named and (not info.context or "env" not in info.context):
            raise ValueError("files with certificates are for the configuration; name this worker there")
        if self._tls_files() is not None and not self.url.startswith("https:"):
            raise ValueError("`tls_authorities`, `tls_certificate` and `tls_key` are for a URL with https://")
        return self

    def _tls_files(self) -> TlsFiles | None:
        """Raises ValueError for a file that cannot be used."""
        files = (self.tls_authorities, self.tls_certificate, self.tls_key)
        return TlsFiles.read(*files) if any(file is not None for file in files) else None

    def spec(self) -> WorkerSpec:
        """The same as the fleet knows it."""
        return WorkerSpec(
            url=self.url,
            roles=frozenset[str](self.roles),
            model=self.model,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            tls=self._tls_files(),
            each_address=self.addresses == "each",
            resolves_adapters=self.resolves_adapters,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_tokens=self.kv_tokens,
            data_parallel=self.data_parallel,
            kv_events=None if self.kv_events is None else tuple(each.source() for each in self.kv_events),
        )
