"""Where events are published: what servers and operators say, and what is wrong with it."""

import pytest

from tests.workers.kv_events.fake_engine import recorded
from workers.kv_events.sources import KvSource, by_rank, read_sources

URL = "http://10.0.0.7:8000/prefix"


def told(**changes):
    return {"0": {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557", **changes}}


def test_a_real_server_says_where_it_publishes():
    sources = read_sources(recorded("0.32.0")["sources"], URL)
    assert sources == {0: KvSource("tcp://10.0.0.7:5557", "tcp://10.0.0.7:5558", "kv-events")}


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "::"])
@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7"),
        ("https://gpu-7.example/a", "gpu-7.example"),
        ("http://[fe80::1]:1", "[fe80::1]"),
    ],
)
def test_all_hosts_become_that_of_the_server(host, url, name):
    [source] = read_sources(
        told(endpoint=f"tcp://{host}:5557", replay_endpoint=f"tcp://{host}:5558"), url
    ).values()
    assert source == KvSource(f"tcp://{name}:5557", f"tcp://{name}:5558")


@pytest.mark.parametrize("endpoint", ["tcp://10.1.1.1:7", "tcp://[fe80::1]:7", "tcp://gpu:7", "ipc:///run/kv"])
def test_an_endpoint_that_can_be_reached_stays_as_it_is(endpoint):
    assert read_sources(told(endpoint=endpoint), URL)[0].endpoint == endpoint


@pytest.mark.parametrize("answer", [{}, told(enable_kv_cache_events=False), told(publisher="null")])
def test_who_publishes_nothing_names_no_source(answer):
    assert read_sources(answer, URL) == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "no JSON object"),
        (None, "no JSON object"),
        ({"first": {}}, "'first' is no rank"),
        ({"0": "tcp://*:5557"}, "'0' is no rank with its settings"),
        ({"0": {}}, "rank 0 names no endpoint"),
        (told(endpoint=None), "rank 0 names no endpoint"),
        (told(endpoint="tcp://*:0"), "names no port"),
        (told(endpoint="tcp://*:*"), "names no port"),
        (told(endpoint="tcp://*:65536"), "names no port"),
        (told(endpoint="inproc://kv"), "neither tcp://HOST:PORT nor ipc://PATH"),
        (told(endpoint="tcp://host"), "neither tcp://HOST:PORT nor ipc://PATH"),
        (told(endpoint="ipc://"), "neither tcp://HOST:PORT nor ipc://PATH"),
        (told(replay_endpoint="udp://*:1"), "udp://"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused_with_the_reason(answer, message):
    with pytest.raises(ValueError, match=message):
        read_sources(answer, URL)


def test_an_operator_names_hosts_to_connect_to():
    with pytest.raises(ValueError, match="names no host"):
        KvSource("tcp://*:5557")
    with pytest.raises(ValueError, match="names no host"):
        KvSource("tcp://10.0.0.7:5557", "tcp://0.0.0.0:5558")


def sources(*ranks):
    return {rank: KvSource(f"tcp://10.0.0.7:{6000 + rank}") for rank in ranks}


def test_each_rank_has_its_own_source():
    assert by_rank(sources(0, 1), 2) == sources(0, 1)
    assert by_rank(sources(0, 1, 2), 2) == sources(0, 1)


def test_the_only_engine_of_a_replica_is_rank_0_here():
    assert by_rank(sources(3), 1) == {0: sources(3)[3]}
    assert by_rank({}, 1) == {}


def test_several_caches_do_not_pass_for_one():
    with pytest.raises(ValueError, match="2 engines with a cache each, and data_parallel is 1"):
        by_rank(sources(0, 1), 1)
