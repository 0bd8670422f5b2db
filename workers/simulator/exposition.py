"""A worker's metrics as Prometheus text, under vLLM's names and labels."""

from collections.abc import Iterable
from typing import Any

from workers.simulator.real_time import Histogram, LiveEngine
from workers.simulator.sequences import Reason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _escape(value: Any) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _sample(name: str, labels: dict[str, Any], value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {float(value)!r}" if inner else f"{name} {float(value)!r}"


def _histogram(name: str, labels: dict[str, Any], histogram: Histogram) -> Iterable[str]:
    yield f"# HELP {name} {name.removeprefix('vllm:').replace('_', ' ')}"
    yield f"# TYPE {name} histogram"
    for bound, count in zip(histogram.bounds, histogram.counts, strict=True):
        yield _sample(f"{name}_bucket", {**labels, "le": float(bound)}, count)
    yield _sample(f"{name}_bucket", {**labels, "le": "+Inf"}, histogram.count)
    yield _sample(f"{name}_count", labels, histogram.count)
    yield _sample(f"{name}_sum", labels, histogram.total)


def exposition(live: LiveEngine, model_name: str, started: float) -> str:
    """Everything that `/metrics` says; `started` is the process's start in Unix time."""
    engine, counters = live.engine, live.engine.counters
    labels: dict[str, Any] = {"engine": "0", "model_name": model_name}
    lines: list[str] = []

    def say(name: str, kind: str, value: float, extra: dict[str, Any] | None = None) -> None:
        if extra is None or not lines or not lines[-1].startswith(f"{name}{{"):
            lines.extend(
                (f"# HELP {name} {name.removeprefix('vllm:').replace('_', ' ')}", f"# TYPE {name} {kind}")
            )
        lines.append(_sample(name, {**labels, **(extra or {})}, value))

    say("vllm:num_requests_running", "gauge", engine.running)
    say("vllm:num_requests_waiting", "gauge", engine.waiting)
    for reason, value in (("capacity", engine.waiting - engine.deferred), ("deferred", engine.deferred)):
        say("vllm:num_requests_waiting_by_reason", "gauge", value, {"reason": reason})
    say("vllm:kv_cache_usage_perc", "gauge", engine.kv_usage)
    for state, value in (("awake", 1), ("weights_offloaded", 0), ("discard_all", 0)):
        say("vllm:engine_sleep_state", "gauge", value, {"sleep_state": state})
    say("vllm:prefix_cache_queries_total", "counter", counters.prefix_queries)
    say("vllm:prefix_cache_hits_total", "counter", counters.prefix_hits)
    say("vllm:num_preemptions_total", "counter", counters.preemptions)
    say("vllm:prompt_tokens_total", "counter", counters.prompt_tokens)
    say("vllm:prompt_tokens_cached_total", "counter", counters.prefix_hits)
    computed = counters.prompt_tokens - counters.prefix_hits - counters.pulled_tokens
    sources = {"local_compute": computed, "local_cache_hit": counters.prefix_hits}
    for source, value in (sources | {"external_kv_transfer": counters.pulled_tokens}).items():
        say("vllm:prompt_tokens_by_source_total", "counter", value, {"source": source})
    say("vllm:external_prefix_cache_hits_total", "counter", counters.pulled_tokens)
    say("vllm:nixl_num_kv_expired_reqs_total", "counter", engine.leases_expired)
    say("vllm:generation_tokens_total", "counter", counters.generation_tokens)
    # vLLM does not count an abort by a client that left; only those by the server itself would appear here.
    ended = {reason.value: counters.ended[reason] for reason in (Reason.STOP, Reason.LENGTH)}
    for value_name in ("stop", "length", "abort", "error", "repetition"):
        finished = {"finished_reason": value_name}
        say("vllm:request_success_total", "counter", ended.get(value_name, 0), finished)
    lines.extend(_histogram("vllm:time_to_first_token_seconds", labels, live.ttft))
    lines.extend(_histogram("vllm:e2e_request_latency_seconds", labels, live.e2e))
    config = engine.config
    lines.extend(("# HELP vllm:cache_config_info cache config", "# TYPE vllm:cache_config_info gauge"))
    cache = {
        "block_size": config.block_size,
        "enable_prefix_caching": config.prefix_caching,
        "engine": "0",
        "kv_cache_size_tokens": config.kv_blocks * config.block_size,
        "num_gpu_blocks": config.kv_blocks,
        "prefix_caching_hash_algo": "sha256",
    }
    lines.append(_sample("vllm:cache_config_info", cache, 1))
    lines.extend(("# HELP process_start_time_seconds start", "# TYPE process_start_time_seconds gauge"))
    lines.append(_sample("process_start_time_seconds", {}, started))
    return "\n".join(lines) + "\n"
