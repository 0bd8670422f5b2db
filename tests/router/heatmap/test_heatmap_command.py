"""`fairlead heatmap show` and `measure`: over sockets against simulated workers, interrupted, resumed, refused."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from typer.testing import CliRunner

from policies.estimates.heatmap import Heatmap, Layer
from policies.estimates.heatmap_file import parse
from router.commands.cli import cli
from router.heatmap import sweep as sweep_module
from router.heatmap.file import read_heatmap, write_heatmap
from router.heatmap.sweep import Findings, Place, Shape, Side, Sweep, side
from workers.simulator.connector import KvTransfer
from workers.simulator.faults import Fault
from workers.simulator.server import SimulatorConfig, simulated_worker

MAP = Heatmap((100, 1000), (0.1, 1.0), (Layer(1.0, ((0.1, -0.2), (0.3, None))),), {"model": "m"})
SMALL = ("--prompt-lengths", "16,64", "--ratios", "0.125,0.5", "--rates", "50,100", "--requests", "3")
BATCHES = 8


async def heatmap(*arguments):
    return await asyncio.to_thread(CliRunner().invoke, cli, ["heatmap", *map(str, arguments)])


async def refusal(*arguments, code=2):
    result = await heatmap(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    return result.stderr


# -- show


async def test_show_prints_a_row_per_length_and_the_conditions(tmp_path):
    file, picture = tmp_path / "map.json", tmp_path / "map.png"
    write_heatmap(file, MAP)
    result = await heatmap("show", file, "--plot", picture)
    assert result.exit_code == 0, result.output
    for words in ("model: m", "+10", "-20", "+30", "(-20)", "1,000"):
        assert words in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


async def test_show_without_a_file_shows_the_one_that_ships():
    result = await heatmap("show")
    assert "profile: h100-llama-3.1-8b" in result.stdout
    assert "have the same sign at every rate" in result.stdout


async def test_show_refuses_what_is_no_heatmap(tmp_path):
    file = tmp_path / "map.json"
    assert "cannot read" in await refusal("show", file)
    file.write_text('{"profile": {}}')
    assert f"{file}: not a heatmap" in await refusal("show", file)
    write_heatmap(file, MAP)
    result = await heatmap("show", file, "--plot", tmp_path / "no" / "such.png")
    assert (result.exit_code, "cannot draw" in result.stderr) == (2, True)


# -- measure


@pytest.fixture
async def fleet(monkeypatch):
    """Two colocated workers and a pair; `urls` are the options that name them. No batch is too much for CI."""
    monkeypatch.setattr(sweep_module, "_BEHIND", 1e9)
    pair = KvTransfer()
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(simulated_worker(SimulatorConfig(profile="instant", kv_transfer=kv)))
            for kv in (None, None, pair, pair)
        ]
        yield workers


def urls(fleet):
    a, b, p, d = (worker.url for worker in fleet)
    return "--colocated", f"{a},{b}", "--disaggregated", f"P={p},D={d}"


async def test_both_sides_are_measured_and_every_prompt_of_a_pair_is_fetched(fleet, tmp_path):
    out = tmp_path / "map.json"
    result = await heatmap("measure", *urls(fleet), *SMALL, "--out", out, "--hardware", "none at all")
    assert result.exit_code == 0, result.output
    measured = read_heatmap(out).measured
    assert (measured.prefill_tokens, measured.ratios) == ((16, 64), (0.125, 0.5))
    assert [layer.rate_per_s for layer in measured.layers] == [50.0, 100.0]
    assert measured.conditions["hardware"] == "none at all"
    assert measured.conditions["batches_done"] == measured.conditions["batches"] == BATCHES
    prefill, decode = (worker.engine for worker in fleet[2:])
    requests = 1 + BATCHES * 6  # one to warm up; 3 for each of 2 workers
    assert decode.counters.pulled_tokens == 16 + 6 * 2 * 2 * (16 + 64)
    assert (prefill.held, prefill.leases_expired) == (0, 0)
    assert sum(prefill.counters.ended.values()) == sum(decode.counters.ended.values()) == requests
    served = [sum(worker.engine.counters.ended.values()) for worker in fleet[:2]]
    assert served == [1 + BATCHES * 3] * 2
    assert all(worker.engine.counters.prefix_hits == 0 for worker in fleet)


async def test_a_measurement_that_was_interrupted_goes_on_where_it_was(fleet, tmp_path):
    out = tmp_path / "map.json"
    assert (await heatmap("measure", *urls(fleet), *SMALL, "--out", out)).exit_code == 0
    document = json.loads(out.read_text())
    marks = document["layers"][0]["gains"] = [[7.0, 7.0], [7.0, 7.0]]
    document["layers"][1]["gains"] = [[7.0, None], [None, None]]
    document["conditions"]["batches_done"] = 5
    out.write_text(json.dumps(document))
    before = sum(fleet[0].engine.counters.ended.values())
    assert "is there already" in await refusal("measure", *urls(fleet), *SMALL, "--out", out)
    result = await heatmap("measure", *urls(fleet), *SMALL, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    gains = [layer.gains for layer in read_heatmap(out).measured.layers]
    assert [list(map(list, gains[0])), gains[1][0][0]] == [marks, 7.0]
    assert 7.0 not in (gains[1][0][1], *gains[1][1])
    assert sum(fleet[0].engine.counters.ended.values()) - before == 1 + 3 * 3


async def test_only_the_same_measurement_goes_on(fleet, tmp_path):
    out = tmp_path / "map.json"
    measure = ("measure", *urls(fleet), "--out", out)
    assert (await heatmap(*measure, *SMALL)).exit_code == 0
    other = (*SMALL[:-1], "4")
    assert "requests_per_worker 3, now it would be 4" in await refusal(*measure, *other, "--resume")
    other = ("--prompt-lengths", "16,32", *SMALL[2:])
    assert "prompt lengths (16, 64), now it would be (16, 32)" in await refusal(*measure, *other, "--resume")
    assert "seed 0, now it would be 1" in await refusal(*measure, *SMALL, "--resume", "--seed", 1)
    write_heatmap(out, MAP)
    assert "now it would be" in await refusal(*measure, *SMALL, "--resume")
    out.write_text("{}")
    assert "not a heatmap" in await refusal(*measure, *SMALL, "--resume")


async def test_ctrl_c_leaves_a_file_that_can_be_gone_on_with(fleet, tmp_path):
    out = tmp_path / "map.json"
    slow = ("--prompt-lengths", "16,64", "--ratios", "0.125,0.5", "--rates", "5,100", "--requests", "3")
    words = [sys.executable, "-c", "from router.commands.cli import main; main()", "heatmap", "measure"]
    words += [*urls(fleet), *slow, "--out", str(out)]
    child = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not out.exists():
        assert child.returncode is None, (await child.communicate())[1]
        await asyncio.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    stdout, stderr = await child.communicate()
    assert (child.returncode, stdout) == (130, b"")
    assert b"stopped; " in stderr
    assert b"--resume goes on with it" in stderr
    done = parse(out.read_text()).measured.conditions["batches_done"]
    assert 1 <= done < BATCHES
    result = await heatmap("measure", *urls(fleet), *slow, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert read_heatmap(out).measured.conditions["batches_done"] == BATCHES


async def test_a_prefill_worker_that_hands_nothing_over_is_noted(fleet, tmp_path):
    a, b, p, d = (worker.url for worker in fleet)
    sides = ("--colocated", p, "--colocated", d, "--disaggregated", f"D={b}, P={a}")
    result = await heatmap("measure", *sides, *SMALL, "--out", tmp_path / "map.json")
    assert f"note: {a} does not say where the KV of a prompt is" in result.stderr


async def test_a_worker_that_fails_stops_the_measurement_with_one_message(fleet, tmp_path):
    out = tmp_path / "map.json"
    measure = ("measure", *urls(fleet), *SMALL, "--out", out)
    fleet[3].set_fault(Fault("die_mid_stream", after_tokens=1))
    assert "broke" in await refusal(*measure, code=1)
    assert not out.exists()


async def test_what_is_asked_wrongly_is_refused(fleet, tmp_path):
    a, _, p, d = (worker.url for worker in fleet)
    to = ("--out", tmp_path / "map.json")
    assert "both sides need the same number" in await refusal(
        "measure", "--colocated", a, "--disaggregated", f"P={p},D={d}", *to
    )
    assert "a worker is named twice" in await refusal(
        "measure", "--colocated", f"{a},{p}", "--disaggregated", f"P={p},D={d}", *to
    )
    for text in ("P=x", "P=x,D=", "x,y", "P=x,D=y,E=z", "P=x,P=y"):
        assert "expected P=URL,D=URL" in await refusal("measure", "--colocated", a, "--disaggregated", text, *to)
    sides = urls(fleet)
    assert "there is no" in await refusal("measure", *sides, *to, "--resume")
    assert "--ratios 1,x: expected positive numbers" in await refusal("measure", *sides, *to, "--ratios", "1,x")
    assert "--rates 0: expected" in await refusal("measure", *sides, *to, "--rates", "0")
    assert "--rates inf: expected" in await refusal("measure", *sides, *to, "--rates", "inf")
    assert "--prompt-lengths 1.5: expected" in await refusal("measure", *sides, *to, "--prompt-lengths", "1.5")
    unreachable = ("--colocated", f"{a},http://127.0.0.1:1", "--disaggregated", f"P={p},D={d}")
    assert "connection refused" in await refusal("measure", *unreachable, *to, code=1)
    assert "no batch fits the workers" in await refusal("measure", *sides, *to, "--prompt-lengths", "9999999")


# -- the sweep


def test_both_sides_get_the_same_moments_at_the_rate_that_was_asked():
    sweep = Sweep((100,), (0.1,), (2.0,), requests=500)
    (place,) = sweep.places()
    shape = sweep.shape(place, 2)
    assert shape == sweep.shape(place, 2)
    assert (shape.prefill_tokens, shape.output_tokens, len(shape.arrivals)) == (100, 10, 1000)
    assert shape.arrivals[0] == 0.0
    assert 1000 / shape.arrivals[-1] == pytest.approx(4.0, rel=0.1)


def test_shapes_that_unreachable_can_run_are_left_out():
    sweep = Sweep((10, 1000), (0.01, 1.0, 9.0), (1.0,), most_output_tokens=5000, most_tokens=1500)
    assert [(place.row, place.column) for place in sweep.places()] == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("wrong", [{"ratios": ()}, {"rates_per_s": (2.0, 1.0)}, {"prefill_tokens": (0, 1)}])
def test_a_sweep_that_makes_no_map_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sweep(**wrong)


def test_a_gain_is_the_ratio_of_mean_times_and_a_batch_that_unreachable_keeps_up_with_has_none():
    sweep = Sweep((100, 200), (0.1, 1.0), (1.0,))
    found = Findings(sweep)
    shape = Shape(100, 10, (0.0, 10.0, 20.0))
    assert not found.any
    found.add(
        Place(0, 0, 0), shape, side(shape.arrivals, (1.5, 11.5, 21.5)), side(shape.arrivals, (1.0, 11.0, 21.0))
    )
    found.add(Place(0, 0, 1), shape, Side(30.0, 80.0), Side(25.0, 70.0))
    assert found.gains == {Place(0, 0, 0): pytest.approx(0.5), Place(0, 0, 1): None}
    assert found.heatmap({}).layers[0].gains == ((pytest.approx(0.5), None), (None, None))
