import hashlib
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.api_keys import hash_key
from router.config.sections import ClientConfig
from router.control.parties.identity import ANONYMOUS, USER_LENGTH, Clients
from router.control.parties.quotas import Limits, Quotas
from router.control.parties.wrong_keys import WrongKeys
from router.control.refused import Refused
from router.port import RejectKind


def client(name, *keys, **more):
    return ClientConfig(name=name, keys=keys, **more)


def sent(*keys):
    return [hashlib.sha256(key.encode()).digest() for key in keys]


@contextmanager
def refused(kind, match=None):
    with pytest.raises(Refused, match=match) as caught:
        yield caught
    assert caught.value.reject.kind is kind


def over_quota(match=None):
    return refused(RejectKind.OVER_QUOTA, match)


def test_any_of_its_keys_names_a_client():
    clients = Clients([client("a", "ka", weight=3), client("b", "kb1", "kb2")])
    assert clients.identify(sent("ka")).client == "a"
    assert clients.identify(sent("ka")).weight == 3
    assert clients.identify(sent("kb2")).client == "b"
    assert clients.identify(sent("not-a-key", "kb1")).client == "b"


def test_a_known_key_beside_a_guess_does_not_make_guessing_free():
    clients = Clients([client("a", "ka"), client("b", "kb")], wrong_keys=WrongKeys(2))
    for number in range(2):
        assert clients.identify(sent(f"guess-{number}", "ka"), address="192.0.2.1").client == "a"
    # From now on nothing but a key that has been right there is looked at, so a right guess changes nothing.
    assert clients.identify(sent("kb", "ka"), address="192.0.2.1").client == "a"
    for guess in ("guess-0", "guess-2", "kb"):
        with over_quota("Too many wrong API keys"):
            clients.identify(sent(guess), address="192.0.2.1")
    assert clients.identify(sent("kb"), address="192.0.2.2").client == "b"


def test_a_key_that_stands_behind_a_known_one_is_no_guess():
    clients = Clients([client("a", "ka"), client("b", "kb")], wrong_keys=WrongKeys(1))
    for _ in range(5):
        assert clients.identify(sent("ka", "a-placeholder"), address="192.0.2.1").client == "a"
    assert clients.identify(sent("kb"), address="192.0.2.1").client == "b"


def test_a_hashed_key_works_like_the_key_itself():
    clients = Clients([ClientConfig(name="a", key_hashes=[hash_key("secret")])])
    assert clients.identify(sent("secret")).client == "a"


@pytest.mark.parametrize(("keys", "message"), [([], "is needed"), (["sk-wrong"], "not known")])
def test_without_a_known_key_nothing_comes_in_and_the_key_is_not_repeated(keys, message):
    clients = Clients([client("a", "ka")])
    assert clients.keys_needed
    with refused(RejectKind.UNAUTHORIZED) as caught:
        clients.identify(sent(*keys), "a")
    assert message in caught.value.reject.message
    assert "sk-" not in caught.value.reject.message


def test_a_hash_is_no_key():
    clients = Clients([client("a", "ka")])
    for text in (hash_key("ka"), hashlib.sha256(b"ka").hexdigest()):
        with refused(RejectKind.UNAUTHORIZED):
            clients.identify(sent(text))


def test_user_is_a_part_of_its_client_and_shares_its_account_and_limits():
    clients = Clients([client("team", "k", weight=2, max_concurrent=1), client("vip", "v", weight=9)])
    part = clients.identify(sent("k"), "vip")
    assert (part.client, part.account, part.weight, clients.limits(part.limits_of).max_concurrent) == (
        "team/vip",
        "team",
        2,
        1,
    )


def test_a_trusted_front_end_speaks_for_the_client_that_user_names():
    clients = Clients(
        [client("front", "k", trust_user=True, weight=2, requests_per_minute=5), client("org/vip", weight=9)]
    )
    known = clients.identify(sent("k"), "org/vip")
    assert (known.client, known.account, known.weight) == ("org/vip", "org/vip", 9)
    other = clients.identify(sent("k"), "alice")
    assert (other.client, other.account, other.weight) == ("alice", "alice", 2)
    assert clients.limits(other.limits_of).requests_per_minute == 5
    assert clients.identify(sent("k")).client == "front"


def test_without_keys_user_is_the_client_and_headers_are_ignored():
    clients = Clients([client("alice", weight=4)])
    assert clients.identify(sent("anything")).client == ANONYMOUS
    assert clients.identify(user="").client == ANONYMOUS
    assert clients.identify(user="bob").client == "bob"
    assert clients.identify(user="alice").weight == 4
    assert clients.limits(clients.identify(user="bob").limits_of) == Limits()


@settings(max_examples=200)
@given(st.text(min_size=1, max_size=200))
def test_any_user_text_becomes_one_bounded_printable_step_of_a_path(user):
    clients = Clients([client("team", "k")])
    head, _, step = clients.identify(sent("k"), user).client.partition("/")
    assert head == "team"
    assert 1 <= len(step) <= USER_LENGTH
    assert step.isprintable()
    assert not set(step) & set("/\\\"'`<>{}")


def test_two_long_users_stay_two():
    clients = Clients([])
    assert clients.identify(user="x" * 200 + "1").client != clients.identify(user="x" * 200 + "2").client


def test_requests_per_minute_refuse_with_the_exact_time_to_wait():
    quota = Quotas(10)
    limits = Limits(requests_per_minute=6)
    for _ in range(6):
        quota.admit("a", limits, 1, 100.0).release()
    with over_quota() as caught:
        quota.admit("a", limits, 1, 103.0)
    assert caught.value.reject.retry_after_s == pytest.approx(7.0)
    assert "6 requests per minute" in caught.value.reject.message
    with over_quota():
        quota.admit("a", limits, 1, 109.9)
    quota.admit("a", limits, 1, 110.0)


def test_a_long_pause_saves_up_no_more_than_a_minutes_worth():
    quota = Quotas(10)
    limits = Limits(requests_per_minute=6)
    quota.admit("a", limits, 1, 0.0)
    for _ in range(6):
        quota.admit("a", limits, 1, 3600.0)
    with over_quota():
        quota.admit("a", limits, 1, 3600.0)


def test_tokens_are_charged_as_estimated_and_settled_as_used():
    quota = Quotas(10)
    limits = Limits(tokens_per_minute=600)
    lease = quota.admit("a", limits, 500, 0.0)
    lease.settle(100, 0.0)
    lease.settle(200, 0.0)
    lease.release()
    quota.admit("a", limits, 400, 0.0)
    with over_quota() as caught:
        quota.admit("a", limits, 10, 0.0)
    assert caught.value.reject.retry_after_s == pytest.approx(1.0)


def test_more_tokens_than_estimated_leave_a_debt():
    quota = Quotas(10)
    limits = Limits(tokens_per_minute=600)
    quota.admit("a", limits, 1, 0.0).settle(1200, 0.0)
    with over_quota() as caught:
        quota.admit("a", limits, 100, 0.0)
    assert caught.value.reject.retry_after_s == pytest.approx(70.0)


def test_a_request_larger_than_the_whole_bucket_waits_for_a_full_one():
    quota = Quotas(10)
    limits = Limits(tokens_per_minute=600)
    quota.admit("a", limits, 60, 0.0)
    with over_quota() as caught:
        quota.admit("a", limits, 6000, 0.0)
    assert caught.value.reject.retry_after_s == pytest.approx(6.0)
    quota.admit("a", limits, 6000, 6.0)


def test_open_requests_are_bounded_and_released_once():
    quota = Quotas(10)
    limits = Limits(max_concurrent=2)
    first = quota.admit("a", limits, 1, 0.0)
    quota.admit("a", limits, 1, 0.0)
    with over_quota("2 open requests"):
        quota.admit("a", limits, 1, 0.0)
    first.release()
    first.release()
    first.settle(50, 0.0)
    quota.admit("a", limits, 1, 0.0)
    with over_quota():
        quota.admit("a", limits, 1, 0.0)


def test_a_refusal_takes_nothing():
    quota = Quotas(10)
    limits = Limits(requests_per_minute=60, tokens_per_minute=100)
    quota.admit("a", limits, 100, 0.0)
    for _ in range(100):
        with over_quota():
            quota.admit("a", limits, 100, 0.0)
    quota.admit("a", limits, 100, 60.0)


def test_clients_do_not_share_a_quota_and_those_without_limits_are_not_remembered():
    quota = Quotas(10)
    limits = Limits(max_concurrent=1)
    quota.admit("a", limits, 1, 0.0)
    quota.admit("b", limits, 1, 0.0)
    for _ in range(100):
        quota.admit("c", Limits(), 10**9, 0.0).release()
    assert len(quota) == 2


def test_only_who_is_idle_and_owes_nothing_is_forgotten():
    quota = Quotas(3)
    rate, both = Limits(requests_per_minute=60), Limits(requests_per_minute=60, max_concurrent=9)
    busy = quota.admit("busy", both, 1, 0.0)
    quota.admit("spent", rate, 1, 0.0).release()
    for _ in range(60):
        quota.admit("flood", rate, 1, 0.0).release()
    with refused(RejectKind.OVERLOADED):
        quota.admit("new", rate, 1, 0.5)
    quota.admit("new", rate, 1, 1.0).release()
    assert len(quota) == 3
    with over_quota():
        quota.admit("flood", rate, 61, 0.9)
    busy.release()
    quota.admit("newer", rate, 1, 2.0)
    assert len(quota) == 3


def test_open_requests_alone_keep_an_account():
    quota = Quotas(1)
    limits = Limits(max_concurrent=1)
    lease = quota.admit("busy", limits, 1, 0.0)
    with refused(RejectKind.OVERLOADED):
        quota.admit("new", limits, 1, 100.0)
    lease.release()
    quota.admit("new", limits, 1, 100.0)


def test_reload_keeps_what_was_counted_and_applies_new_limits_at_once():
    clients = Clients([client("a", "ka", max_concurrent=1), client("b", "kb")])

    def admit():
        asking = clients.identify(sent("ka"))
        return clients.quota.admit(asking.account, clients.limits(asking.limits_of), 1, 0.0)

    lease = admit()
    clients.reload([client("a", "ka", max_concurrent=1)])
    with over_quota():
        admit()
    with refused(RejectKind.UNAUTHORIZED):
        clients.identify(sent("kb"))
    clients.reload([client("a", "ka", max_concurrent=2)])
    admit()
    lease.release()
    admit()
    with over_quota():
        admit()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "settle", "release"]),
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, 80),
        st.floats(0, 20),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_order_of_events_gives_a_client_more_than_its_limits(steps):
    """Against a plain record of everything that was let in."""
    limits = Limits(requests_per_minute=12, tokens_per_minute=60, max_concurrent=3)
    quota = Quotas(3)
    now = 0.0
    open_leases = {name: [] for name in "abcd"}
    admitted = {name: [] for name in "abcd"}

    def admit(name, tokens):
        open_leases[name].append(quota.admit(name, limits, tokens, now))
        admitted[name].append(now)

    for action, name, amount, pause in steps:
        now += pause
        mine = open_leases[name]
        if action == "admit":
            try:
                admit(name, amount)
            except Refused as error:
                if error.reject.kind is RejectKind.OVERLOADED:
                    assert len(quota) == 3
                elif len(mine) < 3:  # told when to come back, it comes back and is let in
                    now += error.reject.retry_after_s
                    admit(name, amount)
        elif mine and action == "settle":
            mine[0].settle(amount, now)
        elif mine:
            mine.pop().release()
        assert len(mine) <= 3
        assert len(quota) <= 3
        assert within_rate(admitted[name], per_minute=12)
    for lease in (lease for leases in open_leases.values() for lease in leases):
        lease.release()
    assert all(account.open == 0 for account in quota.accounts().values())


def within_rate(times, per_minute):
    """Over any stretch of time: at most a full bucket and what flowed into it meanwhile."""
    return all(
        len(times) - first <= per_minute + (times[-1] - since) * per_minute / 60 + 1e-6
        for first, since in enumerate(times)
    )
