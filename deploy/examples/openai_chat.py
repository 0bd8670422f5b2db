"""The OpenAI client: a chat, a stream, and what the gateway decided.

pip install openai
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("GATEWAY_KEY", "anything"),  # where clients have no keys, any will do
)
model = client.models.list().data[0].id

answer = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is a fairlead?"}], max_tokens=32
)
print(answer.choices[0].message.content)

stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Count to ten."}], max_tokens=32, stream=True
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
