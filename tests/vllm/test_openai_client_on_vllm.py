"""What the official client gets from the gateway before a real vLLM; the cases are those of tests/end_to_end."""

import pytest
from gateway_under_test import in_thread, running_gateway
from openai_client_cases import *  # noqa: F403  # the cases, which find their `target` here
from openai_client_cases import Target, show_every_prompt

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def target(pair):
    show_every_prompt([server.url for server in pair], "tiny")
    with in_thread(lambda: running_gateway([server.url for server in pair])) as gateway:
        yield Target(gateway.url, "tiny", pair[0].url, is_real=True)
