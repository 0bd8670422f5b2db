"""The Anthropic client: messages whole and as a stream, answered by a model of your own.

pip install anthropic
"""

import os

import httpx
from anthropic import Anthropic

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
key = os.environ.get("GATEWAY_KEY", "anything")
model = httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).json()["data"][0]["id"]
client = Anthropic(base_url=url, api_key=key)

message = client.messages.create(
    model=model, max_tokens=32, messages=[{"role": "user", "content": "What is a fairlead?"}]
)
print(message.content[0].text)

with client.messages.stream(
    model=model, max_tokens=32, messages=[{"role": "user", "content": "Count to ten."}]
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
