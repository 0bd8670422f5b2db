"""Who a body says it is for, and which session it belongs to: the stable part is the user, the rest the session.

- `user` of OpenAI's APIs, or `safety_identifier`, which replaces it; `prompt_cache_key` or `session_id` names a
  session.
- `metadata.user_id` of Anthropic's API. Claude Code and agents like it put a new session into it each time, so
  that the whole of it would be a new client each time. Two spellings are known, and mean the same here:

      user_<device>_account_<account>_session_<session>
      {"device_id": "<device>", "account_uuid": "<account>", "session_id": "<session>"}
"""

from typing import Any, NamedTuple

import orjson

_LONGEST_JSON = 8192
_AGENT = "user_"
_SESSION = "_session_"


class Named(NamedTuple):
    """User and session; None: not named."""

    user: str | None
    session: str | None


def named(path: str, fields: dict[str, Any]) -> Named:
    """What the body of a request to this path names."""
    session = _text(fields.get("prompt_cache_key")) or _text(fields.get("session_id"))
    if path.startswith("/v1/messages"):
        metadata = fields.get("metadata")
        user, own = _of_agent(metadata.get("user_id")) if isinstance(metadata, dict) else (None, None)
        return Named(user, session or own)
    return Named(_text(fields.get("user")) or _text(fields.get("safety_identifier")), session)


def named_anywhere(fields: dict[str, Any]) -> Named:
    """The same for a body of which it is not known whose API it follows."""
    found = named("", fields)
    return named("/v1/messages", fields) if found.user is None else found


def _of_agent(user_id: Any) -> Named:
    """Both parts of `metadata.user_id`; what has no such parts is a user."""
    if isinstance(user_id, str) and user_id.startswith(_AGENT):
        user, _, session = user_id.rpartition(_SESSION)
        return Named(user, session or None) if user else Named(user_id, None)
    members = _members(user_id)
    if members is None:
        return Named(_text(user_id), None)
    own = members.get("session_id")
    device, account = members.get("device_id"), members.get("account_uuid")
    if device or account:
        return Named(f"{_AGENT}{device or ''}_account_{account or ''}", own)
    rest = " ".join(f"{name}={members[name]}" for name in sorted(members) if "session" not in name)
    return Named(rest or None, own)


def _members(user_id: Any) -> dict[str, str] | None:
    """The texts of an object, or of the JSON of one; None for anything else."""
    if isinstance(user_id, str) and user_id.lstrip().startswith("{") and len(user_id) <= _LONGEST_JSON:
        try:
            user_id = orjson.loads(user_id)
        except orjson.JSONDecodeError:
            return None
    if not isinstance(user_id, dict):
        return None
    return {name: value for name, value in user_id.items() if isinstance(value, str) and value}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
