"""The papers' orderings: the bound bounds, each part runs, tables and pictures take what the parts give."""

import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.papers import d2lpm, dist_sched, memory, plots
from benchmarks.papers.bound import Job, Load, by_count, by_mean_busy_time, lower_bound
from benchmarks.papers.one_worker import serve
from benchmarks.papers.runner import Runner
from benchmarks.papers.tables import markdown
from policies.estimates.answer_length import Length
from router.lab.comparison import Source
from router.lab.setup import make_setup

TINY = st.builds(Job, prompt=st.integers(0, 5), answer=st.integers(1, 3), release=st.integers(0, 3).map(float))


def optimum(jobs, limit):
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
    assert lower_bound(jobs, limit) <= optimum(jobs, limit) + 1e-9


def test_the_bound_is_exact_where_one_job_fills_the_memory():
    jobs = [Job(9, 1), Job(9, 1), Job(9, 1)]
    assert lower_bound(jobs, 10) == pytest.approx(1 + 2 + 3)
    assert optimum(jobs, 10) == 6


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


# -- the lab


def test_no_replay_beats_the_bound_in_seconds():
    row = memory.in_the_lab(memory.Burst(seed=3, queue="svf", burst_s=3.0))
    assert 0 < row["bound_s"] <= row["e2e_s"]["mean"]


def test_each_part_runs_and_is_told(tmp_path):
    shapes = {"judge": d2lpm.Shape(2.0, 3.0, 20_000)}
    with Runner(1, lambda _: None) as runner:
        found = {
            "d2lpm": d2lpm.reproduce(runner, 0, shapes=shapes, workers=(2,)),
            "dist_sched": dist_sched.reproduce(runner, 0, rates=(2.0,), duration_s=2.0),
            "memory": memory.reproduce(runner, 0, jobs=8, instances=1, widths=(1, 4), burst_s=1.0),
        }
    text = markdown(found)
    for name in (*d2lpm.COMBINATIONS, *d2lpm.QUANTA, *d2lpm.VARIANTS, *memory.QUEUES, dist_sched.BLIND):
        assert name in text
    assert found["d2lpm"]["s1"]["judge"][2][d2lpm.D2LPM]["misbehaving"] is not None
    assert found["d2lpm"]["overload"]["judge"][2][d2lpm.VTC]["rejected"] == 0
    pictures = plots.draw(tmp_path, found, "a test")
    assert {path.stem for path in pictures} == {"d2lpm_service", "d2lpm_latency", "dist_sched", "memory"}
    assert all(path.stat().st_size > 10_000 for path in pictures)


def test_blind_turns_give_two_of_six_requests_to_the_pairs():
    source = Source("poisson:requests=30,rate=10")
    turns = {"placement": "round_robin", "queue": "fcfs", "binding": "early"}
    setups = (make_setup(roles=roles, **turns) for roles in ("4xmixed", "2xprefill,2xdecode"))
    row = dist_sched.measure_blind(dist_sched.Blind(source, *setups))
    assert row["rejected"] == 0
    assert row["requests"] == 30
    assert row["disaggregated"] == pytest.approx(1 / 3)
