"""Pages as several versions of vLLM write them, and pages that no version should write."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from workers.fleet.vllm_metrics import NotMetricsError, merge, parse_metrics

CURRENT = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",minor="12",patchlevel="3",version="3.12.3"} 1.0
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79e+09
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 6.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 1.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="discard_all"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1200.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.79e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 900.0
vllm:num_preemptions_total{engine="0",model_name="tiny"} 2.0
vllm:external_prefix_cache_queries_total{engine="0",model_name="tiny"} 55.0
vllm:request_prompt_tokens_bucket{engine="0",le="1.0",model_name="tiny"} 0.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",kv_cache_size_tokens="65536",\
num_gpu_blocks="2048",prefix_caching_hash_algo="sha256",sliding_window="None"} 1.0
"""


def test_a_current_page_gives_every_figure():
    (scrape,) = parse_metrics(CURRENT, at=12.5).values()
    assert scrape.at == 12.5
    assert (scrape.running, scrape.waiting) == (3, 7)
    assert scrape.kv_usage == 0.25
    assert (scrape.kv_tokens, scrape.block_size) == (65536, 32)
    assert (scrape.prefix_queries, scrape.prefix_hits, scrape.preemptions) == (1200, 900, 2)
    assert scrape.awake
    assert scrape.process_started == 1.79e9


def test_a_page_of_an_old_version_is_read_by_its_older_names():
    page = """\
vllm:num_requests_running{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 0.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:gpu_prefix_cache_queries_total{model_name="m"} 40.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 10.0
vllm:cache_config_info{block_size="16",cpu_offload_gb="0",num_gpu_blocks="573",num_gpu_blocks_override="None"} 1.0
"""
    scrape = parse_metrics(page, 0.0)[0]
    assert (scrape.running, scrape.kv_usage) == (1, 0.5)
    assert (scrape.prefix_queries, scrape.prefix_hits) == (40, 10)
    assert scrape.kv_tokens == 573 * 16
    assert scrape.awake
    assert scrape.process_started is None


def test_a_page_of_0_20_to_0_23_tells_its_capacity_in_blocks_only():
    page = re.sub(r'kv_cache_size_tokens="65536",', "", CURRENT)
    assert parse_metrics(page, 12.5) == parse_metrics(CURRENT, 12.5)
    uneven = CURRENT.replace('kv_cache_size_tokens="65536"', 'kv_cache_size_tokens="60000"')
    assert parse_metrics(uneven, 12.5)[0].kv_tokens == 60000


def test_the_nixl_connector_shows_before_it_has_moved_anything():
    assert not parse_metrics(CURRENT, 0.0)[0].nixl
    shown = CURRENT + 'vllm:nixl_xfer_time_seconds_count{engine="0",model_name="tiny"} 0.0\n'
    assert parse_metrics(shown, 0.0)[0].nixl
    assert merge(parse_metrics(shown, 0.0).values()).nixl


def test_a_page_with_both_names_of_one_figure_counts_it_once():
    page = """\
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.9
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.1
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 5.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 80.0
"""
    scrape = parse_metrics(page, 0.0)[0]
    assert (scrape.kv_usage, scrape.prefix_queries) == (0.1, 80)


def test_engines_are_told_apart_and_a_configuration_without_engine_holds_for_all():
    page = """\
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 9.0
vllm:engine_sleep_state{engine="1",model_name="m",sleep_state="awake"} 0.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="10"} 1.0
"""
    scrapes = parse_metrics(page, 0.0)
    assert list(scrapes) == [0, 1]
    assert [s.running for s in scrapes.values()] == [1, 2]
    assert [s.waiting for s in scrapes.values()] == [0, 9]
    assert [s.awake for s in scrapes.values()] == [True, False]
    assert [s.kv_tokens for s in scrapes.values()] == [160, 160]


def test_several_model_names_of_one_engine_are_added_up():
    page = """\
vllm:num_requests_running{engine="0",model_name="a"} 2.0
vllm:num_requests_running{engine="0",model_name="b"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.3
vllm:kv_cache_usage_perc{engine="0",model_name="b"} 0.3
"""
    scrape = parse_metrics(page, 0.0)[0]
    assert (scrape.running, scrape.kv_usage) == (5, 0.3)


def test_lines_that_cannot_be_read_are_passed_over():
    page = """\
vllm:num_requests_running{engine="0",model_name="a" 2.0
vllm:num_requests_running{engine="0",model_name="a"}
vllm:num_requests_running{engine="0",model_name="a"} many
vllm:num_requests_running{engine="x",model_name="a"} 9.0
vllm:num_requests_running{engine="0",model_name="odd \\"} name\\", yes"} 4.0 1700000000000
vllm:kv_cache_usage_perc{engine="0",model_name="a"} NaN
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="None"} 1.0
\x00\xff garbage {{{
"""
    scrape = parse_metrics(page, 0.0)[0]
    assert scrape.running == 4
    assert scrape.kv_usage == 0.0
    assert (scrape.block_size, scrape.kv_tokens) == (16, None)


def test_windows_line_ends_are_read_too():
    assert parse_metrics(CURRENT.replace("\n", "\r\n"), 0.0) == parse_metrics(CURRENT, 0.0)


def test_metrics_without_engine_figures_give_no_scrape():
    assert parse_metrics("process_start_time_seconds 1.0\npython_info 1.0\n", 0.0) == {}
    assert parse_metrics("up 1\n", 0.0) == {}


@pytest.mark.parametrize("text", ["", "<html><body>Sign in</body></html>", '{"detail":"Not Found"}', "# only\n"])
def test_what_is_no_metrics_page_is_one_clear_error(text):
    with pytest.raises(NotMetricsError, match="not a Prometheus metrics page"):
        parse_metrics(text, 0.0)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200), st.integers(0, len(CURRENT)))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused(noise, cut):
    for text in (noise, CURRENT[:cut] + noise + CURRENT[cut:]):
        try:
            scrapes = parse_metrics(text, 0.0)
        except NotMetricsError:
            continue
        assert all(0.0 <= s.kv_usage <= 1.0 for s in scrapes.values())


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.text(max_size=20)), st.integers(0, 10**6), min_size=1))
@settings(max_examples=60, deadline=None)
def test_what_the_reference_client_writes_is_what_is_read(counts):
    registry = CollectorRegistry()
    gauge = Gauge("vllm:num_requests_running", "x", ["engine", "model_name"], registry=registry)
    for (engine, model), count in counts.items():
        gauge.labels(str(engine), model).set(count)
    scrapes = parse_metrics(generate_latest(registry).decode(), 0.0)
    assert {rank: s.running for rank, s in scrapes.items()} == {
        rank: sum(n for (engine, _), n in counts.items() if engine == rank) for rank, _ in counts
    }


def test_lines_of_other_families_are_never_taken_apart(monkeypatch):
    taken = []
    read = parse_metrics.__globals__["_sample"]
    monkeypatch.setitem(parse_metrics.__globals__, "_sample", lambda line: taken.append(line) or read(line))
    bucket = 'vllm:e2e_request_latency_seconds_bucket{engine="0",le="%d.0",model_name="m"} 1.0\n'
    parse_metrics("".join(bucket % n for n in range(20_000)) + CURRENT, 0.0)
    assert taken
    assert not any("e2e_request_latency" in line for line in taken)


def test_engines_addressed_as_one_are_added_up():
    one, two = parse_metrics(CURRENT, 1.0)[0], parse_metrics(CURRENT.replace("0.25", "0.75"), 1.0)[0]
    both = merge([one, two])
    assert (both.running, both.waiting, both.kv_tokens, both.kv_usage) == (6, 14, 131072, 0.75)
    with pytest.raises(ValueError, match="nothing"):
        merge([])
