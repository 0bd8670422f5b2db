"""The environment itself: both models serve, and the larger one makes sense."""

import openai
import pytest

pytestmark = pytest.mark.timeout(400)


def test_smollm2_answers_a_question_in_a_stream(vllm_server):
    server = vllm_server("smollm2")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
            stream=True,
            temperature=0,
            max_tokens=32,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "The capital of France is Paris."


def test_a_repeated_prompt_hits_the_prefix_cache_of_tiny_and_the_usage_says_so(vllm_server):
    server = vllm_server("tiny")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
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


def test_the_same_call_gives_the_same_server_and_a_fresh_one_on_demand(vllm_server):
    shared = vllm_server("tiny")
    assert vllm_server("tiny") is shared
    fresh = vllm_server("tiny", fresh=True)
    assert fresh.url != shared.url
    fresh.stop()
    assert fresh.process.poll() is not None
