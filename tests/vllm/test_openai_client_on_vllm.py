"""What the official client gets from the gateway before a real vLLM; the cases are those of tests/end_to_end."""

import json

import httpx
import pytest
from gateway_under_test import in_thread, running_gateway
from openai_client_cases import *  # noqa: F403  # the cases, which find their `target` here
from openai_client_cases import SAME, STREAMS, Target

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def target(pair):
    """The workers have seen every prompt before, so what they say of their caches does not depend on the order."""
    for path, body in (*SAME.values(), *STREAMS.values()):
        for server in pair:
            content = json.dumps({name: value for name, value in body.items() if value is not None})
            headers = {"content-type": "application/json"}
            httpx.post(server.url + path, content=content, headers=headers, timeout=60, trust_env=False)
    with in_thread(lambda: running_gateway([server.url for server in pair])) as gateway:
        yield Target(gateway.url, "tiny", pair[0].url, is_real=True)
