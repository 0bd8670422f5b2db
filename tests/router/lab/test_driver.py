"""The driver: the scheduler that serves, over simulated engines, in virtual time."""

import dataclasses
from array import array
from itertools import pairwise

import pytest

from policies.catalog import placement_policies
from policies.model import Usage
from policies.prefixes.index import Prefixes
from router.lab import driver as driver_module
from router.lab.driver import NeverEndsError, replay
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload
from router.lab.workloads.open_workload import open_workload
from workers.simulator.profiles import PROFILES

INSTANT = PROFILES["instant"]
H100 = PROFILES["h100-llama-3.1-8b"]


def request(at=0.0, client="a", tokens=160, output=10, units=(), **more):
    return Request(at, client, array("Q", units).tobytes(), tokens, output, **more)


def workload(*requests, block_tokens=16):
    return Workload("hand-made", block_tokens, requests, {each.client: each.weight for each in requests})


def shared_prefixes(groups=6, each=20, gap_s=0.05):
    """Requests of several groups in turn; a group shares 62 of its 64 blocks."""
    requests = []
    for number in range(groups * each):
        group = number % groups
        units = [1000 * (group + 1) + n for n in range(62)] + [10**6 + 2 * number, 10**6 + 2 * number + 1]
        requests.append(request(number * gap_s, tokens=1024, units=units))
    return workload(*requests)


def times(run):
    return [(record.arrived, record.dispatched, record.first_at, record.ended) for record in run.results]


def test_equal_seeds_give_equal_runs():
    setup = make_setup(placement="power_of_two", workers=3, seed=5)
    traffic = open_workload("agents:requests=150", seed=5)
    one, other = (summarize(replay(traffic, setup), setup) for _ in range(2))
    assert {**one, "wall_s": 0} == {**other, "wall_s": 0}
    other = open_workload("agents:requests=150", seed=6)
    assert summarize(replay(other, setup), setup)["duration_s"] != one["duration_s"]


def test_an_idle_worker_answers_in_the_time_of_its_prefill_and_its_steps():
    setup = make_setup(workers=1, profile="instant")
    run = replay(workload(request(at=2.0, tokens=160, output=10)), setup)
    record = run.results[0]
    prefill = INSTANT.prefill_s(160)
    assert record.dispatched == record.arrived == 2.0
    assert record.first_at == pytest.approx(2.0 + prefill)
    assert record.ended == pytest.approx(2.0 + prefill + 9 * INSTANT.step_s(1, 0))


def test_who_arrives_during_a_step_waits_for_the_next_one():
    setup = make_setup(workers=1, settings={"prefill_window_tokens": 100_000})
    run = replay(workload(request(tokens=4000, output=1), request(at=0.001, tokens=4000, output=1)), setup)
    first, second = run.results
    assert first.first_at == pytest.approx(H100.prefill_s(4000))
    assert second.first_at == pytest.approx(first.first_at + H100.prefill_s(4000))


def test_who_arrives_at_the_same_moment_shares_a_step():
    setup = make_setup(workers=1, settings={"prefill_window_tokens": 100_000})
    run = replay(workload(request(tokens=100, output=1), request(tokens=60, output=1)), setup)
    step = H100.step_s(0, 0, 160, 100 * 50 + 60 * 30, 2)
    assert [record.first_at for record in run.results] == pytest.approx([step, step])


def test_everything_that_arrives_is_completed_or_rejected_and_all_tokens_are_accounted_for():
    traffic = open_workload("agents:requests=300,rate=40")
    setup = make_setup(placement="cache_aware", workers=2)
    run = replay(traffic, setup)
    assert len(run.results) == len(traffic.requests) == 300
    assert all(record.completed for record in run.results)
    assert sum(worker.requests for worker in run.workers) == 300
    assert sum(worker.prompt_tokens for worker in run.workers) == sum(r.input_tokens for r in run.results)
    assert sum(worker.cached_tokens for worker in run.workers) == sum(r.cached_tokens for r in run.results)
    assert sum(worker.generated_tokens for worker in run.workers) == sum(r.output_tokens for r in run.results)
    for record in run.results:
        assert record.arrived <= record.dispatched < record.first_at <= record.ended


def test_a_request_that_can_never_fit_is_rejected_with_its_reason():
    run = replay(workload(request(), request(tokens=200_000), request(tokens=131_000, output=100)), make_setup())
    assert [record.completed for record in run.results] == [True, False, False]
    assert "200010 tokens, where 131072 fit" in run.results[1].rejected
    assert run.results[2].rejected is not None


def test_what_the_scheduler_turns_away_is_rejected():
    burst = workload(*[request(tokens=8000) for _ in range(30)])
    run = replay(burst, make_setup(workers=1, settings={"queue_requests": 5}))
    reasons = {record.rejected for record in run.results}
    assert reasons == {None, "queue_full"}
    assert sum(record.completed for record in run.results) >= 6


def test_who_follows_arrives_after_the_end_and_the_delay_whatever_the_end_was():
    run = replay(
        workload(
            request(tokens=200_000),
            request(after=(0, 0.5)),
            request(output=100),
            request(after=(2, 0.25)),
            request(at=9.0, after=(2, 0.25)),
        ),
        make_setup(workers=1),
    )
    rejected, second, third, fourth, late = run.results
    assert rejected.rejected is not None
    assert second.arrived == rejected.ended + 0.5
    assert fourth.arrived == pytest.approx(third.ended + 0.25)
    assert late.arrived == 9.0


def test_late_binding_keeps_the_line_inside_each_engine_short():
    flood = workload(*[request(number * 0.001, tokens=3000, output=40) for number in range(200)])
    run = replay(flood, make_setup(workers=2, binding="late"))
    assert max(worker.most_waiting for worker in run.workers) <= 4
    waits = [record.dispatched - record.arrived for record in run.results]
    assert max(waits) > 1.0


def test_matching_prefixes_beats_taking_turns_where_prefixes_are_shared():
    traffic = shared_prefixes()
    hits = {}
    for placement in ("cache_aware", "round_robin"):
        run = replay(traffic, make_setup(placement=placement, workers=5))
        hits[placement] = sum(w.cached_tokens for w in run.workers) / sum(w.prompt_tokens for w in run.workers)
    assert hits["cache_aware"] > hits["round_robin"] + 0.1


def test_a_later_turn_finds_the_answer_of_the_one_before_in_the_cache():
    first = request(tokens=160, output=161, units=range(10), reply_key=array("Q", range(10, 20)).tobytes())
    second = request(tokens=400, output=5, units=range(25), after=(0, 1.0))
    run = replay(workload(first, second), make_setup(workers=1))
    assert run.results[1].cached_tokens == 320


@pytest.mark.parametrize("generator", ["chat", "tot"])
def test_what_is_foretold_of_caches_without_their_reports_is_what_is_found(generator, monkeypatch):
    wrong = []

    def answered(self, worker, request, matches, cached_tokens):
        wrong.append(abs(matches.get(worker, 0) - cached_tokens) >= 16)

    monkeypatch.setattr(Prefixes, "record_cached", answered)
    replay(open_workload(f"{generator}:requests=400,rate=40"), make_setup(workers=4))
    assert len(wrong) == 400
    assert sum(wrong) <= 30  # without answers: 150 and more


class Recorder:
    """Stands between the driver and the scheduler and writes down what the driver says."""

    def __init__(self, scheduler, calls):
        self._scheduler = scheduler
        self._calls = calls

    def __getattr__(self, name):
        method = getattr(self._scheduler, name)
        if name not in {"submit", "first_token", "output", "settled", "worker_changed"}:
            return method

        def recorded(*arguments):
            self._calls.append((name, *arguments))
            return method(*arguments)

        return recorded


@pytest.fixture
def calls(monkeypatch):
    heard = []
    original = driver_module.make_scheduler
    monkeypatch.setattr(driver_module, "make_scheduler", lambda *args: Recorder(original(*args), heard))
    return heard


def test_the_scheduler_hears_what_the_gateway_would_tell_it(calls):
    prompt = {"tokens": 320, "units": range(20)}
    replay(workload(request(output=300, **prompt), request(at=12.0, **prompt)), make_setup(workers=1))
    by_name = {name: [call for call in calls if call[0] == name] for name in {call[0] for call in calls}}
    told = [tokens for _, ticket, tokens, _ in by_name["output"] if ticket.request == "0"]
    moments = [now for _, ticket, _, now in by_name["output"] if ticket.request == "0"]
    assert 200 <= sum(told) < 300
    assert all(0.2 <= after - before < 0.26 for before, after in pairwise(moments))
    usages = [usage for _, _, usage, _ in by_name["settled"]]
    assert usages == [Usage(320, 300, 0), Usage(320, 10, 304)]
    assert [view.arrived for _, view, _ in by_name["submit"]] == [0.0, 12.0]
    assert all(view.streams for _, view, _ in by_name["submit"])
    readings = [facts.reading for _, facts, _ in by_name["worker_changed"]]
    assert [reading.at for reading in readings] == [5.0, 10.0]


def test_the_scheduler_is_never_told_how_long_an_answer_will_be(calls):
    replay(workload(request(output=3000)), make_setup(workers=1))
    view = next(call[1] for call in calls if call[0] == "submit")
    assert view.expected_output_tokens != 3000
    assert view.max_output_tokens is None


def test_fast_engines_tell_of_output_every_32_tokens(calls):
    replay(workload(request(output=500)), make_setup(workers=1, profile="instant"))
    told = [call[2] for call in calls if call[0] == "output"]
    assert len(told) >= 10
    assert all(30 <= tokens <= 64 for tokens in told)


def test_policies_that_leave_requests_waiting_for_ever_are_found_out(monkeypatch):
    class Forgetful(Recorder):
        def decisions(self, now):
            del now
            return []

        def next_deadline(self):
            return None

    original = driver_module.make_scheduler
    monkeypatch.setattr(driver_module, "make_scheduler", lambda *args: Forgetful(original(*args), []))
    with pytest.raises(NeverEndsError, match="1 requests wait"):
        replay(workload(request()), make_setup(workers=1))


def test_progress_is_told_on_the_way_and_at_the_end():
    heard = []
    replay(open_workload("poisson:requests=250"), make_setup(workers=2), heard.append)
    assert heard == [100, 200, 250]


def test_a_run_has_a_record_for_each_request_in_the_order_of_the_workload():
    traffic = open_workload("chat:requests=80")
    run = replay(traffic, make_setup(workers=2))
    assert [r.client for r in run.results] == [r.client for r in traffic.requests]
    assert dataclasses.asdict(run.workers[0]).keys() >= {"busy_s", "preemptions"}


# -- pairs of a prefill and a decode worker


def paired(roles="1xprefill,1xdecode", **more):
    return make_setup(placement="round_robin", queue="fcfs", roles=roles, **more)


def test_on_an_idle_pair_a_request_takes_its_prefill_the_transfer_and_its_steps():
    record = replay(workload(request(tokens=1600, output=10)), paired()).results[0]
    prefill, step = H100.prefill_s(1600), H100.step_s(0, 0, 1, 1600.0, 1)
    assert record.pair
    assert record.first_at == pytest.approx(prefill + H100.transfer_s(1600) + step, rel=1e-3)
    assert record.ended == pytest.approx(record.first_at + 9 * H100.step_s(1, 1605), rel=0.01)


def test_a_slow_link_makes_the_first_token_late():
    slow = dataclasses.replace(H100, transfer_token_s=1e-3)
    setup = dataclasses.replace(paired(), profile=slow)
    fast = replay(workload(request(tokens=1600)), paired()).results[0].first_at
    late = replay(workload(request(tokens=1600)), setup).results[0].first_at
    assert late - fast == pytest.approx(1.6 - H100.transfer_s(1600) + H100.transfer_s(0), rel=0.01)


def test_a_pairs_prompt_and_answer_count_once_each_where_they_were_computed():
    traffic = shared_prefixes()
    run = replay(traffic, paired("2xprefill,2xdecode"))
    assert all(record.pair and record.completed for record in run.results)
    prefill, decode = run.workers[:2], run.workers[2:]
    assert sum(w.prompt_tokens for w in prefill) == sum(r.input_tokens for r in run.results)
    assert sum(w.cached_tokens for w in prefill) == sum(r.cached_tokens for r in run.results) > 0
    assert sum(w.generated_tokens for w in decode) == sum(r.output_tokens for r in run.results)
    assert [w.prompt_tokens for w in decode] == [w.generated_tokens for w in prefill] == [0, 0]
    assert 0 < sum(w.pulled_tokens for w in decode) < sum(r.input_tokens for r in run.results)
    assert sum(w.pulled_tokens for w in prefill) == 0


def test_after_a_run_no_worker_holds_kv_for_anybody(monkeypatch):
    drivers = []

    class Watched(driver_module._Driver):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            drivers.append(self)

    monkeypatch.setattr(driver_module, "_Driver", Watched)
    replay(shared_prefixes(), paired("1xmixed,2xprefill,2xdecode", settings={"disaggregate": "always"}))
    (driver,) = drivers
    for worker in driver.workers:
        assert worker.attempts == worker.decoding == {}
        assert (worker.engine.held, worker.engine.leases_expired, worker.engine.kv_blocks_used) == (0, 0, 0)
    views = driver._scheduler.snapshot().workers
    assert {(view.requests, view.sequences, view.prefill_owed, view.kv_reserved) for view in views} == {
        (0, 0, 0, 0)
    }


def test_a_prefill_worker_takes_the_next_prompt_as_soon_as_one_is_done():
    """Long answers: were its room kept until their end, two prompts would be seconds apart."""
    traffic = workload(*(request(tokens=8000, output=500) for _ in range(2)))
    first, second = replay(traffic, paired()).results
    assert first.dispatched == 0.0
    assert second.dispatched == pytest.approx(H100.prefill_s(8000), rel=0.01)
    assert second.dispatched < first.ended / 5


@pytest.mark.parametrize("binding", ["late", "early"])
@pytest.mark.parametrize("placement", sorted(placement_policies()))
def test_every_placement_serves_a_fleet_with_roles(placement, binding):
    setup = make_setup(
        placement=placement,
        binding=binding,
        roles="1xmixed,2xprefill,1xdecode",
        settings={"disaggregate": "always"},
        seed=3,
    )
    run = replay(shared_prefixes(groups=3, each=10, gap_s=0.02), setup)
    assert all(record.completed for record in run.results)
    assert any(record.pair for record in run.results)


def test_the_heatmap_that_ships_gives_long_prompts_with_short_answers_to_pairs():
    requests = []
    for n in range(40):
        tokens = 32_000 if n % 2 else 512
        units = [10_000 * n + unit for unit in range(tokens // 16)]
        requests.append(request(10.0 * n, tokens=tokens, output=400, units=units))
    traffic = workload(*requests)
    run = replay(traffic, make_setup(placement="least_loaded", roles="2xmixed,1xprefill,1xdecode", seed=5))
    long, short = run.results[1::2], run.results[::2]
    assert sum(record.pair for record in long) >= 18
    assert sum(record.pair for record in short) <= 2


# -- forms of requests


def test_several_answers_are_as_many_sequences_with_one_prompt(calls):
    run = replay(workload(request(tokens=320, output=50, units=range(20), sequences=3)), make_setup(workers=1))
    (result,), (worker,) = run.results, run.workers
    assert (result.completed, result.output_tokens, result.cached_tokens) == (True, 150, 0)
    assert (worker.requests, worker.prompt_tokens, worker.generated_tokens) == (1, 320, 150)
    (submitted,) = [call[1] for call in calls if call[0] == "submit"]
    assert submitted.sequences == 3
    assert [call[2] for call in calls if call[0] == "settled"] == [Usage(320, 150, 0)]
    assert sum(call[2] for call in calls if call[0] == "output") <= 150


def test_of_an_answer_that_is_not_streamed_the_scheduler_hears_its_end_only(calls):
    run = replay(workload(request(output=300, streams=False)), make_setup(workers=1))
    assert run.results[0].completed
    assert {call[0] for call in calls} - {"worker_changed"} == {"submit", "settled"}
    assert not next(call[1] for call in calls if call[0] == "submit").streams


def test_served_names_share_the_worker_but_no_kv():
    units = range(20)
    traffic = workload(
        request(tokens=330, units=units),
        request(5.0, tokens=330, units=units, served_name="adapter-1"),
        request(10.0, tokens=330, units=units, served_name="adapter-1"),
        request(15.0, tokens=330, units=units),
    )
    traffic = dataclasses.replace(traffic, served_names=("model", "adapter-1"))
    run = replay(traffic, make_setup(workers=1))
    assert [result.cached_tokens for result in run.results] == [0, 0, 320, 320]


def test_with_text_keys_lengths_are_estimated_and_learned(calls):
    traffic = open_workload("poisson:requests=120,shared=0,input_tokens=800")
    replay(traffic, make_setup(workers=2, keys="text"))
    views = [call[1] for call in calls if call[0] == "submit"]
    assert {view.key.width for view in views} == {1}
    errors = [
        abs(view.input_tokens - each.input_tokens) / each.input_tokens
        for view, each in zip(views, traffic.requests, strict=True)
    ]
    assert 0.02 < sum(errors) / len(errors) < 0.2
    usages = [call[2].input_tokens for call in calls if call[0] == "settled"]
    assert sorted(usages) == sorted(each.input_tokens for each in traffic.requests)
