"""Keys and budgets at run time: over sockets, over restarts, by two gateways, and by command."""

import asyncio
import json
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from gateway_under_test import MODEL, in_thread, running_fleet, running_gateway, until
from typer.testing import CliRunner

from router.commands.cli import cli
from router.config.sections import ClientConfig
from router.control.parties.identity import Clients
from router.control.parties.issued_keys import IssuedKey
from router.control.parties.key_store import KeyStore
from router.port import Identity

KEY = "an-admin-key-of-this-test"
ADMIN = {"admin": {"key": KEY}}
OPERATOR = {"authorization": f"Bearer {KEY}"}
FILED = {"clients": [{"name": "filed", "keys": ["a-key-in-the-configuration"]}]}
FILED_KEY = "a-key-in-the-configuration"


def store(tmp_path):
    return {"store": f"sqlite:///{tmp_path / 'keys.db'}"}


def bearer(key):
    return {"authorization": f"Bearer {key}"}


async def create(gateway, name="alice", **more):
    answer = await gateway.http.post("/admin/keys", json={"name": name, **more}, headers=OPERATOR)
    assert answer.status_code == 201, answer.text
    return answer.json()["key"]


async def ask(gateway, key, *, tokens=4, text="hello", model=MODEL):
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    return await gateway.http.post("/v1/chat/completions", json=body, headers=bearer(key))


async def usage(gateway, key):
    answer = await gateway.http.get("/v1/usage", headers=bearer(key))
    assert answer.status_code == 200
    return answer.json()


def tokens_of(answer):
    return answer.json()["usage"]["total_tokens"]


# -- from its making to its end


async def test_a_key_is_made_shown_once_used_rotated_and_disabled():
    async with running_fleet(1, **ADMIN, **FILED) as fleet:
        gateway = fleet.gateway
        key = await create(gateway, team="search", weight=2, tokens_per_day=100_000)
        assert (await ask(gateway, key)).status_code == 200
        listing = await gateway.http.get("/admin/keys", headers=OPERATOR)
        assert [row["name"] for row in listing.json()["keys"]] == ["alice"]
        assert key not in listing.text
        shown = (await gateway.http.get("/admin/keys/alice", headers=OPERATOR)).json()
        assert (shown["state"], shown["team"], shown["weight"]) == ("active", "search", 2)
        assert shown["day"]["tokens"] > 0
        params = {"name": "alice"}
        answer = await gateway.http.post("/admin/keys/rotate", params=params, headers=OPERATOR)
        other = answer.json()["key"]
        replaced = await ask(gateway, key)
        assert (replaced.status_code, "replaced" in replaced.text) == (401, True)
        assert (await ask(gateway, other)).status_code == 200
        await gateway.http.post("/admin/keys/disable", params=params, headers=OPERATOR)
        refused = await ask(gateway, other)
        assert (refused.status_code, "disabled" in refused.text) == (401, True)
        await gateway.http.post("/admin/keys/enable", params=params, headers=OPERATOR)
        assert (await ask(gateway, other)).status_code == 200
        assert (await ask(gateway, FILED_KEY)).status_code == 200  # beside it all the time


async def test_the_old_key_stays_good_for_as_long_as_the_operator_says():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway)
        params = {"name": "alice", "keep_old_s": 3600}
        answer = await fleet.http.post("/admin/keys/rotate", params=params, headers=OPERATOR)
        for one in (key, answer.json()["key"]):
            assert (await ask(fleet.gateway, one)).status_code == 200


async def test_a_key_ends_when_it_expires():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway, expires_in_s=3600)
        assert (await ask(fleet.gateway, key)).status_code == 200
        clients = fleet.gateway.gateway.clients
        now = clients._wall
        clients._wall = lambda: now() + 3601
        expired = await ask(fleet.gateway, key)
        assert (expired.status_code, "expired" in expired.text) == (401, True)


async def test_the_last_key_that_is_disabled_does_not_open_the_gateway():
    async with running_fleet(1, **ADMIN) as fleet:
        assert (await ask(fleet.gateway, "any")).status_code == 200  # no key is needed as long as there is none
        key = await create(fleet.gateway)
        await fleet.http.post("/admin/keys/disable", params={"name": "alice"}, headers=OPERATOR)
        for one in (key, "any"):
            assert (await ask(fleet.gateway, one)).status_code == 401


async def test_with_a_store_a_key_is_needed_from_the_start(tmp_path):
    async with running_fleet(1, **ADMIN, **store(tmp_path)) as fleet:
        assert (await ask(fleet.gateway, "any")).status_code == 401
        assert (await ask(fleet.gateway, await create(fleet.gateway))).status_code == 200


# -- what it may


async def test_a_key_uses_only_the_models_of_its_list_by_any_of_their_names():
    async with running_fleet(1, **ADMIN, models={"nick": MODEL, "other": MODEL}) as fleet:
        by_model = await create(fleet.gateway, "m", models=[MODEL])
        by_alias = await create(fleet.gateway, "a", models=["nick"])
        for key in (by_model, by_alias):
            for name in (MODEL, "nick"):
                assert (await ask(fleet.gateway, key, model=name)).status_code == 200
    async with running_fleet(1, clients=[{"name": "b", "keys": [FILED_KEY], "models": ["elsewhere"]}]) as fleet:
        refused = await ask(fleet.gateway, FILED_KEY)
        assert refused.status_code == 404
        assert "may not use" in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == "model"
        assert (await usage(fleet.gateway, FILED_KEY))["day"]["tokens"] == 0


async def test_the_list_of_models_has_those_that_the_key_may_use():
    async with running_fleet(1, **ADMIN, **FILED, models={"nick": MODEL, "away": "elsewhere"}) as fleet:
        by_alias = await create(fleet.gateway, "a", models=["nick"])
        none = await create(fleet.gateway, "n", models=["away"])
        for key, names in ((FILED_KEY, {MODEL, "nick"}), (by_alias, {MODEL, "nick"}), (none, set())):
            listing = (await fleet.http.get("/v1/models", headers=bearer(key))).json()
            assert {card["id"] for card in listing["data"]} == names
            one = await fleet.http.get(f"/v1/models/{MODEL}", headers=bearer(key))
            assert one.status_code == (200 if names else 404)
        assert (await fleet.http.get("/v1/models", headers=bearer("wrong"))).status_code == 401


async def test_a_budget_is_exact_to_the_token_and_refuses_with_the_time_until_the_next_day():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway, tokens_per_day=60)
        spent = 0
        while (answer := await ask(fleet.gateway, key)).status_code == 200:
            spent += tokens_of(answer)
            told = await usage(fleet.gateway, key)
            assert (told["day"]["tokens"], told["reserved_tokens"]) == (spent, 0)
            assert told["limits"][0] == {
                "of": "tokens-day",
                "limit": 60,
                "remaining": max(0, 60 - spent),
                "reset_s": told["limits"][0]["reset_s"],
            }
        assert answer.status_code == 429
        assert "60 tokens per day" in answer.json()["error"]["message"]
        assert 0 < int(answer.headers["retry-after"]) <= 86400
        assert answer.headers["x-ratelimit-remaining-tokens-day"] == "0"
        assert 60 <= spent < 60 + 2 * 20


async def test_many_at_once_exceed_a_budget_by_no_more_than_the_last_that_was_let_in():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway, tokens_per_day=100)
        answers = await asyncio.gather(*(ask(fleet.gateway, key, tokens=20) for _ in range(30)))
        spent = sum(tokens_of(answer) for answer in answers if answer.status_code == 200)
        each = max(tokens_of(answer) for answer in answers if answer.status_code == 200)
        assert {answer.status_code for answer in answers} == {200, 429}
        assert spent <= 100 + each
        assert (await usage(fleet.gateway, key))["day"]["tokens"] == spent


async def test_shadow_limits_count_and_refuse_nothing():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway, requests_per_minute=1, shadow=True)
        for _ in range(3):
            assert (await ask(fleet.gateway, key)).status_code == 200
        told = await usage(fleet.gateway, key)
        assert (told["shadow"], told["would_have_refused"]) == (True, 2)


async def test_a_new_day_begins_with_nothing_used_and_the_month_goes_on():
    async with running_fleet(1, **ADMIN) as fleet:
        key = await create(fleet.gateway, tokens_per_day=10, tokens_per_month=10**6)
        today = fleet.gateway.gateway.clients.quota.today
        noon = 1_767_960_000.0  # 2026-01-09, 12:00 UTC
        today._wall, today._ends = (lambda: noon), 0.0
        assert (await ask(fleet.gateway, key)).status_code == 200
        assert (await ask(fleet.gateway, key)).status_code == 429
        today._wall = lambda: noon + 86400
        assert (await ask(fleet.gateway, key)).status_code == 200
        told = await usage(fleet.gateway, key)
        assert told["day"]["date"] == "2026-01-10"
        assert told["month"]["tokens"] == 2 * told["day"]["tokens"]


async def test_answers_say_how_the_limits_stand_and_only_where_there_are_any():
    async with running_fleet(1, **ADMIN, **FILED) as fleet:
        key = await create(fleet.gateway, requests_per_minute=60, tokens_per_minute=6000, tokens_per_month=10**6)
        headers = (await ask(fleet.gateway, key)).headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("60", "59")
        assert headers["x-ratelimit-limit-tokens"] == "6000"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 6000
        assert headers["x-ratelimit-limit-tokens-month"] == "1000000"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        plain = (await ask(fleet.gateway, FILED_KEY)).headers
        assert not [name for name in plain if name.startswith("x-ratelimit")]


async def test_usage_is_told_to_its_own_key_only():
    async with running_fleet(1, **ADMIN, **FILED) as fleet:
        key = await create(fleet.gateway)
        await ask(fleet.gateway, key)
        assert (await usage(fleet.gateway, key))["client"] == "alice"
        assert (await usage(fleet.gateway, FILED_KEY))["day"]["tokens"] == 0
        for headers in ({}, bearer("wrong"), OPERATOR):
            assert (await fleet.http.get("/v1/usage", headers=headers)).status_code == 401


# -- bad input


@pytest.mark.parametrize(
    ("asked", "where", "what"),
    [
        ({"tokens_per_day": -1}, "tokens_per_day", "greater than or equal to 1"),
        ({"tokens_per_month": 0}, "tokens_per_month", "greater than or equal to 1"),
        ({"models": ["nothing-like-it"]}, "models", "`nothing-like-it`"),
        ({"weight": 0}, "weight", "greater than 0"),
        ({"expires_in_s": -5}, "expires_in_s", "greater than 0"),
        ({"name": "a b"}, "name", "letters, digits"),
        ({"name": "filed"}, "name", "the configuration has a client"),
        ({"name": "filed/x"}, "name", "the configuration has a client"),
        ({"name": "twice"}, "name", "`twice` already"),
        ({"name": "twice/below"}, "name", "`twice`"),
        ({"budget": 5}, "budget", "Extra inputs"),
    ],
)
async def test_bad_input_is_refused_with_what_and_where(asked, where, what):
    async with running_fleet(1, **ADMIN, **FILED) as fleet:
        await create(fleet.gateway, "twice")
        answer = await fleet.http.post("/admin/keys", json={"name": "new", **asked}, headers=OPERATOR)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert where in f"{error['param']} {error['message']}"
        assert what in error["message"]
        assert len((await fleet.http.get("/admin/keys", headers=OPERATOR)).json()["keys"]) == 1


async def test_a_key_that_is_not_there_is_404():
    async with running_fleet(1, **ADMIN, **FILED) as fleet:
        for method, path in (("GET", "/filed"), ("POST", "/rotate?name=x"), ("POST", "/disable?name=filed")):
            assert (await fleet.http.request(method, f"/admin/keys{path}", headers=OPERATOR)).status_code == 404


# -- the store


async def test_keys_and_what_they_have_used_outlive_the_gateway(tmp_path):
    kept = {**ADMIN, **store(tmp_path)}
    async with running_fleet(1) as fleet:
        url = fleet.workers[0].url
        async with running_gateway([url], **kept) as gateway:
            key = await create(gateway, tokens_per_month=10**6)
            spent = sum([tokens_of(await ask(gateway, key)) for _ in range(5)])
        assert key not in (tmp_path / "keys.db").read_bytes().decode("latin-1")
        assert (tmp_path / "keys.db").stat().st_mode & 0o077 == 0
        async with running_gateway([url], **kept) as gateway:
            told = await usage(gateway, key)
            assert (told["month"]["tokens"], told["day"]["requests"]) == (spent, 5)
            spent += tokens_of(await ask(gateway, key))
            assert (await usage(gateway, key))["month"]["tokens"] == spent


async def test_two_gateways_share_keys_and_budgets_and_a_revoked_key_ends_at_both(tmp_path):
    kept = {**ADMIN, **store(tmp_path)}
    async with running_fleet(1) as fleet:
        url = fleet.workers[0].url
        async with running_gateway([url], **kept) as one, running_gateway([url], **kept) as two:
            key = await create(one, tokens_per_month=10**6)
            await until(lambda: two.gateway.clients.find_issued("alice") is not None)
            answers = [await ask(gateway, key) for gateway in (one, two) * 4]
            spent = sum(map(tokens_of, answers))
            for gateway in (one, two):
                account = gateway.gateway.clients.quota.accounts()["alice"]
                await until(
                    lambda account=account: account.month_tokens == spent, lambda a=account: a.month_tokens
                )
            await two.http.post("/admin/keys/disable", params={"name": "alice"}, headers=OPERATOR)
            assert (await ask(two, key)).status_code == 401
            await until(lambda: one.gateway.clients.find_issued("alice").disabled)
            assert (await ask(one, key)).status_code == 401


async def test_a_store_that_is_lost_refuses_no_request_and_what_was_used_is_written_later(tmp_path, caplog):
    async with running_fleet(1, **ADMIN, **store(tmp_path)) as fleet:
        gateway = fleet.gateway
        key = await create(gateway, tokens_per_month=10**6)
        kept = gateway.gateway.keyring._store
        works, opened = kept._run, []

        async def broken(act):
            opened.append(act)
            raise sqlite3.OperationalError("disk I/O error")

        kept._run = broken
        spent = sum([tokens_of(await ask(gateway, key)) for _ in range(3)])
        await until(lambda: opened)
        assert "disk I/O error" in caplog.text
        refused = await gateway.http.post("/admin/keys", json={"name": "new"}, headers=OPERATOR)
        assert (refused.status_code, "nothing has been changed" in refused.text) == (503, True)
        kept._run = works
        await gateway.gateway.keyring.sync()
        rows = await kept.used(gateway.gateway.clients.quota.today.day, 0.0)
        assert [(row.account, row.tokens) for row in rows] == [("alice", spent)]


async def test_a_file_that_is_no_store_is_logged_and_does_not_open_the_gateway(tmp_path, caplog):
    (tmp_path / "keys.db").write_text("this is no database, but a text of some length" * 100)
    async with running_fleet(1, **ADMIN, **FILED, **store(tmp_path)) as fleet:
        assert (await ask(fleet.gateway, FILED_KEY)).status_code == 200
        assert (await ask(fleet.gateway, "any")).status_code == 401
        assert "cannot be used" in caplog.text


async def test_a_store_whose_folder_is_gone_fails_as_any_store_that_cannot_be_used(tmp_path):
    kept = KeyStore(tmp_path / "gone" / "keys.db")
    with pytest.raises(sqlite3.Error):
        await kept.changed_keys()
    await kept.aclose()


async def test_only_keys_that_others_have_changed_are_read_again(tmp_path):
    ours, theirs = (KeyStore(tmp_path / "keys.db") for _ in range(2))
    keys = [IssuedKey(ClientConfig(name=f"k{n}"), bytes([n]) * 32, 0.0) for n in range(3)]
    for key in keys:
        await ours.add(key)
    assert await ours.changed_keys() == []
    assert await theirs.changed_keys() == keys
    changed = replace(keys[1], disabled=True)
    await theirs.replace(changed)
    assert await ours.changed_keys() == [changed]
    await ours.add_used(
        {("a", "2026-01-31"): (5, 1), ("a", "2026-02-01"): (7, 1), ("b", "2026-02-01"): (9, 1)}, 10.0
    )
    await theirs.add_used({("a", "2026-02-02"): (11, 2), ("a", "2026-02-01"): (1, 1)}, 20.0)
    assert sorted(await ours.used("2026-02-02", 15.0)) == [("a", "2026-02-00", 8, 2), ("a", "2026-02-02", 11, 2)]
    assert ("b", "2026-02-00", 9, 1) in await ours.used("2026-02-02", 0.0)
    await ours.aclose()
    await theirs.aclose()


# -- ten thousand


async def test_of_ten_thousand_keys_each_is_found_by_one_look():
    def digest(number):
        return number.to_bytes(32, "big")

    def calls(count):
        clients = Clients(())
        clients.issue([IssuedKey(ClientConfig(name=f"k{n}"), digest(n), 0.0) for n in range(count)])
        made = []
        sys.setprofile(lambda _frame, event, _: made.append(event) if event in {"call", "c_call"} else None)
        try:
            found = clients.identify((digest(count - 1),), None, "1.2.3.4", 0.0)
        finally:
            sys.setprofile(None)
        assert isinstance(found, Identity)
        assert found.client == f"k{count - 1}"
        return len(made)

    assert calls(10_000) == calls(1)


# -- the command


@pytest.fixture(scope="module")
def fleet():
    with in_thread(lambda: running_fleet(1, **ADMIN, **FILED)) as made:
        yield made


def fairlead(fleet, *arguments):
    environment = {"FAIRLEAD_URL": fleet.gateway.url, "FAIRLEAD_ADMIN_KEY": KEY}
    return CliRunner().invoke(cli, ("keys", *arguments), env=environment)


def test_the_command_makes_lists_shows_rotates_and_disables(fleet):
    made = fairlead(fleet, "create", "bob", "--team", "x", "--tokens-per-day", "1000", "--expires", "90d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("fl-")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    url = f"{fleet.gateway.url}/v1/chat/completions"
    assert httpx.post(url, json=body, headers=bearer(key)).status_code == 200
    listing = fairlead(fleet, "list")
    assert "bob" in listing.output
    assert "tokens-day left" in listing.output
    assert "bob: active" in fairlead(fleet, "show", "bob").output
    other = fairlead(fleet, "rotate", "bob").stdout.strip()
    assert other not in {"", key}
    assert "bob: disabled" in fairlead(fleet, "disable", "bob").output
    assert httpx.post(url, json=body, headers=bearer(other)).status_code == 401
    assert "bob: active" in fairlead(fleet, "enable", "bob").output
    assert json.loads(fairlead(fleet, "list", "--json").output)["of"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "c", "--tokens-per-day", "-1"), "tokens_per_day"),
        (("create", "c", "--models", "nothing-like-it"), "nothing-like-it"),
        (("create", "filed"), "the configuration has a client"),
        (("create", "c", "--expires", "soon"), "--expires"),
        (("show", "nobody-like-this"), "nobody-like-this"),
    ],
)
def test_a_wrong_question_is_one_line_with_status_2(fleet, arguments, words):
    result = fairlead(fleet, *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert words in result.stderr


@pytest.mark.parametrize("wrong", ["postgres://x", "sqlite:///", "sqlite:////no/such/folder/keys.db"])
def test_check_config_refuses_a_store_that_cannot_be(tmp_path, wrong):
    path = Path(tmp_path) / "fairlead.yaml"
    path.write_text(f"workers: [http://10.0.0.7:8000]\nstore: {wrong}\n")
    result = CliRunner().invoke(cli, ["check-config", str(path)])
    assert result.exit_code == 2
    assert "store" in result.stderr
