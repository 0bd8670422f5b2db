"""LangChain: a chat model, a stream and a batch.

pip install langchain-openai
"""

import os

import httpx
from langchain_openai import ChatOpenAI

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
key = os.environ.get("GATEWAY_KEY", "anything")
model = httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).json()["data"][0]["id"]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=32)

print(chat.invoke("What is a fairlead?").content)
print("".join(part.content for part in chat.stream("Count to ten.")))
print(len(chat.batch(["One.", "Two.", "Three."])), "answers")
