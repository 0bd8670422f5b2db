"""The fair queue against lists that are sorted anew for every question, and what it costs."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import full, request, worker

from policies.events import Left, Output, Placed
from policies.knowledge import Knowledge
from policies.model import Outcome, Placement
from policies.orders import dlpm, vtc
from policies.orders.kit import lanes

PARTIES = [("anna",), ("acme", "ann"), ("acme", "ben"), ("bolt", "lab", "cleo"), ("bolt", "lab", "dan"), ("acme",)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "remove", "place", "output", "leave", "ask"]),
        st.sampled_from(PARTIES),
        st.integers(1, 300),
        st.sampled_from([None, None, "a", "b"]),
    ),
    min_size=1,
    max_size=40,
)
MAKERS = {
    "dlpm": lambda: dlpm.Dlpm(dlpm.Settings(quantum=100, overdraft=150, order="fcfs", depth=3), Knowledge()),
    "vtc": lambda: vtc.Vtc(vtc.Settings(overdraft=150), Knowledge()),
}


def expected(made, inside, free):
    """(id, may pass) of every request that is offered: groups sorted anew, level by level."""
    return list(
        _below(made, [one for one in inside if lanes.has_room(lanes.lane_of(one), free)], made.accounts.root)
    )


def _below(made, waiting, parent, *, passes=True):
    groups = {}
    for one in waiting:
        account = made._where[one.id].account
        while account is not parent and account.parent is not parent:
            account = account.parent
        groups.setdefault(account, []).append(one)
    for one in heads(made, groups.pop(parent, [])):
        yield one.id, passes

    def seat(account):
        return made.turn(account), made.precedence(account), *first(made, groups[account], account)

    order = sorted(groups, key=seat)
    for account in order:
        start = made.turn(order[0])
        debt = (account.counter - made.due(start)) * account.weight
        may = passes and (made.turn(account) == start or debt < made._overdraft)
        yield from _below(made, groups[account], account, passes=may)


def first(made, waiting, account):
    """Arrival and id of the request that would be first below an account, of each lane; the least of these."""
    by_lane = {}
    for one in waiting:
        by_lane.setdefault(lanes.lane_of(one), []).append(one)
    return min(_first_of_lane(made, ones, account) for ones in by_lane.values())


def _first_of_lane(made, ones, account):
    own = [one for one in ones if made._where[one.id].account is account]
    if own:
        return min((one.arrived, one.id) for one in own)
    groups = {}
    for one in ones:
        child = made._where[one.id].account
        while child.parent is not account:
            child = child.parent
        groups.setdefault(child, []).append(one)
    seats = [(made.turn(c), made.precedence(c), *_first_of_lane(made, below, c)) for c, below in groups.items()]
    return min(seats)[2:]


def heads(made, own):
    """The oldest few of an account itself in each lane, lanes as they were opened."""
    by_lane = {}
    for one in sorted(own, key=lambda one: (one.arrived, one.id)):
        by_lane.setdefault(lanes.lane_of(one), []).append(one)
    return [one for ones in by_lane.values() for one in ones[: made._depth]]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS, free=st.sampled_from(["a", "b", "ab"]))
def test_it_offers_what_sorting_everything_anew_would(name, steps, free):
    made, inside, running = MAKERS[name](), {}, {}
    workers = [worker(one) if one in free else worker(one, room=full()) for one in "ab"]
    for number, (what, party, tokens, pinned) in enumerate(steps):
        if what == "push":
            one = request(f"r{number:02}", tokens=tokens, party=party, pinned=pinned, arrived=float(number))
            made.push(one)
            inside[one.id] = one
        elif what in ("remove", "place") and inside:
            one = inside.pop(sorted(inside)[tokens % len(inside)])
            made.remove(one)
            if what == "place":
                made.on(Placed(one, Placement("a"), 0, tokens, float(number), borrowed=tokens % 2 == 0))
                running[one.id] = one
        elif what in ("output", "leave") and running:
            one = running[sorted(running)[tokens % len(running)]]
            if what == "output":
                made.on(Output(one, Placement("a"), tokens, float(number)))
            else:
                made.on(Left(running.pop(one.id), Placement("a"), Outcome.COMPLETED, None, float(number)))
        check(made)
        if what == "ask" and len(made) > 1:
            offers = list(made.candidates(workers, float(number)))
            lane_order = [(o.request.id, o.may_pass) for o in offers]
            of_free = {w.id: w.facts for w in workers if w.room.open}
            want = expected(
                made, inside.values(), of_free if len(made._lanes) > 1 else {w.id: w.facts for w in workers}
            )
            assert sorted(lane_order) == sorted(want)
            if len({lanes.lane_of(one) for one in inside.values()}) == 1:
                assert lane_order == want
    for one in list(inside.values()):
        made.remove(one)
    assert (len(made), made._lanes) == (0, {})
    assert all(not account.branches for account in made.accounts)


def check(made):
    """Each level of each lane is sorted, and every seat is where the account's turn puts it."""
    levels = list(made._lanes.values())
    while levels:
        branch = levels.pop()
        assert branch.seats == sorted(branch.seats)
        assert branch.requests or branch.seats
        for turn, precedence, _, _, child in branch.seats:
            assert (turn, precedence) == (made.turn(child.account), made.precedence(child.account))
            assert child.account.branches[child.lane] is child
            levels.append(child)


def test_only_what_is_due_is_in_turn_and_reserves_a_worker():
    made = dlpm.Dlpm(dlpm.Settings(quantum=100, patience_s=10.0), Knowledge())
    owes = request("owes", "ben", tokens=900)
    made.push(owes)
    made.remove(owes)
    made.on(Placed(owes, Placement("a"), 0, 900, 0.0))
    for one in (request("due", "anna"), request("later", "ben")):
        made.push(one)
    early, late = (list(made.candidates([worker("a")], now)) for now in (9.0, 10.0))
    assert [(one.request.id, one.overdue, one.in_turn) for one in early] == [
        ("due", False, True),
        ("later", False, False),
    ]
    assert [(one.request.id, one.overdue, one.in_turn) for one in late] == [
        ("due", True, True),
        ("later", False, False),
    ]


def test_a_request_that_does_not_wait_cannot_be_removed_and_that_changes_nothing():
    made = MAKERS["dlpm"]()
    made.push(request("one"))
    with pytest.raises(KeyError):
        made.remove(request("other"))
    assert [one.id for one in made.waiting()] == ["one"]


class Counted:
    """Counts how often accounts and branches are asked for their turn."""

    def __init__(self, made):
        self.turns, self.turn = 0, made.turn
        made.turn = self.count

    def count(self, account):
        self.turns += 1
        return self.turn(account)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_with_ten_thousand_clients_a_step_moves_and_looks_at_a_few(name, tree):
    """No scan: asking reads no turn, and each event puts at most its own path in order."""
    made = MAKERS[name]()
    for number in range(10_000):
        party = (f"org {number % 100}", f"team {number % 1000}", f"user {number}") if tree else ()
        made.push(request(f"r{number}", f"client {number}", party=party))
    counted, depth = Counted(made), 3 if tree else 1
    for number in range(50):
        (offer,) = islice(made.candidates([worker("a")], 0.0), 1)
        assert counted.turns <= 4 * depth * number
        one = offer.request
        made.remove(one)
        made.on(Placed(one, Placement("a"), 0, 100, 0.0))
        made.on(Output(one, Placement("a"), 10, 0.0))
        made.on(Left(one, Placement("a"), Outcome.COMPLETED, None, 0.0))
    assert len(made) == 9950
