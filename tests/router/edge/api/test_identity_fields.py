import json

import pytest

from router.edge.api.identity_fields import named

DEVICE, ACCOUNT = "8f" * 32, "6b0f7f2e-1f4b-4f7e-9a53-6a5a1d6f2a11"
SESSIONS = ["0d2a3d5e-6a53-4d6f-8d53-0f1d2c3b4a59", "b7a1c2d3-0000-4444-8888-123456789abc"]
MESSAGES = "/v1/messages"


def of(user_id, **fields):
    return named(MESSAGES, {"metadata": {"user_id": user_id}, **fields})


def spelled(session, device=DEVICE, account=ACCOUNT):
    """What coding agents send for one session, in each of their ways."""
    yield f"user_{device}_account_{account}_session_{session}"
    members = {"device_id": device, "account_uuid": account, "session_id": session}
    yield json.dumps(members)
    yield json.dumps({name: members[name] for name in sorted(members)}, separators=(",", ":"), indent=1)
    yield members


@pytest.mark.parametrize("account", [ACCOUNT, ""])
def test_every_session_of_an_agent_has_the_same_user(account):
    found = [of(user_id) for session in SESSIONS for user_id in spelled(session, account=account)]
    assert {user for user, _ in found} == {f"user_{DEVICE}_account_{account}"}
    assert {session for _, session in found} == set(SESSIONS)


def test_other_devices_and_accounts_are_other_users():
    users = {
        of(user_id).user
        for device, account in ((DEVICE, ACCOUNT), ("another", ACCOUNT), (DEVICE, "another"))
        for user_id in spelled(SESSIONS[0], device, account)
    }
    assert len(users) == 3


@pytest.mark.parametrize("user_id", ["alice", "alice_session_2", "user_alice", "user_", '{"a', "[1]", "{}x", "é"])
def test_any_other_text_is_a_user_as_it_is(user_id):
    assert of(user_id) == (user_id, None)


def test_members_that_are_not_known_are_the_user_but_for_sessions():
    assert of('{"user": "u", "session_id": "s", "session_start": "12:00", "n": 5}') == ("user=u", "s")
    assert of('{"session_id": "s"}') == (None, "s")
    assert of("{}") == (None, None)


@pytest.mark.parametrize("user_id", [None, 5, "", [], ["x"], {}, True, {"device_id": 5}])
def test_what_names_nobody_is_nobody(user_id):
    assert of(user_id) == (None, None)
    assert named(MESSAGES, {"metadata": user_id, "user": "x"}) == (None, None)


def test_a_session_of_the_body_goes_before_that_of_the_metadata():
    user_id = next(spelled(SESSIONS[0]))
    assert of(user_id, prompt_cache_key="k").session == "k"
    assert named(MESSAGES + "/count_tokens", {"metadata": {"user_id": user_id}}).user.startswith("user_8f")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"])
def test_the_fields_of_openai(path):
    assert named(path, {"user": "u", "safety_identifier": "s"}).user == "u"
    assert named(path, {"safety_identifier": "s"}).user == "s"
    assert named(path, {"user": "", "safety_identifier": "s"}).user == "s"
    assert named(path, {"user": 5, "safety_identifier": ["s"]}) == (None, None)
    assert named(path, {"prompt_cache_key": "k", "session_id": "s"}) == (None, "k")
    assert named(path, {"session_id": "s"}).session == "s"
    assert named(path, {"metadata": {"user_id": "u"}}).user is None


def test_a_very_long_text_is_not_read_as_json():
    text = json.dumps({"device_id": "x" * 10_000})
    assert of(text).user == text
