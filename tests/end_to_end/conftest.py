"""Real gateways and simulated workers over real sockets."""

import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

# Test folders are no packages; what several files here share is found by its name.
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("gateway_under_test", "openai_client_cases", "tests.end_to_end.streams")

from gateway_under_test import MODEL, in_thread, running_fleet  # noqa: E402
from openai_client_cases import Target, show_every_prompt  # noqa: E402


@pytest.fixture(scope="session")
def shared_fleet():
    """Two workers behind a gateway, in a thread of their own, for tests that only ask."""
    with in_thread(lambda: running_fleet(2, {"max_model_len": 2048})) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def target(shared_fleet):
    show_every_prompt([worker.url for worker in shared_fleet.workers], MODEL)
    return Target(shared_fleet.gateway.url, MODEL, shared_fleet.workers[0].url, is_real=False)


@pytest.fixture(scope="session")
def small_fleet():
    """One worker behind a gateway with small limits, in a thread of its own."""
    limits = {"body_bytes": 1_000_000, "header_bytes": 16_384}
    with in_thread(lambda: running_fleet(1, {"max_model_len": 2048}, limits=limits)) as fleet:
        yield fleet


@pytest.fixture
async def unhurt(small_fleet):
    """The small fleet for one test, which ends with a good request answered and nothing held."""
    async with httpx.AsyncClient(base_url=small_fleet.gateway.url, timeout=20, verify=False) as http:
        yield replace(small_fleet, gateway=replace(small_fleet.gateway, http=http))
        answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 200
        await small_fleet.at_rest()
        assert small_fleet.gateway.series("fairlead_open_requests") == [({}, 0)]


@pytest.fixture
async def fleet():
    """Two workers behind a gateway, for one test."""
    async with running_fleet(2) as both:
        yield both
