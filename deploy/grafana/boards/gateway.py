"""Gateway: what routing itself costs, and whether the process is well."""

from deploy.grafana.boards.board import INSTANCE, Board
from deploy.grafana.boards.panels import Kind, Panel, Query, Unit

_AT = 'instance=~"$instance"'
_PROCESS = f'job="fairlead", {_AT}'
_CPU = f"sum by (instance) (rate(process_cpu_seconds_total{{{_PROCESS}}}[$__rate_interval]))"

_COST = (
    Panel(
        "CPU",
        "Cores in use. One gateway is one process on one core: above 0.8 requests begin to wait for it.",
        (Query(_CPU, "{{instance}}"),),
        Unit.NONE,
        warn=0.7,
        bad=0.9,
    ),
    Panel(
        "CPU per thousand requests",
        "Seconds of CPU. Good: stable; it follows the length of prompts and answers.",
        (
            Query(
                f"1000 * {_CPU} / sum by (instance) (rate(fairlead_requests_total{{{_AT}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            Query(f"instance:fairlead_cpu_seconds_per_kilorequest:rate5m{{{_AT}}}", "5 min {{instance}}"),
        ),
        Unit.SECONDS,
    ),
    Panel(
        "CPU per thousand output tokens",
        "Seconds of CPU. Good: stable.",
        (
            Query(
                f"1000 * {_CPU} / sum by (instance) "
                f'(rate(fairlead_tokens_total{{{_AT}, kind="output"}}[$__rate_interval]))',
                "{{instance}}",
            ),
        ),
        Unit.SECONDS,
    ),
)
_LOOP = (
    Panel(
        "Event-loop delay",
        "How late timers run: every stream waits as long. Good: p99 below 10 ms.",
        (
            *(
                Query(
                    f"histogram_quantile({share}, sum by (instance, le) "
                    f"(rate(fairlead_event_loop_delay_seconds_bucket{{{_AT}}}[$__rate_interval])))",
                    f"p{round(share * 100)} {{{{instance}}}}",
                )
                for share in (0.5, 0.99)
            ),
            Query(f"instance:fairlead_event_loop_delay_seconds:p99_5m{{{_AT}}}", "p99 5 min {{instance}}"),
        ),
        Unit.SECONDS,
        warn=0.01,
        bad=0.05,
    ),
    Panel(
        "Longest stop",
        "The longest delay of the last minute. Good: below 100 ms.",
        (Query(f"fairlead_event_loop_delay_longest_seconds{{{_AT}}}", "{{instance}}"),),
        Unit.SECONDS,
        warn=0.1,
        bad=0.5,
    ),
    Panel(
        "Open requests and streams",
        "Everything inside the gateway, waiting or running.",
        (
            Query(f"fairlead_open_requests{{{_AT}}}", "requests {{instance}}"),
            Query(f"fairlead_open_streams{{{_AT}}}", "streams {{instance}}"),
        ),
    ),
)
_PROCESS_ROW = (
    Panel(
        "Memory",
        "Resident. Everything that grows is bounded; good: it levels off.",
        (Query(f"process_resident_memory_bytes{{{_PROCESS}}}", "{{instance}}"),),
        Unit.BYTES,
    ),
    Panel(
        "File descriptors",
        "Share of those that the system allows; a stream takes two. Good: below 80%.",
        (Query(f"process_open_fds{{{_PROCESS}}} / process_max_fds{{{_PROCESS}}}", "{{instance}}"),),
        Unit.SHARE,
        warn=0.8,
        bad=0.95,
    ),
    Panel(
        "Connections to workers",
        "busy: a request is under way. idle: kept for the next one. Good: busy follows the open requests.",
        (
            Query(
                f"sum by (instance, state) (fairlead_worker_connections{{{_AT}}})",
                "{{state}} {{instance}}",
            ),
        ),
    ),
)
_CARE = (
    Panel(
        "Configuration",
        "Whether the last configuration that was read while running was accepted.",
        (Query(f"fairlead_config_last_reload_successful{{{_AT}}}", "{{instance}}"),),
        Unit.NONE,
        Kind.STAT,
        span=4,
        names=((1, "in force", "green"), (0, "refused", "red")),
    ),
    Panel(
        "Configuration in force for",
        "Since the start, or since the last one that was accepted.",
        (Query(f"time() - fairlead_config_timestamp_seconds{{{_AT}}}", "{{instance}}"),),
        Unit.SECONDS,
        Kind.STAT,
        span=4,
    ),
    Panel(
        "Version",
        "Of each gateway. Good: one version, except during a rollout.",
        (Query(f"count by (version) (fairlead_build_info{{{_AT}}})", "{{version}}"),),
        kind=Kind.STAT,
        span=4,
    ),
    Panel(
        "Full garbage collections",
        "Of the oldest generation, which stop the loop longest. Good: rare.",
        (
            Query(
                f'rate(python_gc_collections_total{{{_PROCESS}, generation="2"}}[$__rate_interval])',
                "{{instance}}",
            ),
        ),
        Unit.PER_SECOND,
        span=6,
        warn=0.1,
    ),
    Panel(
        "Dropped log lines",
        "Lines that standard error did not take: its reader is gone or too slow. Requests go on. Good: 0.",
        (Query(f"rate(fairlead_log_lines_dropped_total{{{_AT}}}[$__rate_interval])", "{{instance}}"),),
        Unit.PER_SECOND,
        span=6,
        bad=0.001,
    ),
    Panel(
        "Scrapes of the gateway",
        "How long a page of metrics takes. Good: below 0.5 s; it is made beside the event loop.",
        (Query(f'scrape_duration_seconds{{job="fairlead", {_AT}}}', "{{instance}}"),),
        Unit.SECONDS,
        span=6,
        warn=0.5,
    ),
)

GATEWAY = Board(
    "gateway",
    "fairlead: Gateway",
    "CPU, event-loop delay, streams, memory, configuration.",
    (INSTANCE,),
    (("Cost", _COST), ("Event loop", _LOOP), ("Process", _PROCESS_ROW), ("Care", _CARE)),
)
