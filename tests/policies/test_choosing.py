"""What the chooser guarantees whatever the policies do: a worker in the end, bounded holding, counted faults."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view

from policies.model import Dispatch, Hold, Place, Placement, Reason, Stage, Ticket, Usage, WorkerFacts
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.scheduler.scheduler import Scheduler, SchedulerSettings


def facts(name, **fields):
    return WorkerFacts(name, frozenset({"base"}), **fields)


def request(name, now=0.0, **fields):
    return view(name, Wish("anna", 0, 20, 5, more=tuple(fields.items())), now)


class Says:
    """A placement that gives the answers it was made with, the last one for ever; it may raise them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.shown = []

    def choose(self, request, matches, workers, now):
        self.shown.append([view.id for view in workers])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on(self, event):
        pass


class Loyal:
    """Waits for its favourite for ever, even when it is shown only others."""

    def __init__(self, favourite="w0"):
        self.favourite = favourite

    def choose(self, request, matches, workers, now):
        for worker in workers:
            if worker.id == self.favourite and worker.admits(request, matches.get(worker.id, 0)):
                return Place(Placement(worker.id), Reason.HIT, matches.get(worker.id, 0))
        return Hold(self.favourite, float("inf"))

    def on(self, event):
        pass


class Broken(Fcfs):
    """A queue that holds requests and cannot say who is next."""

    def __init__(self):
        super().__init__(FcfsSettings())

    def candidates(self, workers, now):
        raise RuntimeError("no idea")


def scheduler(placement, *workers, queue=None, **fields):
    settings = SchedulerSettings(**{"prefill_window_tokens": 10_000, **fields})
    made = Scheduler(Fcfs(FcfsSettings()) if queue is None else queue, placement, settings)
    for worker in workers:
        made.worker_joined(worker, 0.0)
    return made


def started(made, now=0.0):
    return {d.request.id: d.place.placement.decode for d in made.decisions(now) if isinstance(d, Dispatch)}


# -- faults


def test_a_placement_that_raises_gives_way_to_the_least_loaded_worker():
    fault = KeyError("no such worker")
    made = scheduler(Says(fault), facts("busy"), facts("free"))
    made.submit(request("pinned", pinned="busy"), 0.0)
    assert started(made) == {"pinned": "busy"}
    made.submit(request("one"), 0.0)
    assert started(made) == {"one": "free"}
    assert made.faults.count == 2
    assert made.faults.last is fault


def test_a_request_placed_after_a_fault_ends_like_any_other():
    made = scheduler(Says(ZeroDivisionError()), facts("a", slots=1))
    ticket = made.submit(request("one"), 0.0)
    made.submit(request("two"), 0.0)
    assert started(made) == {"one": "a"}
    made.settled(ticket, Usage(20, 5), 1.0)
    assert started(made, 1.0) == {"two": "a"}
    assert made.faults.count == 2


def test_a_fault_without_room_leaves_the_request_waiting():
    made = scheduler(Says(ZeroDivisionError()), facts("a", slots=1), prefill_window_tokens=20)
    ticket = made.submit(request("one"), 0.0)
    assert started(made) == {"one": "a"}
    made.submit(request("two"), 0.0)
    assert started(made) == {}
    made.settled(ticket, Usage(20, 5), 1.0)
    assert started(made, 1.0) == {"two": "a"}


def test_a_placement_that_recovers_is_asked_again():
    there = Place(Placement("b"), Reason.TURN)
    made = scheduler(Says(ValueError(), there), facts("a"), facts("b"))
    for name in ("one", "two"):
        made.submit(request(name), 0.0)
    assert started(made) == {"one": "a", "two": "b"}
    assert made.faults.count == 1


def test_a_queue_that_raises_is_taken_in_order_of_arrival():
    made = scheduler(Says(Place(Placement("a"), Reason.TURN)), facts("a", slots=1), queue=Broken())
    tickets = {name: made.submit(request(name, now), now) for now, name in enumerate(["one", "two", "three"])}
    for now, name in enumerate(tickets, 3):
        assert started(made, float(now)) == {name: "a"}
        made.settled(tickets[name], Usage(20, 5), float(now))
    assert made.faults.count >= 3


def test_what_stops_the_program_is_not_swallowed():
    class Interrupted(Says):
        def choose(self, *_):
            raise KeyboardInterrupt

    made = scheduler(Interrupted(None), facts("a"))
    made.submit(request("one"), 0.0)
    with pytest.raises(KeyboardInterrupt):
        made.decisions(0.0)


# -- holding


def beside(hold_s, *, until=float("inf"), waiting=("one",), placement=None):
    """A full favourite, a worker with room, and requests that would rather wait; the favourite's ticket."""
    made = scheduler(placement or Loyal(), facts("w0", slots=1), hold_s=hold_s)
    ticket = made.submit(request("runs"), 0.0)
    assert started(made) == {"runs": "w0"}
    made.worker_joined(facts("w1", slots=5), 0.0)
    for name in waiting:
        made.submit(request(name), 0.0)
    return made, ticket


def test_a_request_is_held_for_so_long_and_no_longer_even_by_one_who_always_holds():
    made, _ = beside(0.5)
    assert started(made) == {}
    assert made.next_deadline() == 0.5
    assert started(made, 0.4) == {}
    assert made.next_deadline() == 0.5
    assert started(made, 0.5) == {"one": "w1"}


def test_after_holding_it_is_asked_about_the_workers_with_room_only():
    says = Says(Hold("w0", 9.0), Place(Placement("w1"), Reason.MISS))
    made = scheduler(says, facts("w0", slots=1), facts("w1"), hold_s=0.0)
    made.submit(request("pinned", pinned="w0"), 0.0)
    says.answers.insert(0, Place(Placement("w0"), Reason.LOAD))
    assert started(made) == {"pinned": "w0"}
    says.shown.clear()
    made.submit(request("one"), 0.0)
    assert started(made) == {"one": "w1"}
    assert says.shown == [["w0", "w1"], ["w1"]]


def test_the_room_of_a_worker_is_unused_for_so_long_in_all_whoever_waits():
    """The second has not waited beside it before, but somebody has."""
    made, ticket = beside(0.5, waiting=("one", "two"))
    assert started(made) == {}
    made.settled(ticket, Usage(20, 5), 0.4)
    assert started(made, 0.4) == {"one": "w0"}
    assert made.next_deadline() == 0.5
    assert started(made, 0.5) == {"two": "w1"}


def test_a_worker_that_was_used_may_be_kept_free_again():
    made, _ = beside(0.5)
    assert started(made) == {}
    made.submit(request("two", 0.5), 0.5)
    assert started(made, 0.5) == {"one": "w1"}
    assert made.next_deadline() == 1.0
    assert started(made, 0.9) == {}
    assert started(made, 1.0) == {"two": "w1"}


class Loyalists(Loyal):
    """Only those wait for the favourite who are not passing through."""

    def choose(self, request, matches, workers, now):
        if request.id == "passes":
            return Place(Placement("w1"), Reason.LOAD)
        return super().choose(request, matches, workers, now)


def test_room_is_unused_since_somebody_started_there_even_if_nobody_was_asked_again():
    made, ticket = beside(1.0, placement=Loyalists())
    assert started(made) == {}
    made.submit(request("passes", 0.8), 0.8)
    assert started(made, 0.8) == {"passes": "w1"}
    made.settled(ticket, Usage(20, 5), 0.9)
    made.submit(request("two", 0.9), 0.9)
    assert started(made, 0.9) == {"one": "w0"}
    assert made.next_deadline() == pytest.approx(1.8)


def test_time_in_which_nobody_waited_is_not_time_unused():
    made, ticket = beside(0.5)
    assert started(made) == {}
    made.settled(ticket, Usage(20, 5), 0.1)
    assert started(made, 0.1) == {"one": "w0"}
    made.submit(request("later", 60.0), 60.0)
    assert started(made, 60.0) == {}
    assert made.next_deadline() == 60.5


def test_a_deadline_of_who_was_placed_meanwhile_is_not_kept():
    made, ticket = beside(0.5)
    assert started(made) == {}
    made.settled(ticket, Usage(20, 5), 0.2)
    assert started(made, 0.2) == {"one": "w0"}
    assert made.next_deadline() is None


@settings(max_examples=15, deadline=None)
@given(
    wishes=st.lists(
        st.builds(
            Wish,
            st.sampled_from("ab"),
            st.integers(0, 30),
            st.integers(1, 60),
            st.integers(1, 9),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=40,
    ),
    queue=st.sampled_from(["fcfs", "dlpm", "lpm", "priority"]),
    placement=st.sampled_from(["loyal", "fairlead"]),
    hold_s=st.sampled_from([0.0, 2.0, 5.0]),
)
def test_no_room_is_unused_for_longer_than_allowed_while_somebody_waits(wishes, queue, placement, hold_s):
    since = {}

    def check(fleet):
        """All slots are alike, so who waits could start wherever one is free."""
        rows = fleet.scheduler.snapshot().workers
        for row in rows:
            if row.room.slots_free and len(fleet.queue):
                last = used.get(row.id)
                begun, before = since.setdefault(row.id, (fleet.now, last))
                if before != last:
                    since[row.id] = fleet.now, last
                    continue
                assert hold_s > 0.0, "room beside a request that waits"
                assert fleet.now - begun <= hold_s + 1e-9
                at = fleet.scheduler.next_deadline()
                assert at is not None
                assert fleet.now < at <= begun + hold_s
            else:
                since.pop(row.id, None)

    used = {}
    chosen = Loyal() if placement == "loyal" else placement
    made = SteppedFleet(queue, workers=3, placement=chosen, hold_s=hold_s, on_start=used.__setitem__)
    made.checks.append(check)
    made.play(wishes)


# -- places that cannot be, and pairs


PREFILL, DECODE = (frozenset([stage]) for stage in (Stage.PREFILL, Stage.DECODE))


@pytest.mark.parametrize(
    "named",
    [Placement("nobody"), Placement("full"), Placement("free", "nobody"), Placement("free", "free")],
)
def test_a_place_that_cannot_be_gives_way_to_the_least_loaded_worker(named):
    made = scheduler(Says(Place(Placement("full"), Reason.TURN)), facts("full", slots=1))
    made.submit(request("runs"), 0.0)
    assert started(made) == {"runs": "full"}
    made._chooser._placement.answers[:] = [Place(named, Reason.TURN)]
    made.worker_joined(facts("free"), 0.0)
    made.submit(request("one"), 0.0)
    assert started(made) == {"one": "free"}
    assert made.faults.count == 1
    assert "does not admit" in str(made.faults.last)


def placed(made, now=0.0):
    return [d.place.placement for d in made.decisions(now) if isinstance(d, Dispatch)]


def test_the_least_loaded_worker_may_be_a_pair():
    made = scheduler(Says(KeyError()), facts("d", stages=DECODE), facts("p", stages=PREFILL))
    made.submit(request("one"), 0.0)
    assert placed(made) == [Placement("d", "p")]


def test_the_least_loaded_worker_serves_alone_where_its_partner_is_missing():
    made = scheduler(Says(KeyError()), facts("d", stages=DECODE))
    made.submit(request("one"), 0.0)
    assert placed(made) == [Placement("d")]


def test_pairs_with_room_are_shown_after_holding():
    """A prefill worker has no slots, and a decode worker's window is full of requests that it serves alone."""
    says = Says(Place(Placement("d"), Reason.TURN))
    made = scheduler(
        says, facts("d", stages=DECODE, slots=5), facts("p", stages=PREFILL, slots=0), prefill_window_tokens=20
    )
    made.submit(request("runs"), 0.0)
    made.submit(request("pinned", pinned="p"), 0.0)
    says.answers[:] = [
        Place(Placement("d"), Reason.TURN),
        Place(Placement("p"), Reason.TURN),
        Hold("p", 9.0),
        Place(Placement("d", "p"), Reason.TURN),
    ]
    assert placed(made) == [Placement("d"), Placement("p")]
    says.shown.clear()
    made.first_token(Ticket("pinned", 1, 2), 0.0)
    made.submit(request("waits"), 0.0)
    made._chooser._hold_s = 0.0
    assert placed(made) == [Placement("d", "p")]
    assert says.shown == [["d", "p"], ["d", "p"]]


@pytest.mark.parametrize("full", ["d", "p"])
def test_a_pair_is_refused_if_one_side_has_no_room_and_nobody_serves_alone_for_want_of_room(full):
    says = Says(Place(Placement(full), Reason.TURN))
    bounds = {"d": {"slots": 1}, "p": {}}
    stages = {"d": DECODE, "p": PREFILL}
    workers = [facts(name, stages=stages[name], **bounds[name]) for name in "dp"]
    made = scheduler(says, *workers, prefill_window_tokens=20)
    made.submit(request("runs"), 0.0)
    assert placed(made) == [Placement(full)]
    says.answers[:] = [Place(Placement("d", "p"), Reason.TURN)]
    made.submit(request("waits"), 0.0)
    assert placed(made) == []
    assert made.faults.count == 1
    says.answers[:] = [Hold(full, 9.0)]
    made._chooser._hold_s = 0.0
    assert placed(made) == []


@pytest.mark.parametrize("disaggregate", ["always", "never"])
def test_the_least_loaded_worker_is_no_pair_where_pairs_are_not_wanted(disaggregate):
    workers = facts("d", stages=DECODE), facts("p", stages=PREFILL)
    made = scheduler(Says(KeyError()), *workers, disaggregate=disaggregate)
    made.submit(request("one"), 0.0)
    assert placed(made) == [Placement("d", "p") if disaggregate == "always" else Placement("d")]
