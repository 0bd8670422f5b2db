"""The client's address behind a proxy: in the log where that is asked for, and for those that guess keys."""

from gateway_under_test import MODEL, running_fleet

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BEHIND = {"listen": {"trusted_proxies": ["127.0.0.1"]}}


async def ask(fleet, forwarded, key="wrong"):
    headers = {"x-forwarded-for": forwarded, "authorization": f"Bearer {key}"}
    return await fleet.http.post("/v1/chat/completions", json=BODY, headers=headers)


async def test_the_log_has_the_address_that_a_trusted_proxy_names():
    for listen, address in ((BEHIND, "203.0.113.9"), ({}, "127.0.0.1")):
        async with running_fleet(1, **listen) as fleet:
            fleet.gateway.gateway.request_log.addresses = True
            await ask(fleet, "203.0.113.9")
            assert fleet.gateway.lines()[-1]["address"] == address


async def test_the_log_has_no_address_unless_it_is_asked_for():
    async with running_fleet(1, **BEHIND) as fleet:
        await ask(fleet, "203.0.113.9")
        assert "address" not in fleet.gateway.lines()[-1]


async def test_behind_a_trusted_proxy_one_that_guesses_keys_does_not_lock_the_others_out():
    clients = [{"name": "a", "keys": ["a-key-of-this-test-here"]}]
    limits = {"wrong_keys_per_minute": 2}
    async with running_fleet(1, clients=clients, limits=limits, **BEHIND) as fleet:
        statuses = [(await ask(fleet, "203.0.113.9")).status_code for _ in range(4)]
        assert statuses == [401, 401, 429, 429]
        assert (await ask(fleet, "198.51.100.1")).status_code == 401
        assert (await ask(fleet, "198.51.100.1", "a-key-of-this-test-here")).status_code == 200
