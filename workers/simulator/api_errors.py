"""Errors as vLLM words them."""

from typing import Any

_SCHEMA = "Bad Request"


class ApiError(Exception):
    """An error that becomes an HTTP answer."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON body. `/v1/messages` has Anthropic's shape, but not for what does not fit its schema."""
        if path.startswith("/v1/messages") and self.kind != _SCHEMA:
            return {"type": "error", "error": {"type": self.kind, "message": self.message}}
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400 about a value."""
    return ApiError(400, message, "BadRequestError", param)


def invalid(where: str, message: str, kind: str = "value_error") -> ApiError:
    """A body that does not fit the schema; `where` is `body`, a dot, and the field or the position."""
    what = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}'}}"
    return ApiError(400, what, _SCHEMA, where)


def missing(where: str) -> ApiError:
    """A field that has to be there."""
    return invalid(where, "Field required", "missing")


def unknown_model(name: str, served: list[str]) -> ApiError:
    """The 404 for a model that is not served here."""
    valid = ", ".join(served)
    message = f"The model `{name}` does not exist. Valid aliases: {valid}."
    return ApiError(404, message, "NotFoundError", "model")


def prompt_too_long(tokens: int, limit: int) -> ApiError:
    """The 400 for a prompt beyond the model's context."""
    return bad_request(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains {tokens} input "
        "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        f"prompt. (parameter=input_tokens, value={tokens})",
        "input_tokens",
    )


def busy() -> ApiError:
    """The 503 of a full queue."""
    return ApiError(
        503,
        "The engine is currently busy and cannot accept new requests. Please try again later or on a different "
        "instance.",
        "Service Unavailable",
    )


def internal(message: str = "Internal server error") -> ApiError:
    """A 500."""
    return ApiError(500, message, "InternalServerError")


def response_not_found(response_id: str) -> ApiError:
    """The 404 for a stored response that is not here."""
    message = f"Response with id '{response_id}' not found."
    return ApiError(404, message, "invalid_request_error", "response_id")
