"""Each fault, seen from the client's side."""

import asyncio
import json
import os

import httpx
import pytest

from workers.simulator.faults import Fault, Faults
from workers.simulator.server import SimulatorConfig, simulated_worker

BODY = {"prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": True}
H100 = SimulatorConfig(profile="h100-llama-3.1-8b", max_model_len=8192)


@pytest.fixture
async def worker():
    async with simulated_worker() as one:
        yield one


@pytest.fixture
async def client(worker):
    async with httpx.AsyncClient(base_url=worker.url, timeout=5, verify=False) as one:
        yield one


async def complete(client, **more):
    return await client.post("/v1/completions", json={**BODY, **more})


async def until(fact):
    for _ in range(1000):
        if fact():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come to be")


async def settle(worker):
    await until(lambda: not worker.state()["running"])


async def test_error_500_hits_as_often_as_asked_and_spares_the_probes(worker, client):
    worker.set_fault(Fault("error_500", times=2))
    assert [(await complete(client)).status_code for _ in range(3)] == [500, 500, 200]
    worker.set_fault(Fault("error_500", probes=True))
    assert (await client.get("/health")).status_code == 500


async def test_a_refused_port_opens_again(worker, client):
    assert (await complete(client)).status_code == 200
    worker.set_fault(Fault("refuse", for_s=0.3))
    await asyncio.sleep(0.02)  # the client sees its idle connection close
    with pytest.raises(httpx.ConnectError):
        await complete(client)
    await asyncio.sleep(0.4)
    assert (await complete(client)).status_code == 200


@pytest.mark.parametrize("turns", range(5))
async def test_a_port_that_closes_while_it_opens_again_leaves_nothing_behind_in_the_loop(turns):
    """A closed socket that the loop still watches breaks the next socket with its number."""
    async with simulated_worker(SimulatorConfig()) as worker:
        worker.set_fault(Fault("refuse"))
        await asyncio.sleep(0.02)
        worker.clear_fault()
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.set_fault(Fault("refuse"))
        await asyncio.sleep(0.02)
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", worker.port)
        for watched in asyncio.get_running_loop()._selector.get_map().values():
            os.fstat(watched.fd)


async def test_a_crash_cuts_everything_and_refuses():
    async with simulated_worker(H100) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        call = asyncio.create_task(complete(client, max_tokens=5000))
        await until(lambda: worker.state()["running"])
        worker.set_fault(Fault("crash"))
        with pytest.raises(httpx.TransportError):
            await call
        with pytest.raises(httpx.ConnectError):
            await complete(client)
        await settle(worker)


async def test_a_hang_ends_when_it_is_cleared_and_counts_no_request_before(worker, client):
    worker.set_fault(Fault("hang"))
    call = asyncio.create_task(complete(client))
    await asyncio.sleep(0.1)
    assert not call.done()
    assert worker.state()["running"] == 0
    assert (await client.get("/health")).status_code == 200
    worker.clear_fault()
    assert (await call).json()["usage"]["completion_tokens"] == 20


async def test_a_stream_stalls_after_some_tokens_and_goes_on_when_cleared(worker, client):
    worker.set_fault(Fault("hang", after_tokens=5))
    whole, text = await said(20), ""
    async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
                if len(text.split()) == 5:
                    assert worker.app.faults.current is not None
                    await asyncio.sleep(0.05)
                    worker.clear_fault()
    assert text == whole


async def said(tokens):
    """What a worker without a fault answers."""
    async with simulated_worker() as other, httpx.AsyncClient(base_url=other.url, verify=False) as second:
        return (await complete(second, max_tokens=tokens)).json()["choices"][0]["text"]


@pytest.mark.parametrize("after", [0, 7])
async def test_a_stream_dies_after_some_tokens(worker, client, after):
    worker.set_fault(Fault("die_mid_stream", after_tokens=after))
    text = ""

    async def read(answer):
        nonlocal text
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]

    async with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.TransportError):
            await read(answer)
    assert len(text.split()) == after
    await settle(worker)


async def test_a_whole_answer_dies_before_its_first_byte(worker, client):
    worker.set_fault(Fault("die_mid_stream", times=1))
    with pytest.raises(httpx.TransportError):
        await complete(client)
    assert (await complete(client)).status_code == 200


@pytest.mark.parametrize("after", [0, 4])
async def test_an_error_comes_inside_a_200_stream(worker, client, after):
    worker.set_fault(Fault("error_in_stream", after_tokens=after))
    answer = await complete(client, stream=True)
    assert answer.status_code == 200
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["error"]["code"] == 500
    assert len("".join(json.loads(line)["choices"][0]["text"] for line in lines[:-2]).split()) == after
    await settle(worker)
    assert (await complete(client)).status_code == 500


async def test_a_draining_worker_says_500_while_health_says_200(worker, client):
    worker.set_fault(Fault("draining"))
    answer = await complete(client)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "cannot schedule new futures after shutdown"
    assert (await client.get("/health")).status_code == 200


async def test_a_pause_aborts_what_runs_and_lets_the_rest_hang_while_health_says_200():
    async with simulated_worker(H100) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        call = asyncio.create_task(complete(client, max_tokens=5000))
        await until(lambda: worker.state()["generation_tokens"] >= 3)
        worker.set_fault(Fault("paused"))
        assert (await call).json()["choices"][0]["finish_reason"] == "abort"
        late = asyncio.create_task(complete(client, max_tokens=2))
        await asyncio.sleep(0.1)
        assert not late.done()
        assert (await client.get("/health")).status_code == 200
        worker.clear_fault()
        assert (await late).status_code == 200


async def test_slow_stretches_the_engine_and_the_first_byte(worker, client):
    loop = asyncio.get_running_loop()

    async def timed():
        begun = loop.time()
        await complete(client, max_tokens=100)
        return loop.time() - begun

    normal = await timed()
    worker.set_fault(Fault("slow", factor=30, delay_s=0.05))
    assert await timed() > max(0.3, normal)
    assert worker.live.speed == pytest.approx(1 / 30)
    worker.clear_fault()
    assert worker.live.speed == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_stopping_ends_requests_in_flight_with_abort(stream):
    async with simulated_worker(H100) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        call = asyncio.create_task(complete(client, max_tokens=5000, stream=stream))
        await until(lambda: worker.state()["generation_tokens"] >= 3)
        await worker.stop()
        answer = await call
        assert answer.status_code == 200
        assert '"finish_reason":"abort"' in answer.text
        assert not stream or answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError):
            await complete(client)


async def test_a_shutdown_timeout_lets_requests_finish_and_refuses_new_ones():
    config = SimulatorConfig(profile="h100-llama-3.1-8b", shutdown_timeout_s=5)
    async with simulated_worker(config) as worker, httpx.AsyncClient(base_url=worker.url, verify=False) as client:
        call = asyncio.create_task(complete(client, max_tokens=40))
        await until(lambda: worker.state()["running"])
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.02)
        assert (await complete(client)).status_code == 500
        assert (await call).json()["choices"][0]["finish_reason"] == "length"
        await stopping


async def test_faults_are_set_and_cleared_over_http(worker, client):
    answer = await client.post("/simulator/fault", json={"kind": "error_500", "worker": 0})
    assert answer.status_code == 200
    await asyncio.sleep(0.05)
    assert (await complete(client)).status_code == 500
    assert (await client.get("/simulator/state")).json()["fault"]["kind"] == "error_500"
    assert (await client.delete("/simulator/fault")).status_code == 200
    assert (await complete(client)).status_code == 200
    for bad in ({"kind": "nonsense"}, {"kind": "hang", "what": 1}, {"kind": "hang", "times": 0}):
        assert (await client.post("/simulator/fault", json=bad)).status_code == 400
    assert (await client.post("/simulator/fault", json={"kind": "hang", "worker": 5})).status_code == 400


def test_a_fault_is_read_from_the_command_line():
    assert Fault.from_option("hang") == Fault("hang")
    parsed = Fault.from_option("die_mid_stream:after_tokens=3,times=2,probes=true,for_s=1.5")
    assert parsed == Fault("die_mid_stream", after_tokens=3, times=2, probes=True, for_s=1.5)
    with pytest.raises(ValueError, match="not one of"):
        Fault.from_option("explode")


def test_a_fault_expires_by_time_and_by_count():
    faults = Faults()
    faults.set(Fault("hang", for_s=2.0), 10.0)
    assert faults.peek(11.9) is not None
    assert faults.peek(12.0) is None
    faults.set(Fault("error_500", times=1), 20.0)
    assert faults.take(20.0) == Fault("error_500", times=1)
    assert faults.take(20.0) is None
