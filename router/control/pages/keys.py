"""API keys at run time: create, list, rotate, disable, and see what each has used."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from pydantic import Field, ValidationError

from router.config.sections import CLIENT_NAME, ClientConfig, PerMinute, Seconds, Section, Weight, Whole
from router.control.pages.json_page import json_page
from router.control.parties.identity import Clients
from router.control.parties.issued_keys import IssuedKey
from router.control.parties.keyring import Keyring
from router.control.pools import Pools
from router.control.refused import Refused
from router.port import Reject, RejectKind, shown

_MOST_LISTED = 10_000
_LONGEST_S = 10 * 365 * 86400.0


class KeyRequest(Section):
    """A key to be made: the settings of a client, and how long the key is good for."""

    name: str = Field(description="Label in metrics and logs; no other client may have it.", max_length=256)
    team: str | None = Field(
        default=None, pattern=CLIENT_NAME.pattern, description="Keys of the same team share one turn."
    )
    weight: Weight = Field(default=1.0, description="Share of the fleet relative to others of its team.")
    requests_per_minute: PerMinute | None = Field(default=None, description="Unset: unlimited.")
    tokens_per_minute: PerMinute | None = Field(default=None, description="Prompt and answer together.")
    max_concurrent: Whole | None = Field(default=None, description="Requests open at once.")
    tokens_per_day: Whole | None = Field(default=None, description="Budget per day of UTC.")
    tokens_per_month: Whole | None = Field(default=None, description="Budget per month of UTC.")
    shadow: bool = Field(default=False, description="What exceeds these limits is counted, not refused.")
    models: tuple[Annotated[str, Field(max_length=256)], ...] = Field(
        default=(), max_length=1000, description="Models it may use; empty: all."
    )
    expires_in_s: Annotated[Seconds, Field(le=_LONGEST_S)] | None = Field(
        default=None, description="From now; unset: never."
    )


class KeyPages:
    """The pages about keys. `clock` is the loop's."""

    def __init__(
        self,
        keyring: Keyring,
        clients: Clients,
        pools: Pools,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._clients = clients
        self._pools = pools
        self._clock = clock
        self._wall = wall

    def add_to(self, app: FastAPI) -> None:
        """Add the pages. A key is told by the answer that makes it, and by no other."""

        @app.get("/keys", summary="All keys made at run time, with what they have used")
        async def listed(limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 1000) -> Response:
            keys = self._clients.issued()
            return json_page({"keys": [self._row(key) for key in keys[:limit]], "of": len(keys)})

        @app.post("/keys", status_code=201, summary="Make a key; it is shown this once")
        async def create(asked: KeyRequest) -> dict[str, Any]:
            self._check_models(asked.models)
            expires = None if asked.expires_in_s is None else self._wall() + asked.expires_in_s
            key, issued = await self._keyring.create(_client(asked), expires)
            return {"key": key, **self._row(issued), "kept": self._keyring.kept}

        @app.get("/keys/{name:path}", summary="One key, with what it has used")
        async def show(name: str) -> Response:
            return json_page(self._row(self._keyring.find(name)))

        @app.post("/keys/rotate", summary="Another key for the same client; it is shown this once")
        async def rotate(
            name: str, keep_old_s: Annotated[float, Query(ge=0, le=30 * 86400, allow_inf_nan=False)] = 0.0
        ) -> dict[str, Any]:
            key, issued = await self._keyring.rotate(name, keep_old_s=keep_old_s)
            return {"key": key, **self._row(issued)}

        @app.post("/keys/disable", summary="Refuse a key from now on")
        async def disable(name: str) -> dict[str, Any]:
            return self._row(await self._keyring.disable(name, disabled=True))

        @app.post("/keys/enable", summary="Take a disabled key again")
        async def enable(name: str) -> dict[str, Any]:
            return self._row(await self._keyring.disable(name, disabled=False))

    def _row(self, issued: IssuedKey) -> dict[str, Any]:
        client = issued.client
        limits = self._clients.limits(client.name)
        return {
            "name": client.name,
            "state": issued.state(self._wall()),
            "team": client.team,
            "weight": client.weight,
            "models": list(client.models) or None,
            "created": _date(issued.created_at),
            "expires": None if issued.expires_at is None else _date(issued.expires_at),
            "hash": issued.digest.hex()[:12],
            **self._clients.quota.usage(client.name, limits, self._clock()),
        }

    def _check_models(self, models: tuple[str, ...]) -> None:
        """Raises Refused for a model that no worker serves or is to serve."""
        table = self._pools.routes()
        known = table.names.keys() | table.expected | self._pools.aliases.keys()
        unknown = [model for model in models if model not in known]
        if unknown:
            message = f"No worker serves {_listed(unknown)}; there are: {_listed(sorted(known)) or 'none yet'}."
            raise Refused(Reject(RejectKind.BAD_REQUEST, message, param="models"))


def _client(asked: KeyRequest) -> ClientConfig:
    """The settings as a client has them. Raises Refused for a name that none can have."""
    try:
        return ClientConfig(**asked.model_dump(exclude={"expires_in_s"}))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Refused(Reject(RejectKind.BAD_REQUEST, problems, param="name")) from None


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{shown(name, 80)}`" for name in names[:20])


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
