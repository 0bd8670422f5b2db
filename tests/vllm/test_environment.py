"""The environment itself: the tiny model serves, and its prefix cache counts."""

import openai
import pytest

pytestmark = pytest.mark.timeout(400)


def test_a_repeated_prompt_hits_the_prefix_cache_of_tiny_and_the_usage_says_so(pair):
    with openai.OpenAI(base_url=f"{pair[0].url}/v1", api_key="none") as client:
        prompt = "Who waits longest is served first, unless somebody else has had less than a fair share. " * 4
        usages = [
            client.completions.create(
                model="tiny", prompt=prompt, max_tokens=4, extra_body={"ignore_eos": True}
            ).usage
            for _ in range(2)
        ]
    assert [usage.completion_tokens for usage in usages] == [4, 4]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert cached[0] == 0
    assert cached[1] == (usages[1].prompt_tokens - 1) // 32 * 32
