"""Accounts of parties: charges sum up at every level, the table is bounded, and dropping is never an amnesty."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from views import request

from policies.events import Left, Output, Placed
from policies.model import Outcome, Placement, Usage
from policies.orders.kit.accounts import Accounts, Rounds, WorkerDeficits

PLACEMENT = Placement("a")
PARTIES = [("anna",), ("acme", "ann"), ("acme", "ben"), ("acme", "lab", "cleo"), ("acme",)]


def accounts(**fields):
    return Accounts(1.0, 2.0, **{"level": lambda _: 0.0, **fields})


def asked(name, party, *, tokens=10, **fields):
    return request(name, "/".join(party), tokens=tokens, party=party, **fields)


def begin(made, one, extend=None, now=0.0):
    account = made.of(one)
    made.begin(account, Placed(one, PLACEMENT, 0, one.input_tokens if extend is None else extend, now))
    return account


def end(made, one, outcome=Outcome.COMPLETED, usage=None, now=0.0):
    return made.charge(Left(one, PLACEMENT, outcome, usage, now))


# -- charges


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "output", "fail", "settle", "cancel"]),
        st.integers(0, 4),
        st.integers(1, 500),
        st.sampled_from([0.0, 1.0, 60.0]),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_each_level_holds_the_sum_of_what_was_worth_below_it(steps):
    made, worth, running, now = accounts(), {}, {}, 0.0
    for number, (what, party, tokens, gap) in enumerate(steps):
        now += gap
        if what == "begin":
            one = asked(f"r{number}", PARTIES[party], tokens=tokens)
            begin(made, one, now=now)
            running[one.id] = [one, tokens]
        elif running:
            name = sorted(running)[tokens % len(running)]
            one, service = running[name]
            if what == "output":
                made.charge(Output(one, PLACEMENT, tokens, now))
                running[name][1] += 2 * tokens
                continue
            computed = {"fail": 0, "settle": service - one.input_tokens + 7, "cancel": service}[what]
            outcome = {"fail": None, "settle": Outcome.COMPLETED, "cancel": Outcome.CANCELLED}[what]
            end(made, one, outcome, Usage(7, 0, 0) if what == "settle" else None, now)
            del running[name]
            worth[one.party] = worth.get(one.party, 0) + computed
    for one, service in running.values():
        worth[one.party] = worth.get(one.party, 0) + service
    for account in made:
        below = [total for party, total in worth.items() if party[: len(account.party)] == account.party]
        assert account.counter == sum(below) or account.party[-1] == ""
    assert made.charges.keys() == running.keys()


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 10**6), outputs=st.lists(st.integers(1, 500), max_size=5), gap=st.floats(0.0, 1e4))
def test_what_is_given_back_leaves_nothing_behind_however_late(tokens, outputs, gap):
    made, one, now = accounts(), asked("r", ("acme", "ann"), tokens=tokens), 0.0
    account = begin(made, one)
    for output in outputs:
        now += gap
        made.charge(Output(one, PLACEMENT, output, now))
    end(made, one, None, None, now + gap)
    for level in (account, account.parent):
        assert (level.counter, level.recent, level.precedence) == (0.0, 0.0, -inf)


def test_weights_divide_a_charge_level_by_level():
    made = accounts()
    account = begin(made, asked("r", ("acme", "ann"), tokens=100, weights=(4.0, 0.5)))
    assert (account.counter, account.parent.counter) == (200.0, 25.0)
    flat = begin(made, request("s", "anna", tokens=100, weight=2.0))
    assert flat.counter == 50.0


def test_a_party_with_requests_of_its_own_stands_beside_those_below_it():
    made = accounts()
    assert made.of(asked("r", ("acme",))).party == ("acme",)
    below = made.of(asked("s", ("acme", "ann")))
    own = made.of(asked("t", ("acme",)))
    assert own.party == ("acme", "")
    assert own.parent is below.parent


def test_an_account_is_found_by_the_name_of_its_client():
    made = accounts()
    flat, deep = made.of(request("r", "a/b")), made.of(asked("s", ("acme", "ann")))
    assert made.find("a/b") is flat
    assert made.find("acme/ann") is deep
    assert made.find("stranger") is None


# -- the table


def test_only_idle_accounts_that_owe_nothing_are_dropped():
    made = accounts(most=20)
    runs = begin(made, asked("runs", ("runs",)))
    owes = begin(made, asked("owes", ("owes",), tokens=10**6))
    end(made, asked("owes", ("owes",)))
    for number in range(200):
        one = asked(f"r{number}", (f"passer-by {number}",))
        begin(made, one)
        end(made, one, Outcome.REFUSED)
    assert len(made) <= 22
    assert made.find("runs") is runs
    assert made.find("owes") is owes
    assert made.find("passer-by 0") is None


def test_levels_above_are_dropped_once_nothing_is_below_them():
    made = accounts(most=20)
    for number in range(200):
        one = asked(f"r{number}", (f"org {number}", "team", "user"))
        begin(made, one)
        end(made, one, Outcome.REFUSED)
    assert len(made) <= 26
    assert made.root.children <= 10


def test_where_idle_parties_are_forgiven_debtors_cannot_crowd_the_table():
    made = accounts(most=20, forgives=True)
    for number in range(200):
        one = asked(f"r{number}", (f"passer-by {number}",))
        begin(made, one)
        end(made, one)
    assert len(made) <= 22


def test_once_the_table_is_full_of_debtors_new_parties_share_an_account():
    made = accounts(most=20)
    for number in range(200):
        one = asked(f"r{number}", (f"debtor {number}",))
        begin(made, one)
        end(made, one)
    assert len(made) == 41
    assert made.find("debtor 0").counter == 10
    assert made.of(asked("r", ("debtor 100",))) is made.of(asked("r", ("debtor 101",)))
    assert made.find("(others)").counter == 160 * 10


# -- rounds


@settings(max_examples=100)
@given(
    charges=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3)), max_size=30),
    quantum=st.sampled_from([1, 64, 1000]),
)
def test_a_counter_read_in_rounds_is_a_deficit_refilled_one_by_one(charges, quantum):
    rounds, counter, deficit, now = Rounds(quantum), 0.0, 0.0, 0
    for service, refills in charges:
        counter, deficit = counter + service, deficit - service
        for _ in range(refills):
            now += 1
            deficit += quantum if deficit <= 0 else 0
        counter = rounds.lifted(counter, now)
        assert now * quantum - counter == deficit
        assert (rounds.turn(counter) <= now) == (deficit > 0)


# -- deficits at single workers


@settings(max_examples=60)
@given(
    charges=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5000), st.booleans()), min_size=1, max_size=30
    ),
    quantum=st.sampled_from([1, 64, 1000]),
)
def test_refills_of_all_workers_at_once_are_refills_one_by_one(charges, quantum):
    made, literal, one = WorkerDeficits(quantum), dict.fromkeys("abc", 0.0), request("r", "anna")
    account = made.open(one)
    for worker, service, refilled in charges:
        eligible = {name for name in "abc" if literal[name] > 0}
        if eligible:
            assert made.eligible(one, "abc") == eligible
        if refilled or not any(made.deficit("anna", name) for name in "abc"):
            while literal[worker] <= 0:
                for name in "abc":
                    literal[name] += quantum if literal[name] <= 0 else 0
            made.refill(account, worker)
        if worker in account.workers:
            literal[worker] -= service
        made.charge(account, worker, service)
        assert {name: made.deficit("anna", name) for name in "abc"} == literal


def test_a_debt_of_any_size_is_refilled_in_no_time():
    made = WorkerDeficits(1)
    account = made.open(request("r", "anna"))
    made.refill(account, "a")
    made.charge(account, "a", 10**15)
    made.refill(account, "a")
    assert made.deficit("anna", "a") == 1


def test_the_table_is_bounded_by_parties_whatever_the_workers_are_called():
    """A worker that restarts comes under a new name, and takes its deficits along when it leaves."""
    made = WorkerDeficits(100, most=50)
    for epoch in range(20):
        for number in range(100):
            account = made.open(request("r", f"client {epoch} {number}"))
            made.refill(account, f"w{epoch}")
            made.charge(account, f"w{epoch}", 5.0)
            made.close(account)
        made.remove_worker(f"w{epoch}")
    assert len(made) <= 51
    assert all(not account.workers for account in made._accounts)
