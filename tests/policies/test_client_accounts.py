"""Deficits per client and worker: refills at once are refills one by one, and the table is bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.placements.kit.client_accounts import ClientAccounts


@settings(max_examples=60)
@given(
    charges=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5000), st.booleans()), min_size=1, max_size=30
    ),
    quantum=st.sampled_from([1, 64, 1000]),
)
def test_refills_at_once_are_refills_one_by_one(charges, quantum):
    made, literal = ClientAccounts(quantum), dict.fromkeys("abc", 0.0)
    made.open("anna")
    for worker, service, refilled in charges:
        if refilled or not any(made.deficit("anna", name) for name in "abc"):
            while literal[worker] <= 0:
                for name in "abc":
                    literal[name] += quantum if literal[name] <= 0 else 0
            made.refill("anna", worker)
        if worker in made._accounts["anna"].deficits:
            literal[worker] -= service
        made.charge("anna", worker, service)
        assert {name: made.deficit("anna", name) for name in "abc"} == literal


def test_a_debt_of_any_size_is_refilled_in_no_time():
    made = ClientAccounts(1)
    made.open("anna")
    made.refill("anna", "a")
    made.charge("anna", "a", 10**15)
    made.refill("anna", "a")
    assert made.deficit("anna", "a") == 1


def test_clients_that_are_quiet_are_forgotten_and_those_with_something_under_way_are_not():
    made = ClientAccounts(100, most=10)
    for number in range(30):
        made.open(f"c{number}")
        made.refill(f"c{number}", "a")
        made.charge(f"c{number}", "a", 150)
        if number >= 5:
            made.close(f"c{number}")
    assert len(made) <= 12
    assert [made.deficit(f"c{number}", "a") for number in range(5)] == [-50] * 5
    assert made.deficit("c6", "a") == 0.0
    assert made.deficit("c29", "a") == -50
