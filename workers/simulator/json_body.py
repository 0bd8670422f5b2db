"""Bodies of the API as JSON with fields of the right types, or the error that vLLM would answer."""

from typing import Any

import orjson

from workers.simulator.api_errors import invalid

_NUMBER = (int, float)
# Field: accepted types and how pydantic would say it. A boolean is no number here.
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "model": ((str,), "Input should be a valid string"),
    "max_tokens": ((int,), "Input should be a valid integer"),
    "max_completion_tokens": ((int,), "Input should be a valid integer"),
    "max_output_tokens": ((int,), "Input should be a valid integer"),
    "min_tokens": ((int,), "Input should be a valid integer"),
    "n": ((int,), "Input should be a valid integer"),
    "priority": ((int,), "Input should be a valid integer"),
    "seed": ((int,), "Input should be a valid integer"),
    "dimensions": ((int,), "Input should be a valid integer"),
    "top_logprobs": ((int,), "Input should be a valid integer"),
    "temperature": (_NUMBER, "Input should be a valid number"),
    "top_p": (_NUMBER, "Input should be a valid number"),
    "frequency_penalty": (_NUMBER, "Input should be a valid number"),
    "presence_penalty": (_NUMBER, "Input should be a valid number"),
    "stream": ((bool,), "Input should be a valid boolean"),
    "ignore_eos": ((bool,), "Input should be a valid boolean"),
    "background": ((bool,), "Input should be a valid boolean"),
    "store": ((bool,), "Input should be a valid boolean"),
    "stop": ((str, list), "Input should be a valid string or list"),
    "stream_options": ((dict,), "Input should be a valid dictionary"),
    "tools": ((list,), "Input should be a valid list"),
    "cache_salt": ((str,), "Input should be a valid string"),
    "user": ((str,), "Input should be a valid string"),
}


def read_json(raw: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object of a request. Raises the 400s of vLLM."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise invalid("body", "Unsupported Media Type: Only application/json is allowed")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(f"body.{error.pos}", "JSON decode error", "json_invalid") from None
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid("body", message, "model_attributes_type")
    for name, (types, message) in _FIELDS.items():
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise invalid(f"body.{name}", message)
    return body
