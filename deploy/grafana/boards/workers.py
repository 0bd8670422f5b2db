"""Workers: load, cache, batches and preemptions, why a worker is left out, its GPU and its transfers."""

from deploy.grafana.boards.board import WORKER, Board
from deploy.grafana.boards.panels import Kind, Panel, Query, Unit

_GATEWAY = 'worker=~"($worker)([#@].*)?"'
_VLLM = 'worker=~"$worker"'
_STATES = (
    (5, "up", "green"),
    (4, "suspect", "yellow"),
    (3, "draining", "blue"),
    (2, "starting", "purple"),
    (1, "down", "red"),
)


def _by_worker(metric: str, selector: str = _GATEWAY) -> str:
    return f"sum by (worker) ({metric}{{{selector}}})"


def _rate(metric: str) -> str:
    return f"sum by (worker) (rate({metric}{{{_VLLM}}}[$__rate_interval]))"


_STATE = (
    Panel(
        "State",
        "As the gateway sees it. Good: up; suspect is used only where no better one is left.",
        (
            Query(
                "max by (worker) ("
                + " or ".join(
                    f'{value} * fairlead_worker_state{{{_GATEWAY}, state="{word}"}}' for value, word, _ in _STATES
                )
                + ")",
                "{{worker}}",
            ),
        ),
        Unit.NONE,
        Kind.STATES,
        span=12,
        names=_STATES,
    ),
    Panel(
        "Left out, and why",
        "Workers that get no requests, or only where no better one is left. Good: empty.",
        (Query(f"fairlead_worker_excluded{{{_GATEWAY}}} == 1"),),
        Unit.NONE,
        Kind.TABLE,
        span=6,
    ),
    Panel(
        "Changes of state",
        "Counted by the gateway, also those shorter than a scrape. Good: none outside of rollouts.",
        (
            Query(
                "sum by (server, state) (increase(fairlead_worker_transitions_total"
                '{server=~"$worker"}[$__rate_interval]))',
                "{{server}} {{state}}",
            ),
        ),
        span=6,
    ),
)
_LOAD = (
    Panel(
        "Requests in flight",
        "Sent by the gateway and not ended. Good: even between workers that are alike.",
        (Query(_by_worker("fairlead_worker_requests"), "{{worker}}"),),
    ),
    Panel(
        "Prompt tokens owed",
        "Sent, and their first token not yet seen. Good: about one engine step; the rest waits in the gateway.",
        (Query(_by_worker("fairlead_worker_prefill_owed_tokens"), "{{worker}}"),),
    ),
    Panel(
        "Attempts that failed",
        "By reason; each makes the gateway trust the worker less. Good: 0.",
        (
            Query(
                f"sum by (worker, reason) (rate(fairlead_attempt_failures_total{{{_GATEWAY}}}[$__rate_interval]))",
                "{{worker}} {{reason}}",
            ),
        ),
        Unit.PER_SECOND,
        warn=0.1,
    ),
)
_ENGINE = (
    Panel(
        "KV cache in use",
        "vLLM's own figure, and the gateway's latest reading of it. Good: below 90%; full caches preempt.",
        (
            Query(f"max by (worker) (vllm:kv_cache_usage_perc{{{_VLLM}}})", "{{worker}}"),
            Query(f"max by (worker) (fairlead_worker_kv_usage_ratio{{{_GATEWAY}}})", "as read {{worker}}"),
        ),
        Unit.SHARE,
        warn=0.9,
        bad=0.95,
        most=1,
    ),
    Panel(
        "Batch",
        "Sequences that the engine runs together, and requests that wait inside of it. Good: waiting near 0, as "
        "order and fairness exist only while a request waits in the gateway.",
        (
            Query(f"sum by (worker) (vllm:num_requests_running{{{_VLLM}}})", "running {{worker}}"),
            Query(f"sum by (worker) (vllm:num_requests_waiting{{{_VLLM}}})", "waiting {{worker}}"),
        ),
    ),
    Panel(
        "Preemptions",
        "Requests thrown out of a full cache, to be computed again. Good: 0.",
        (Query(_rate("vllm:num_preemptions_total"), "{{worker}}"),),
        Unit.PER_SECOND,
        warn=0.1,
        bad=1,
    ),
    Panel(
        "Output tokens",
        "Generated per second.",
        (Query(_rate("vllm:generation_tokens_total"), "{{worker}}"),),
        Unit.PER_SECOND,
    ),
    Panel(
        "Prefix cache",
        "Prompt tokens found in the worker's own cache. Good: as high as the traffic allows, and even.",
        (
            Query(
                f"{_rate('vllm:prefix_cache_hits_total')} / {_rate('vllm:prefix_cache_queries_total')}",
                "{{worker}}",
            ),
        ),
        Unit.SHARE,
        most=1,
    ),
    Panel(
        "Age of the gateway's reading",
        "Of the worker's own metrics. Good: below 15 s; older ones are marked stale and not used.",
        (
            Query(f"max by (worker) (fairlead_worker_scrape_age_seconds{{{_GATEWAY}}})", "{{worker}}"),
            Query(f"max by (worker) (fairlead_worker_scrape_stale{{{_GATEWAY}}})", "stale {{worker}}"),
        ),
        Unit.SECONDS,
        warn=15,
    ),
)
_GPU_NAME = "{{Hostname}} GPU {{gpu}}"
_GPU = (
    Panel(
        "GPU busy",
        "Share of time in which something ran, and in which the tensor cores did. Good: busy under load; tensor "
        "cores are busy in prefill.",
        (
            Query("DCGM_FI_PROF_GR_ENGINE_ACTIVE", f"engine {_GPU_NAME}"),
            Query("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", f"tensor {_GPU_NAME}"),
        ),
        Unit.SHARE,
        most=1,
    ),
    Panel(
        "GPU memory bandwidth",
        "Share of time in which memory was read or written: decoding lives on it.",
        (Query("DCGM_FI_PROF_DRAM_ACTIVE", _GPU_NAME),),
        Unit.SHARE,
        most=1,
    ),
    Panel(
        "GPU memory",
        "In use. vLLM takes its share at the start, so good is a flat line.",
        (Query("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)", _GPU_NAME),),
        Unit.SHARE,
        most=1,
    ),
    Panel(
        "GPU power",
        "Watts drawn. A busy GPU far below its fellows is throttled.",
        (Query("DCGM_FI_DEV_POWER_USAGE", _GPU_NAME),),
        Unit.WATTS,
    ),
    Panel(
        "GPU temperature",
        "Good: below 85 °C; above, clocks go down.",
        (Query("DCGM_FI_DEV_GPU_TEMP", _GPU_NAME),),
        Unit.CELSIUS,
        warn=80,
        bad=88,
    ),
    Panel(
        "GPU errors",
        "The last XID error of each GPU, by NVIDIA's numbers. Good: 0.",
        (Query("DCGM_FI_DEV_XID_ERRORS", _GPU_NAME),),
        Unit.NONE,
        warn=1,
    ),
)
_TRANSFERS = (
    Panel(
        "KV transfers",
        "Caches handed from prefill to decode workers over NIXL, bytes per second.",
        (Query(_rate("vllm:nixl_bytes_transferred_sum"), "{{worker}}"),),
        Unit.BYTES_PER_SECOND,
    ),
    Panel(
        "Time of a transfer",
        "p95. Good: well below the prefill that it saves.",
        (
            Query(
                "histogram_quantile(0.95, sum by (worker, le) "
                f"(rate(vllm:nixl_xfer_time_seconds_bucket{{{_VLLM}}}[$__rate_interval])))",
                "{{worker}}",
            ),
        ),
        Unit.SECONDS,
    ),
    Panel(
        "Transfers that came to nothing",
        "failed: the prompt is computed again. expired: no worker fetched the cache in time. Good: 0.",
        (
            Query(_rate("vllm:nixl_num_failed_transfers_total"), "failed {{worker}}"),
            Query(_rate("vllm:nixl_num_kv_expired_reqs_total"), "expired {{worker}}"),
        ),
        Unit.PER_SECOND,
        warn=0.1,
    ),
)

WORKERS = Board(
    "workers",
    "fairlead: Workers",
    "Load, KV cache, batches, preemptions, exclusion and its reason, GPUs, transfers.",
    (WORKER,),
    (
        ("State", _STATE),
        ("Load, as the gateway counts it", _LOAD),
        ("Engine, as vLLM tells it", _ENGINE),
        ("GPU, from DCGM", _GPU),
        ("Prefill to decode, over NIXL", _TRANSFERS),
    ),
)
