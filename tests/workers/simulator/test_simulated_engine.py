"""The engine in virtual time: what holds for every workload, and what single requests see."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.simulator.engine import Engine
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest, Reason

H100 = PROFILES["h100-llama-3.1-8b"]


def small(**changes):
    given_ = {"kv_blocks": 24, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return EngineConfig(**{**given_, "max_model_len": 64, **changes})


def request(name, prompt=10, output=5, **changes):
    ids = list(range(prompt)) if isinstance(prompt, int) else prompt
    return EngineRequest(name, ids, max_tokens=output, **{"ignore_eos": True, **changes})


def run(engine, until=float("inf")):
    """Advance from event to event and give all results."""
    results = []
    while (at := engine.next_event()) is not None and at <= until:
        results += engine.advance(at)
    return results


arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "gap": st.floats(0, 0.05),
            "family": st.integers(0, 2),
            "prompt": st.integers(1, 50),
            "output": st.integers(1, 30),
            "priority": st.integers(-1, 1),
            "abort_after": st.one_of(st.none(), st.floats(0, 0.3)),
        }
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=120, deadline=None)
@given(arrivals, st.sampled_from(["fcfs", "priority"]), st.integers(16, 30), st.booleans())
def test_every_request_ends_exactly_once_within_the_limits(  # noqa: C901
    work, scheduling, kv_blocks, caching
):
    engine = Engine(small(scheduling=scheduling, kv_blocks=kv_blocks, prefix_caching=caching), H100)
    acts, now = [], 0.0
    for index, item in enumerate(work):
        now += item["gap"]
        acts.append((now, index, "add", item))
        if item["abort_after"] is not None:
            acts.append((now + item["abort_after"], index, "abort", item))
    ended, aborted, sequences, last = [], set(), {}, 0.0

    def advance(now):
        nonlocal last
        while (at := engine.next_event()) is not None and at <= now:
            busy = engine.running
            assert busy <= 4
            assert engine.kv_blocks_used <= kv_blocks
            for result in engine.advance(at):
                assert result.at >= last
                last = result.at
                assert result.decode_tokens / result.steps + result.prefill_tokens <= 16
                ended.extend(sequence.request.id for sequence in result.finished)

    for at, index, act, item in sorted(acts, key=lambda act: act[:3]):
        advance(at)
        if act == "add":
            ids = [item["family"]] * (item["prompt"] // 2) + [index] * (item["prompt"] - item["prompt"] // 2)
            made = request(str(index), ids, min(item["output"], 64 - len(ids)), priority=item["priority"])
            sequences[str(index)] = engine.add(made, at)
        elif engine.abort(str(index), at):
            aborted.add(str(index))
    advance(float("inf"))

    assert sorted([*ended, *aborted]) == sorted(sequences)
    assert engine.kv_blocks_used == engine.running == engine.waiting == 0
    assert engine._scheduler.context == engine._scheduler.decoding == 0
    assert sum(engine.counters.ended.values()) == len(sequences)
    for name, sequence in sequences.items():
        if sequence.cached is not None:
            assert sequence.cached < sequence.prompt_tokens
            assert sequence.cached % 4 == 0
        if name not in aborted:
            assert engine.generated(sequence) == sequence.request.max_tokens
            assert sequence.arrived <= sequence.first_at <= sequence.finished_at


def work_of(seed):
    random = Random(seed)
    for index in range(60):
        prompt = [random.randrange(3)] * random.randrange(1, 30) + [index] * random.randrange(1, 10)
        yield index * 0.01, EngineRequest(str(index), prompt, max_tokens=25)


def trace(engine, drive):
    seen = []
    for at, item in work_of(3):
        drive(engine, at)
        seen.append(engine.add(item, at))
    run(engine)
    return [(s.request.id, s.first_at, s.finished_at, s.target, s.reason, s.cached) for s in seen]


def test_equal_seeds_give_equal_runs_and_other_seeds_other_lengths():
    first = trace(Engine(small(), H100, 1), run)
    assert first == trace(Engine(small(), H100, 1), run)
    assert [row[3] for row in first] != [row[3] for row in trace(Engine(small(), H100, 2), run)]


def test_how_often_the_clock_is_looked_at_changes_nothing():
    def in_small_ticks(engine, until):
        at = getattr(in_small_ticks, "at", 0.0)
        while at < until:
            engine.advance(at)
            at += 0.0007
        in_small_ticks.at = at
        engine.advance(until)

    coarse = trace(Engine(small(), H100, 1), lambda engine, until: engine.advance(until))
    fine = trace(Engine(small(), H100, 1), in_small_ticks)
    assert [row[0] for row in coarse] == [row[0] for row in fine]
    for left, right in zip(coarse, fine, strict=True):
        assert left[3:] == right[3:]
        assert left[1:3] == pytest.approx(right[1:3], abs=1e-9)


def test_a_run_of_decode_steps_takes_as_long_as_the_steps_one_by_one():
    engine = Engine(small(kv_blocks=100, block_size=64, max_model_len=400), H100)
    sequence = engine.add(request("a", 20, 40), 0.0)
    prefill, *decodes = run(engine)
    assert prefill.steps == 1
    assert max(result.steps for result in decodes) > 30
    one_by_one = sum(H100.step_s(1, 20 + token) for token in range(1, 40))
    # 20 prompt tokens are two chunks of at most 16.
    assert sequence.finished_at - sequence.first_at == pytest.approx(one_by_one)


def test_a_late_request_joins_at_the_next_step_not_at_the_end_of_the_run():
    config = small(kv_blocks=100, block_size=64, max_model_len=400)
    engine = Engine(config, H100)
    engine.add(request("a", 10, 60), 0.0)
    engine.advance(engine.next_event())
    planned = engine.next_event()
    late = engine.add(request("b", 8, 2), 0.05)
    assert engine.next_event() < planned
    run(engine)
    step = H100.step_s(1, 70)
    assert late.first_at - 0.05 < 2 * step + H100.prefill_s(8)


def test_a_full_repeat_computes_its_last_block_again():
    engine = Engine(small(), H100)
    engine.add(request("a", 16, 1), 0.0)
    run(engine)
    again = engine.add(request("b", 16, 1), 1.0)
    longer = engine.add(request("c", 18, 1), 2.0)
    run(engine)
    assert again.cached == 12
    assert longer.cached == 16


def test_a_salt_or_an_adapter_shares_with_nobody_else():
    engine = Engine(small(), H100)
    for index, extra in enumerate([{}, {"cache_salt": "s"}, {"lora": "l"}]):
        sequence = engine.add(request(f"{index}", 16, 1, **extra), float(index))
        run(engine)
        assert sequence.cached == 0
    again = engine.add(request("again", 16, 1, cache_salt="s"), 5.0)
    run(engine)
    assert again.cached == 12


def test_the_next_turn_hits_the_blocks_that_the_answer_filled():
    engine = Engine(small(), H100)
    answer = list(range(100, 110))
    engine.add(request("a", 10, 10, reply=lambda start, stop: answer[start:stop]), 0.0)
    run(engine)
    turn = engine.add(request("b", [*range(10), *answer, 1, 2, 3], 1), 9.0)
    run(engine)
    assert turn.cached == 16  # 19 tokens have their KV: the last one was sampled, never computed


def test_names_of_a_trace_hit_like_tokens():
    engine = Engine(small(), H100)
    engine.add(EngineRequest("a", Blocks([1, 2, 3, 4], 14), 4, output_tokens=4), 0.0)
    run(engine)
    turn = engine.add(EngineRequest("b", Blocks([1, 2, 3, 4], 17), 1), 9.0)
    run(engine)
    assert turn.cached == 16


def test_without_blocks_the_latest_is_preempted_and_still_gives_all_its_tokens():
    engine = Engine(small(kv_blocks=16, prefix_caching=False), H100)
    first, second = (engine.add(request(name, 24, 30), 0.0) for name in "ab")
    run(engine)
    assert engine.counters.preemptions
    assert first.finished_at < second.finished_at
    assert engine.generated(second) == 30


def test_priority_orders_the_waiting():
    engine = Engine(small(max_num_seqs=1, scheduling="priority"), H100)
    engine.add(request("running", 4, 8), 0.0)
    engine.next_event()
    for name, priority in [("low", 10), ("mid", 5), ("default", 0), ("high", -5)]:
        engine.add(request(name, 4, 2, priority=priority), 0.001)
    order = [sequence.request.id for result in run(engine) for sequence in result.finished]
    assert order == ["running", "high", "default", "mid", "low"]


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_decodes():
    engine = Engine(small(kv_blocks=64, max_model_len=200), H100)
    engine.add(request("decoding", [7, 7, 7, 7], 30), 0.0)
    engine.advance(engine.next_event())
    engine.add(request("long", 60, 1), 0.0)
    mixed = [result for result in run(engine) if result.prefill_tokens]
    assert [result.prefill_tokens for result in mixed] == [15, 15, 15, 15]
    assert all(result.decode_tokens == 1 for result in mixed)


def test_an_abort_frees_blocks_at_once_and_happens_once():
    engine = Engine(small(), H100)
    engine.add(request("a", 10, 30), 0.0)
    engine.advance(engine.next_event())
    assert engine.kv_blocks_used
    assert engine.abort("a", 0.02)
    assert not engine.abort("a", 0.02)
    assert engine.kv_blocks_used == engine.running == 0
    run(engine)
    assert engine.counters.generation_tokens == 1
    assert engine.counters.ended[Reason.ABORT] == 1


def test_bad_requests_and_limits_are_refused():
    engine = Engine(small(), H100)
    with pytest.raises(ValueError, match="64 tokens"):
        engine.add(request("a", 64), 0.0)
    with pytest.raises(ValueError, match="0 tokens"):
        engine.add(request("a", []), 0.0)
    engine.add(request("a"), 0.0)
    with pytest.raises(ValueError, match="already"):
        engine.add(request("a"), 0.0)
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        small(max_num_batched_tokens=3)
    with pytest.raises(ValueError, match="cannot hold"):
        small(kv_blocks=15)


def test_the_context_limit_cuts_the_output():
    engine = Engine(small(), H100)
    sequence = engine.add(request("a", 60, 30), 0.0)
    run(engine)
    assert engine.generated(sequence) == 4
    assert sequence.reason is Reason.LENGTH


def test_profiles_have_the_right_order_and_shape():
    h100, a100 = H100, PROFILES["a100-llama-3.1-8b"]
    assert h100.prefill_s(4096) < a100.prefill_s(4096)
    assert 0.005 < h100.step_s(1, 1000) < 0.010 < a100.step_s(1, 1000) < 0.020
    linear = 2 * (h100.prefill_s(8192) - h100.overhead_s)
    assert h100.prefill_s(16384) - h100.overhead_s > linear
    assert h100.prefill_s(8192, cached=8192) > h100.prefill_s(8192)
