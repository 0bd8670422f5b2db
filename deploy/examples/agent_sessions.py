"""Agents with sessions: several conversations that grow, each of a user of its own.

A conversation repeats itself with every step, so its next step is fastest on the worker that holds it. The gateway
recognises that by the beginning of the prompt. `user` names whom to be fair to. With `listen.decision_headers` the
answer says in `x-fairlead-worker` which worker ran it.

pip install openai
"""

import asyncio
import os

from openai import AsyncOpenAI

AGENTS, STEPS = 4, 3

client = AsyncOpenAI(
    base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("GATEWAY_KEY", "anything"),
)


async def work(model: str, name: str) -> None:
    """One agent: each step has all that was said before."""
    said = [{"role": "system", "content": f"You are {name}. " + "Use your tools with care. " * 50}]
    for step in range(STEPS):
        said.append({"role": "user", "content": f"Step {step}: what is next?"})
        answer = await client.chat.completions.create(model=model, messages=said, max_tokens=16, user=name)
        said.append({"role": "assistant", "content": answer.choices[0].message.content})
        cached = answer.usage.prompt_tokens_details.cached_tokens if answer.usage.prompt_tokens_details else 0
        print(f"{name} step {step}: {cached or 0} of {answer.usage.prompt_tokens} prompt tokens were cached")


async def main() -> None:
    """All agents at once."""
    model = (await client.models.list()).data[0].id
    await asyncio.gather(*(work(model, f"agent-{number}") for number in range(AGENTS)))


asyncio.run(main())
