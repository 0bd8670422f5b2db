"""KV that goes from one engine to another, in virtual time."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.simulator.engine import Engine
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import EngineConfig, EngineRequest, Reason

H100 = PROFILES["h100-llama-3.1-8b"]
LEASE_S = 3.0


def engine(**changes):
    limits = {"kv_blocks": 24, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    return Engine(EngineConfig(**{**limits, "max_model_len": 64, "kv_lease_s": LEASE_S, **changes}), H100)


def request(name, prompt=10, output=5, **changes):
    ids = list(range(prompt)) if isinstance(prompt, int) else prompt
    return EngineRequest(name, ids, max_tokens=output, **{"ignore_eos": True, **changes})


def run(one, until=float("inf")):
    results = []
    while (at := one.next_event()) is not None and at <= until:
        results += one.advance(at)
    return results


def end_of(sequence, one):
    run(one)
    assert sequence.done
    return sequence.finished_at


def test_a_prefill_ends_at_its_first_token_and_holds_its_blocks():
    one = engine()
    sequence = one.add(request("a", prompt=10, part="prefill"), 0.0)
    run(one, until=1.0)
    assert sequence.done
    assert sequence.reason is Reason.LENGTH
    assert one.counters.generation_tokens == 1
    assert one.running == 0
    assert (one.held, one.kv_blocks_used) == (1, 3)


def test_a_prefill_that_ends_by_itself_says_so():
    one = engine()
    sequence = one.add(request("a", ignore_eos=False, output_tokens=1, part="prefill"), 0.0)
    run(one, until=1.0)
    assert sequence.reason is Reason.STOP


def test_what_was_fetched_is_free_and_cannot_be_fetched_again():
    one = engine()
    one.add(request("a", part="prefill"), 0.0)
    run(one, until=1.0)
    assert one.fetched("a", 1.0)
    assert (one.held, one.kv_blocks_used) == (0, 0)
    assert not one.fetched("a", 1.0)
    assert one.leases_expired == 0


def test_a_lease_ends_by_itself():
    one = engine()
    sequence = one.add(request("a", part="prefill"), 0.0)
    run(one, until=1.0)
    assert one.next_event() == pytest.approx(sequence.finished_at + LEASE_S)
    assert run(one) == []
    assert (one.held, one.kv_blocks_used, one.leases_expired) == (0, 0, 1)
    assert not one.fetched("a", 10.0)


@pytest.mark.parametrize("fetched_at", [1.0, None])
def test_who_finds_no_block_beside_a_lease_waits_for_its_end(fetched_at):
    one = engine(kv_blocks=16, max_num_batched_tokens=64)
    first = one.add(request("a", prompt=60, output=1, part="prefill"), 0.0)
    second = one.add(request("b", prompt=[7] * 40, output=2), 0.1)
    run(one, until=1.0)
    assert not second.running
    if fetched_at is not None:
        one.fetched("a", fetched_at)
    free_at = fetched_at or first.finished_at + LEASE_S
    assert free_at < end_of(second, one) < free_at + 0.1


def test_a_pulled_prompt_computes_nothing_and_waits_for_its_transfer():
    one = engine()
    sequence = one.add(request("a", prompt=40, output=1, part="decode", transfer_s=0.5), 1.0)
    assert one.next_event() == pytest.approx(1.5)
    assert (one.waiting, one.deferred, one.running) == (1, 1, 0)
    assert one.kv_blocks_used == 10
    assert end_of(sequence, one) == pytest.approx(1.5 + H100.step_s(0, 0, 1, 40, 1), rel=0.01)
    assert sequence.pulled == 40
    assert one.counters.pulled_tokens == 40
    assert (one.waiting, one.deferred, one.kv_blocks_used) == (0, 0, 0)


def test_the_transfer_follows_from_the_profile_and_leaves_out_what_is_here_already():
    one = Engine(EngineConfig(kv_lease_s=LEASE_S), H100)
    pulled = one.add(request("a", prompt=1600, output=1, part="decode"), 0.0)
    assert end_of(pulled, one) > H100.transfer_s(1600)
    again = one.add(request("b", prompt=list(range(1600)) + [5] * 16, output=1, part="decode"), 10.0)
    run(one)
    assert (again.cached, again.pulled) == (1600, 16)


def test_a_pulled_prompt_is_cached_prefix_afterwards():
    one = engine()
    one.add(request("a", prompt=16, output=1, part="decode", transfer_s=0.1), 0.0)
    run(one)
    later = one.add(request("b", prompt=[*range(16), 99], output=1), 5.0)
    run(one)
    assert later.cached == 16


def test_others_go_on_during_a_transfer_and_it_starts_with_the_step_after_its_end():
    one, alone = engine(), engine()
    for each in (one, alone):
        each.add(request("long", prompt=4, output=40), 0.0)
    sequence = one.add(request("a", prompt=[3] * 8, output=1, part="decode", transfer_s=0.05), 0.0)
    results = run(one)
    assert len(run(alone)) < len(results)
    assert 0.05 < sequence.first_at < 0.05 + 3 * H100.step_s(1, 50, 16)


def test_a_transfer_takes_no_slot_and_then_waits_for_one():
    one = engine(max_num_seqs=1)
    pulled = one.add(request("a", prompt=[3] * 8, output=1, part="decode", transfer_s=0.001), 0.0)
    busy = one.add(request("busy", prompt=4, output=20), 0.0)
    run(one)
    assert pulled.first_at > busy.finished_at


def test_a_prompt_that_has_arrived_starts_when_the_last_that_runs_has_to_give_way():
    one = engine(kv_blocks=16, max_num_seqs=1, max_num_batched_tokens=64)
    pulled = one.add(request("a", prompt=[3] * 56, output=4, part="decode", transfer_s=0.001), 0.0)
    runs = one.add(request("runs", prompt=8, output=20), 0.0)
    run(one)
    assert runs.done
    assert pulled.done
    assert one.counters.preemptions > 0


@pytest.mark.parametrize("at", [0.1, 0.25])
def test_an_aborted_transfer_gives_its_blocks_back(at):
    one = engine(max_num_seqs=1)
    one.add(request("a", prompt=40, part="decode", transfer_s=0.2), 0.0)
    one.add(request("busy", prompt=4, output=50), 0.0)
    run(one, until=at)
    assert one.abort("a", at)
    run(one)
    assert (one.waiting, one.running, one.kv_blocks_used) == (0, 0, 0)


work = st.lists(
    st.fixed_dictionaries(
        {
            "gap": st.floats(0, 0.05),
            "prompt": st.integers(1, 40),
            "output": st.integers(1, 20),
            "part": st.sampled_from(["whole", "prefill", "decode"]),
            "transfer_s": st.floats(0, 0.2),
            "abort_after": st.one_of(st.none(), st.floats(0, 0.3)),
            "fetch_after": st.one_of(st.none(), st.floats(0, 1.0)),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(work, st.integers(16, 26))
def test_whatever_comes_everything_ends_and_every_block_is_free(items, kv_blocks):  # noqa: C901
    one, acts, now = engine(kv_blocks=kv_blocks), [], 0.0
    for index, item in enumerate(items):
        now += item["gap"]
        acts.append((now, index, "add"))
        if item["abort_after"] is not None:
            acts.append((now + item["abort_after"], index, "abort"))
        if item["fetch_after"] is not None:
            acts.append((now + item["fetch_after"], index, "fetch"))
    sequences, ended = {}, []

    def pass_time(until):
        while (at := one.next_event()) is not None and at <= until:
            for result in one.advance(at):
                ended.extend(sequence.request.id for sequence in result.finished)
        assert one.kv_blocks_used <= kv_blocks

    for at, index, act in sorted(acts):
        pass_time(at)
        item, name = items[index], str(index)
        if act == "add":
            asked = replace(request(name, item["prompt"], item["output"]), part=item["part"])
            sequences[name] = one.add(replace(asked, transfer_s=item["transfer_s"]), at)
        elif act == "abort":
            if one.abort(name, at):
                ended.append(name)
        else:
            one.fetched(name, at)
    pass_time(float("inf"))
    assert sorted(ended) == sorted(sequences)
    assert (one.waiting, one.running, one.held, one.kv_blocks_used) == (0, 0, 0, 0)
