"""vLLM's connectors on one simulated worker: what it hands out with a prefill, and fetches for a decode.

The protocol is vLLM's (`kv_transfer_params`): a prefill that was asked for with `do_remote_decode` answers with
parameters that only another worker understands; a decode that brings them, marked `do_remote_prefill`,
fetches the KV from the worker that they name and tells it when it has. A worker that turns such a request down, or
whose client leaves, tells as well. As on vLLM a parameter set is good for one fetch: one that brings it a second
time, or after its lease, gets an answer that looks right and is not. Here that is also counted, see `Counts`.

Under the protocol, where NIXL moves memory, two small HTTP calls go between the workers. What does not fit goes
wrong as it does there: a side that pushes and one that pulls refuse each other (the decode fails, or is computed
anew), and KV blocks of another size are fetched and misread without a word.

`ExampleConnector`, which leaves KV in files, is accepted and has no parameters for anybody, as on vLLM; the files
are not imitated, so a worker with it computes every prompt.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal, get_args

import orjson

from workers.simulator.engine import Engine
from workers.simulator.real_time import LiveEngine
from workers.simulator.sequences import EngineSequence, Part

_CALL_WITHIN_S = 5.0
_REMOTE = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")

Connector = Literal["NixlConnector", "NixlPullConnector", "NixlPushConnector", "ExampleConnector"]
Mode = Literal["pull", "push"]
Role = Literal["kv_producer", "kv_consumer", "kv_both"]
LoadFailure = Literal["fail", "recompute"]


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """What `--kv-transfer-config` says."""

    connector: Connector = "NixlConnector"
    role: Role = "kv_both"
    """As on vLLM only a word: what a worker does of a request is said by the request."""
    load_failure: LoadFailure = "fail"
    """What becomes of a decode whose prefill worker cannot be reached."""
    lease_s: float = 30.0

    @property
    def mode(self) -> Mode | None:
        """How NIXL moves KV; None: this is another connector."""
        if self.connector == "ExampleConnector":
            return None
        return "push" if self.connector == "NixlPushConnector" else "pull"

    @classmethod
    def from_option(cls, text: str) -> "KvTransfer":
        """From vLLM's JSON. Raises ValueError that says what is wrong."""
        try:
            given = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"--kv-transfer-config is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ValueError("--kv-transfer-config is not a JSON object")  # noqa: TRY004  # a wrong option
        extra = given.get("kv_connector_extra_config") or {}
        for name, kind in (
            ("kv_connector", Connector),
            ("kv_role", Role),
            ("kv_load_failure_policy", LoadFailure),
        ):
            if name in given and given[name] not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"--kv-transfer-config: {name} is {given[name]!r}, not one of {known}")
        default = cls()
        return cls(
            connector=given.get("kv_connector", default.connector),
            role=given.get("kv_role", default.role),
            load_failure=given.get("kv_load_failure_policy", default.load_failure),
            lease_s=float(extra.get("kv_lease_duration", default.lease_s)),
        )


class Fetch(Enum):
    """What a decode worker finds on the other side."""

    HELD = "held"
    GONE = "gone"
    """Fetched before, or its lease has ended: what is read is another's. Or its blocks have another size."""
    UNREACHABLE = "unreachable"
    """There is no partner, or none that would talk to this worker."""


@dataclass(slots=True)
class Counts:
    """Totals since the start. Those of the first group count what was handed out, the others what was fetched."""

    handed_out: int = 0
    claimed: int = 0
    released: int = 0
    refused: int = 0
    """Claims of something that is not held (any more)."""
    fetched: int = 0
    spoiled: int = 0
    """Answers from KV that was gone: on a real worker it would not be noticed."""
    unreachable: int = 0
    misfits: int = 0
    """Fetches that the two sides could not agree upon: one pushes, one pulls."""


class Handover:
    """The connector of one worker. Without a configuration it does nothing, as vLLM without one."""

    def __init__(self, live: LiveEngine, config: KvTransfer | None) -> None:
        self.config = config
        self.counts = Counts()
        self.engine_id = uuid.uuid4().hex
        self.address = ("127.0.0.1", 0)
        """Where this worker is reached by others; set once it listens."""
        self._live = live
        self._claimed: set[str] = set()
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def _mode(self) -> Mode | None:
        return self.config.mode if self.config is not None else None

    def part(self, params: Any) -> Part:
        """What a request with these parameters wants of this worker."""
        if self._mode is None or not isinstance(params, dict):
            return "whole"
        if params.get("do_remote_decode"):
            return "prefill"
        fetches = params.get("do_remote_prefill") and all(params.get(name) for name in _REMOTE)
        return "decode" if fetches else "whole"

    # -- the side that has computed a prompt

    def hand_out(self, sequence: EngineSequence) -> dict[str, Any] | None:
        """The parameters for the worker that goes on with this prefill."""
        if self._mode is None or sequence.request.part != "prefill":
            return None
        self.counts.handed_out += 1
        engine: Engine = self._live.engine
        blocks = -(-sequence.prompt_tokens // engine.config.block_size)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, blocks + 1))],
            "remote_engine_id": self.engine_id,
            "remote_request_id": sequence.request.id,
            "remote_host": self.address[0],
            "remote_port": self.address[1],
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": sequence.prompt_tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": self._mode,
            "remote_prefill_cached_tokens": sequence.cached or 0,
        }

    def answer(self, call: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What another worker asks: to `claim` a prefill for a fetch, or to `release` it after one."""
        if body.get("mode") != self._mode:
            return {"misfit": True}
        request = str(body.get("request"))
        ours = body.get("engine") == self.engine_id
        if call == "release":
            self._claimed.discard(request)
            self.counts.released += int(ours and self._live.fetched(request))
            return {}
        held = ours and request not in self._claimed and self._live.engine.renew(request, self._live.now())
        if held:
            self._claimed.add(request)
        self.counts.claimed += int(held)
        self.counts.refused += int(not held)
        return {"held": held, "block_size": self._live.engine.config.block_size}

    # -- the side that goes on with it

    async def claim(self, params: Mapping[str, Any]) -> Fetch:
        """Whether the prompt's KV can be fetched; held for this worker until `release`."""
        found = await self._call("claim", params)
        if found is None:
            self.counts.unreachable += 1
            return Fetch.UNREACHABLE
        if found.get("misfit"):
            self.counts.misfits += 1
            return Fetch.UNREACHABLE
        if not found.get("held") or found.get("block_size") != self._live.engine.config.block_size:
            self.counts.spoiled += 1
            return Fetch.GONE
        self.counts.fetched += 1
        return Fetch.HELD

    def release(self, params: Mapping[str, Any]) -> None:
        """Tell the other side that its KV is not needed any more; nothing waits for that."""
        task = asyncio.get_running_loop().create_task(self._call("release", params))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def turned_down(self, params: Any) -> None:
        """A request with these parameters does not reach the engine."""
        if self.part(params) == "decode":
            self.release(params)

    def state(self) -> dict[str, int]:
        """What is counted, and how many prefills wait to be fetched."""
        engine = self._live.engine
        return {**asdict(self.counts), "held": engine.held, "expired": engine.leases_expired}

    async def aclose(self) -> None:
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _call(self, call: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """One call to the worker that the parameters name; None where it does not answer."""
        asked = {"request": params["remote_request_id"], "engine": params["remote_engine_id"], "mode": self._mode}
        body = orjson.dumps(asked)
        head = f"POST /simulator/kv/{call} HTTP/1.0\r\ncontent-type: application/json\r\n"
        try:
            async with asyncio.timeout(_CALL_WITHIN_S):
                reader, writer = await asyncio.open_connection(params["remote_host"], params["remote_port"])
                try:
                    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError, TypeError, OverflowError):
            return None
        try:
            found = orjson.loads(answer.partition(b"\r\n\r\n")[2])
        except orjson.JSONDecodeError:
            return None
        return found if isinstance(found, dict) else None
