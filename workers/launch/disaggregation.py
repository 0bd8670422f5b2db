"""Prefill and decode workers: how many of each, and what makes a vLLM one of them.

Both get vLLM's NIXL connector, each with a port of its own on which the others reach it. A prefill worker hands
the KV of a prompt over, a decode worker fetches it, and computes what cannot be fetched: a prefill worker that has
died costs time, not answers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from workers.launch.errors import BadPairs

FLAG = "--kv-transfer-config"
_SIDE_PORT = "VLLM_NIXL_SIDE_CHANNEL_PORT"
_CONFIGS: Mapping[str, Mapping[str, str]] = {
    "prefill": {"kv_connector": "NixlConnector", "kv_role": "kv_producer"},
    "decode": {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "recompute",
    },
}


@dataclass(frozen=True, slots=True)
class Split:
    """How many devices are for workers of each kind; both zero: every worker does both."""

    prefill: int = 0
    decode: int = 0

    @property
    def devices(self) -> int:
        return self.prefill + self.decode

    def check(self, available: int) -> None:
        """Raises BadPairs if there are not devices for both, or not as many."""
        if min(self.prefill, self.decode) < 0 or bool(self.prefill) != bool(self.decode):
            raise BadPairs(
                f"--prefill {self.prefill} --decode {self.decode}: the two belong together, at least one for each"
            )
        if self.devices > available:
            raise BadPairs(
                f"--prefill {self.prefill} --decode {self.decode} needs {self.devices} GPUs; there are {available}"
            )


def flags(role: str | None) -> tuple[tuple[str, str], ...]:
    """What vLLM's command gets for its role; None: it does both."""
    return () if role is None else ((FLAG, json.dumps(_CONFIGS[role])),)


def environment(side_port: int | None) -> dict[str, str]:
    """`side_port`: where the others ask for what this worker has computed."""
    return {} if side_port is None else {_SIDE_PORT: str(side_port)}
