"""What lies around the engines: shared cores stretch steps, ways delay what the router and the engines hear."""

from array import array

import pytest

from router.lab.driver import replay
from router.lab.machine import Machine
from router.lab.setup import SetupError, make_setup
from router.lab.workload import Request, Workload
from workers.simulator.profiles import PROFILES

INSTANT = PROFILES["instant"]


def request(at=0.0, *, tokens=160, output=100, unit=1, **more):
    return Request(at, "a", array("Q", [unit]).tobytes(), tokens, output, **more)


def traffic(*requests):
    return Workload("hand-made", 16, requests, {"a": 1.0})


def replayed(*requests, workers=2, placement="round_robin", **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    setup = make_setup(workers=workers, placement=placement, queue="fcfs", profile="instant", settings=named)
    return replay(traffic(*requests), setup).results


def took(result):
    return result.ended - result.arrived


def test_engines_with_hardware_of_their_own_do_not_notice_each_other():
    alone, *_ = replayed(request())
    both = replayed(request(unit=1), request(unit=2))
    assert [took(each) for each in both] == pytest.approx([took(alone)] * 2)


def test_two_engines_on_one_core_take_twice_as_long():
    alone, *_ = replayed(request(), machine__cores=1)
    both = replayed(request(unit=1), request(unit=2), machine__cores=1)
    # The first to begin has one step at full speed before the other is there.
    assert [took(each) for each in both] == pytest.approx([2 * took(alone)] * 2, rel=0.03)
    assert [took(each) for each in replayed(request(unit=1), request(unit=2), machine__cores=2)] == pytest.approx(
        [took(alone)] * 2
    )


def test_an_engine_gets_faster_when_the_other_has_ended():
    alone, *_ = replayed(request(output=400))
    long, short = replayed(request(unit=1, output=400), request(unit=2, output=100), machine__cores=1)
    # While both run each has half of the core: 100 tokens of each in the time of 200.
    assert took(short) == pytest.approx(took(alone) * 200 / 400, rel=0.03)
    assert took(long) == pytest.approx(took(alone) * 500 / 400, rel=0.03)


def test_a_request_and_its_reply_take_their_ways():
    here, *_ = replayed(request(), workers=1)
    there, *_ = replayed(request(), workers=1, machine__request_s=0.5, machine__reply_s=0.25)
    assert there.dispatched == here.dispatched == 0.0
    assert there.first_at == pytest.approx(here.first_at + 0.75)
    assert there.ended == pytest.approx(here.ended + 0.75)


def test_a_prompt_that_waits_for_the_notice_of_a_first_token_starts_later_by_both_ways():
    two = request(unit=1), request(unit=2)
    window = {"workers": 1, "prefill_window_tokens": 1}
    _, near = replayed(*two, **window)
    _, far = replayed(*two, **window, machine__request_s=0.25, machine__reply_s=0.5)
    # The first one's way there and back, and the second's own.
    assert far.first_at - near.first_at == pytest.approx(2 * 0.75, abs=3 * INSTANT.step_s(1, 160))


def test_what_follows_an_answer_waits_for_its_reply():
    there = {"workers": 1, "machine__request_s": 0.5, "machine__reply_s": 0.25}
    first, second = replayed(request(), request(unit=2, after=(0, 0.0)), **there)
    assert second.arrived == first.ended > 0.75


def test_a_request_that_finds_its_worker_dead_is_served_by_another():
    setup = make_setup(
        workers=2,
        placement="round_robin",
        queue="fcfs",
        profile="instant",
        changes="lose@0.2:worker-0",
        settings={"machine.request_s": 0.5, "machine.reply_s": 0.1},
    )
    results = replay(traffic(request(unit=1), request(unit=2)), setup).results
    assert all(each.completed for each in results)
    assert sorted(each.attempts for each in results) == [1, 2]


@pytest.mark.parametrize("setting", [{"machine.cores": 0}, {"machine.request_s": -1}, {"machine.reply_s": 1e9}])
def test_a_machine_that_cannot_be_is_refused(setting):
    with pytest.raises(SetupError, match="machine"):
        make_setup(settings=setting)


def test_a_machine_is_slower_only_beyond_its_cores():
    assert [Machine(cores=2).pace(busy) for busy in range(5)] == [1.0, 1.0, 1.0, 1.5, 2.0]
    assert Machine().pace(100) == 1.0
    assert [Machine(cores=1.25).pace(busy) for busy in range(3)] == [1.0, 1.0, 1.6]
