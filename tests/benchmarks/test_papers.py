"""The papers' orderings: the bound bounds, each part runs, tables and pictures take what the parts give."""

import itertools
import json
import math
import sys
from array import array
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.papers import __main__ as papers
from benchmarks.papers import arena, d2lpm, dist_sched, memory, optima, plots, small_cases
from benchmarks.papers.bound import Job, Load, by_count, by_mean_busy_time, lower_bound
from benchmarks.papers.one_worker import serve
from benchmarks.papers.optimum import optimum
from benchmarks.papers.printed_rules import RULES, Case, Outcome, halves, run
from benchmarks.papers.runner import Runner, stacked
from benchmarks.papers.tables import markdown, with_spread
from policies.estimates.answer_length import Length
from router.lab.comparison import Source
from router.lab.setup import make_setup
from router.lab.workload import Request, Workload

TINY = st.builds(Job, prompt=st.integers(0, 5), answer=st.integers(1, 3), release=st.integers(0, 3).map(float))


def by_trying(jobs, limit):
    """By trying every start of every job: from its release on, each could wait for all others in turn."""
    latest = math.ceil(max(job.release for job in jobs)) + sum(job.answer for job in jobs)
    starts = [range(math.ceil(job.release), latest - job.answer + 1) for job in jobs]
    return min(
        sum(start + job.answer for job, start in zip(jobs, chosen, strict=True))
        for chosen in itertools.product(*starts)
        if feasible(jobs, chosen, limit)
    )


def feasible(jobs, starts, limit):
    runs = list(zip(jobs, starts, strict=True))
    moments = range(1, max(start + job.answer for job, start in runs) + 1)
    return all(
        sum(job.prompt + at - start for job, start in runs if start < at <= start + job.answer) <= limit
        for at in moments
    )


# -- the bound


@settings(max_examples=60, deadline=None)
@given(st.lists(TINY, min_size=1, max_size=3), st.integers(8, 14))
def test_no_schedule_is_better_than_the_bound(jobs, limit):
    assert lower_bound(jobs, limit) <= by_trying(jobs, limit) + 1e-9


def test_the_bound_is_exact_where_one_job_fills_the_memory():
    jobs = [Job(9, 1), Job(9, 1), Job(9, 1)]
    assert lower_bound(jobs, 10) == pytest.approx(1 + 2 + 3)
    assert by_trying(jobs, 10) == 6


def test_the_bound_knows_that_an_answer_takes_its_steps():
    assert lower_bound([Job(1, 50), Job(1, 3)], 10_000) == pytest.approx(53)


def test_volume_and_tail_are_the_sums_they_stand_for():
    for prompt, answer in ((0, 1), (3, 1), (3, 7), (100, 40)):
        held = [prompt + step for step in range(1, answer + 1)]
        job = Job(prompt, answer)
        assert job.volume == sum(held)
        moments = sum((step - 0.5) * tokens for step, tokens in enumerate(held, 1))
        assert job.tail == pytest.approx(answer - moments / sum(held))


def test_the_relaxed_machine_interrupts_a_long_job_for_a_short_one():
    loads = [Load(10.0), Load(1.0, release=2.0)]
    assert by_count(loads, [0.0, 0.0]) == pytest.approx(3 + 11)
    assert by_mean_busy_time(loads) == pytest.approx(2.5 + (2 * 1 + 8 * 7) / 10)


# -- unit steps


@pytest.mark.parametrize("queue", memory.QUEUES)
def test_no_order_beats_the_bound_nor_overflows_when_lengths_are_known(queue):
    for kind, seed in itertools.product(memory.KINDS, (1, 2)):
        jobs, lengths, limit = memory.instance(memory.Instance(kind, seed, jobs=25))
        outcome = serve(jobs, lengths, limit, queue)
        assert outcome.total_steps >= lower_bound(jobs, limit)
        assert outcome.preemptions == 0


def test_a_unit_step_is_a_token_of_everybody():
    jobs = [Job(10, 4), Job(10, 7)]
    assert serve(jobs, [Length(4, 4, 4), Length(7, 7, 7)], 1000, "fcfs").total_steps == 4 + 7


def test_an_interval_holds_the_truth_and_is_as_wide_as_it_says():
    chance = Random(1)
    for width, answer in itertools.product((2, 8), range(1, 400, 7)):
        lower, expected, upper = memory.believed(answer, width, chance)
        assert lower <= answer <= upper
        assert lower <= expected <= upper
        assert upper >= width * lower


@pytest.mark.parametrize("queue", ["mc_sf", "shortest_first", "svf"])
def test_an_order_that_is_served_starts_whom_its_rule_starts_when_all_memory_is_used(queue):
    for seed in (1, 2):
        jobs, lengths, limit = memory.instance(memory.Instance("long prompts, short answers", seed, jobs=30))
        served = serve(jobs, lengths, limit, queue, {"kv_margin": 0.0})
        assert served.total_steps == run(Case(jobs, lengths, limit), RULES[queue]).total_steps


# -- rules as printed


def exact(jobs, limit):
    return Case(jobs, [Length(job.answer, job.answer, job.answer) for job in jobs], limit)


def test_mc_sf_stops_at_the_first_job_that_does_not_fit_and_svf_passes_it():
    jobs = [Job(8, 1), Job(8, 1), Job(1, 3)]
    assert run(exact(jobs, 13), RULES["mc_sf"]).total_steps == 1 + 2 + 4
    assert run(exact(jobs, 13), RULES["svf"]).total_steps == 3 + 1 + 2


def test_a_max_evicts_nobody_and_a_min_evicts_and_begins_again():
    case = Case([Job(2, 6), Job(2, 6)], [Length(2, 4, 6)] * 2, 12)
    # The second waits until its end fits beside the end of the first: it starts after step 4.
    assert run(case, RULES["amax"]) == Outcome(6 + 10, 0)
    # Both start; with five tokens each they would hold 14. One loses its four, and begins again after step 4.
    assert run(case, RULES["amin"]) == Outcome(6 + 10, 1)


def test_one_bit_tells_halves_apart_and_nothing_else():
    assert halves(exact([Job(1, 2), Job(1, 4), Job(1, 10), Job(1, 14)], 100)) == [3, 3, 12, 12]
    assert halves(exact([Job(1, 5), Job(1, 5)], 100)) == [5, 5]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_ends_whatever_it_believes_and_beats_no_optimum(rule):
    for number in range(3):
        jobs, limit = small_cases.drawn(small_cases.Small("log-normal", 7, number))
        least = lower_bound(jobs, limit)
        for width in (1, 8):
            chance = Random(number)
            case = Case(jobs, [memory.believed(job.answer, width, chance) for job in jobs], limit)
            assert run(case, rule).total_steps >= least


def test_a_job_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="does not fit into 10 tokens"):
        run(exact([Job(9, 2)], 10), RULES["fcfs"])
    with pytest.raises(ValueError, match="does not fit into 10 tokens"):
        optimum([Job(9, 2)], 10)


# -- the optimum


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.builds(Job, prompt=st.integers(0, 5), answer=st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(8, 14),
)
def test_the_integer_program_finds_what_trying_every_schedule_finds(jobs, limit):
    for exchanges in (0, 20):
        found = optimum(jobs, limit, exchanges=exchanges)
        assert found.proven
        assert found.total == by_trying(jobs, limit)


def test_the_optimum_lies_between_the_bound_and_every_rule():
    jobs, limit = small_cases.drawn(small_cases.Small("equal prompts", 0, 0))
    found = optimum(jobs, limit)
    assert found.proven
    assert lower_bound(jobs, limit) <= found.total
    assert all(run(exact(jobs, limit), rule).total_steps >= found.total for rule in RULES.values())


@pytest.mark.parametrize("kind", small_cases.KINDS)
def test_the_optima_that_are_kept_are_those_of_the_cases(kind):
    case = small_cases.Small(kind, 1, 0)
    assert optima.kept()[case.name] == small_cases.solved(case)


def test_a_case_that_is_not_kept_is_solved_when_it_is_asked_for(monkeypatch):
    case = small_cases.Small("equal prompts", 0, 0)
    known = small_cases.measured(case)
    monkeypatch.setattr(optima, "kept", dict)
    assert small_cases.measured(case) == known


def test_an_optimum_that_is_not_proven_says_how_far_it_may_be_off():
    jobs, limit = small_cases.drawn(small_cases.Small("log-normal", 0, 0))
    found = optimum(jobs, limit, nodes=0, exchanges=0)
    assert lower_bound(jobs, limit) <= found.total
    assert found.bound < found.total


# -- seeds, caches, clients


def test_rows_of_seeds_stack_into_lists():
    rows = [{"a": 1.0, "b": {"c": 2}, "d": None}, {"a": 3.0, "b": {"c": 4}, "d": {"e": 1}}]
    assert stacked(rows) == {"a": [1.0, 3.0], "b": {"c": [2, 4]}, "d": None}
    assert with_spread([1.0, 3.0]) == "2.00 (1.00-3.00)"
    assert with_spread([1000.0], 0) == "1,000"


def test_the_working_set_counts_each_block_once():
    def request(*units):
        return Request(0.0, "anna", array("Q", units).tobytes(), 16 * len(units) + 3, 5)

    workload = Workload("three", 16, [request(1, 2), request(1, 2, 3), request(7)], {"anna": 1.0})
    assert d2lpm.working_set(workload) == 4 * 16
    assert d2lpm.largest(workload) == 4 * 16  # 51 + 5 tokens in full blocks


@pytest.fixture
def arena_trace(tmp_path):
    """A client that floods one worker beside two that ask for little."""
    flood = {"client": "flood", "input_length": 100, "output_length": 400}
    lines = [{"timestamp": 10 * n, **flood} for n in range(300)]
    lines += [
        {"timestamp": 900 + 200 * n, "client": f"light-{n % 2}", "input_length": 50, "output_length": 50}
        for n in range(10)
    ]
    file = tmp_path / "arena.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in sorted(lines, key=lambda line: line["timestamp"])))
    return file


def test_light_clients_are_told_from_others_and_wait_less_where_queues_are_fair(arena_trace):
    with Runner(1, lambda _: None) as runner:
        rows = arena.reproduce(runner, arena_trace, rates=(1.0,))["rates"][1.0]
    assert {row["light"]["clients"] for row in rows.values()} == {2}
    assert {row["others"]["clients"] for row in rows.values()} == {1}
    for fair in ("vtc", "dlpm"):
        assert rows[fair]["light"]["ttft_s"] < rows["fcfs"]["light"]["ttft_s"] / 2


def test_a_part_that_is_not_run_again_keeps_its_results(arena_trace, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["papers", "--jobs", "1", "--arena", str(arena_trace), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--only", "arena"])
    papers.main()
    monkeypatch.setattr(sys, "argv", [*words, "--only", "small"])
    monkeypatch.setitem(papers.PARTS, "small", lambda runner, seeds: {"seeds": list(seeds)})
    papers.main()
    kept = json.loads((out / "papers.json").read_text())
    assert set(kept) == {"arena", "small"}
    assert kept["small"]["seeds"] == [0, 1, 2]
    assert "Clients of Chatbot Arena" in (out / "tables.md").read_text()
    assert "Clients of Chatbot Arena" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--seeds", "0"]])
def test_what_cannot_be_run_is_said(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["papers", *words])
    with pytest.raises(SystemExit):
        papers.main()
    assert "no part nothing" in (said := capsys.readouterr().err) or "--seeds" in said


# -- the lab


def test_no_replay_beats_the_bound_in_seconds():
    row = memory.in_the_lab(memory.Burst(seed=3, queue="svf", burst_s=3.0))
    assert 0 < row["bound_s"] <= row["e2e_s"]["mean"]


def test_each_part_runs_and_is_told(tmp_path):
    shapes = {"judge": d2lpm.Shape(2.0, 3.0, 20_000)}
    with Runner(1, lambda _: None) as runner:
        found = {
            "d2lpm": d2lpm.reproduce(runner, (0,), shapes=shapes, workers=(2,)),
            "dist_sched": dist_sched.reproduce(runner, (0,), rates=(2.0,), duration_s=2.0),
            "memory": memory.reproduce(runner, (0, 1), jobs=8, instances=1, widths=(1, 4), burst_s=1.0),
            "optimum": small_cases.reproduce(runner, (0, 1), instances=1),
        }
    found = json.loads(json.dumps(found))
    text = markdown(found)
    for name in (*d2lpm.COMBINATIONS, *d2lpm.QUANTA, *d2lpm.VARIANTS, *memory.QUEUES, dist_sched.BLIND):
        assert name in text
    assert found["d2lpm"]["s1"]["judge"]["2"][d2lpm.D2LPM]["misbehaving"] is not None
    assert found["d2lpm"]["overload"]["judge"]["2"][d2lpm.VTC]["rejected"] == [0]
    for kind in small_cases.KINDS:
        assert f"{kind}: the optimum of 2 of 2 cases is proven" in text
    pictures = plots.draw(tmp_path, found)
    drawn = {"d2lpm_service", "d2lpm_latency", "d2lpm_caches", "dist_sched", "memory", "optimum"}
    assert {path.stem for path in pictures} == drawn
    assert all(path.stat().st_size > 10_000 for path in pictures)


def test_blind_turns_give_two_of_six_requests_to_the_pairs():
    source = Source("poisson:requests=30,rate=10")
    turns = {"placement": "round_robin", "queue": "fcfs", "binding": "early"}
    setups = (make_setup(roles=roles, **turns) for roles in ("4xmixed", "2xprefill,2xdecode"))
    row = dist_sched.measure_blind(dist_sched.Blind(source, *setups))
    assert row["rejected"] == 0
    assert row["requests"] == 30
    assert row["disaggregated"] == pytest.approx(1 / 3)
