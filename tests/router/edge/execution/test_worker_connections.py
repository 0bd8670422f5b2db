"""The edge's pools of connections follow control's table: origins, certificates, and how patient to be."""

import asyncio
import math
from pathlib import Path

import pytest

from router.edge.execution.worker_connections import WorkerConnections
from router.port import RouteTable, WorkerAddress
from workers.http.tls import TlsFiles

URL = "https://w:1"


class Pool:
    """Stands for the connections to one origin."""

    def __init__(self, address):
        self.address, self.silence_limit_s, self.closed = address, math.inf, False
        self.open = self.idle = 0

    async def aclose(self):
        self.closed = True


@pytest.fixture
async def connections():
    made = WorkerConnections(Pool)
    yield made
    await made.aclose()


def table(*addresses):
    return RouteTable(workers={address.id: address for address in addresses})


async def test_a_renewed_certificate_makes_new_connections_and_the_old_ones_end_with_their_requests(connections):
    before, renewed = (TlsFiles(Path("/ca.pem"), changed_ns=(number,)) for number in (1, 2))
    connections.follow(table(WorkerAddress("w", URL, tls=before)))
    old = connections.get("w").upstream
    old.open = 1
    connections.follow(table(WorkerAddress("w", URL, tls=renewed)))
    new = connections.get("w").upstream
    assert (new is old, new.address.tls) == (False, renewed)
    await asyncio.sleep(0.15)
    assert not old.closed
    old.open = 0
    await asyncio.sleep(0.15)
    assert old.closed


async def test_a_rotated_key_is_sent_at_once_over_the_same_connections(connections):
    connections.follow(table(WorkerAddress("w", URL, ((b"authorization", b"Bearer old"),))))
    upstream = connections.get("w").upstream
    connections.follow(table(WorkerAddress("w", URL, ((b"authorization", b"Bearer new"),))))
    assert connections.get("w").headers == ((b"authorization", b"Bearer new"),)
    assert connections.get("w").upstream is upstream


async def test_an_origin_is_given_up_only_when_every_engine_behind_it_is(connections):
    ranks = [
        WorkerAddress(f"w#{rank}", URL, silence_limit_s=limit_s) for rank, limit_s in ((0, 5.0), (1, math.inf))
    ]
    connections.follow(table(*ranks))
    assert connections.get("w#0").upstream is connections.get("w#1").upstream
    assert connections.get("w#0").upstream.silence_limit_s == math.inf
    connections.follow(table(ranks[0], WorkerAddress("w#1", URL, silence_limit_s=5.0)))
    assert connections.get("w#0").upstream.silence_limit_s == 5.0
