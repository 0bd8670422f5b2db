"""Routing: why requests went where they went, and whether the prefix index was right."""

from deploy.grafana.boards.board import MODEL, WORKER, Board
from deploy.grafana.boards.panels import Kind, Panel, Query, Unit

_MODEL = 'model=~"$model"'
_WORKER = 'worker=~"($worker)([#@].*)?"'
_PLACED = f"sum by (worker) (rate(fairlead_worker_placements_total{{{_WORKER}}}[$__rate_interval]))"

_DECISIONS = (
    Panel(
        "Decisions by reason",
        "hit: to a worker that holds the prefix. miss: no worker holds any of it. spill: its holder was too busy. "
        "warm_up: a cold worker is warmed. Good: hits where prompts repeat.",
        (
            Query(
                f"sum by (reason) (rate(fairlead_decisions_total{{{_MODEL}}}[$__rate_interval]))",
                "{{reason}}",
            ),
        ),
        Unit.REQUESTS_PER_SECOND,
        Kind.STACK,
    ),
    Panel(
        "Spill",
        "Share of placements that left a holder of the prefix because another worker was cheaper. Good: a few "
        "per cent; much more says that a few prefixes are too hot for their holders.",
        (
            Query(
                f'sum by (model) (rate(fairlead_decisions_total{{{_MODEL}, reason="spill"}}[$__rate_interval]))'
                f" / sum by (model) (rate(fairlead_decisions_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}",
            ),
        ),
        Unit.SHARE,
        warn=0.3,
    ),
    Panel(
        "Placements by worker",
        "By the last worker that a request was given to. Good: about even, where workers are alike.",
        (Query(_PLACED, "{{worker}}"),),
        Unit.REQUESTS_PER_SECOND,
        Kind.STACK,
    ),
)
_HITS = (
    Panel(
        "Prompt tokens from the cache: predicted and actual",
        "What the index expected, and what workers reported. Good: the lines lie together. Workers have to run "
        "with --enable-prompt-tokens-details, or actual stays at 0.",
        (
            Query(f"sum(rate(fairlead_predicted_cached_tokens_total{{{_MODEL}}}[$__rate_interval]))", "predicted"),
            Query(f'sum(rate(fairlead_tokens_total{{{_MODEL}, kind="cached"}}[$__rate_interval]))', "actual"),
        ),
        Unit.PER_SECOND,
    ),
    Panel(
        "Hit ratio",
        "Prompt tokens found in a cache, of those of which workers told. What is good depends on the traffic; "
        "compare with yesterday.",
        (
            Query(
                f'sum by (model) (rate(fairlead_tokens_total{{{_MODEL}, kind="cached"}}[$__rate_interval]))'
                f" / sum by (model) (rate(fairlead_checked_prompt_tokens_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}",
            ),
            Query(f"model:fairlead_prefix_hits:ratio_rate1h{{{_MODEL}}}", "1 h {{model}}"),
        ),
        Unit.SHARE,
        most=1,
    ),
    Panel(
        "Index errors",
        "Share of prompt tokens expected in a cache and not there (over), or found there unexpectedly (under). "
        "Good: below 10%. Over: workers evict earlier than the index believes.",
        (
            Query(
                "sum by (direction) (rate(fairlead_mispredicted_cached_tokens_total"
                f"{{{_MODEL}}}[$__rate_interval])) / on () group_left () "
                f"sum(rate(fairlead_checked_prompt_tokens_total{{{_MODEL}}}[$__rate_interval]))",
                "{{direction}}",
            ),
        ),
        Unit.SHARE,
        warn=0.1,
        bad=0.25,
    ),
)
_PREFIXES = (
    Panel(
        "How much of each prompt was expected in a cache",
        "Placements by the share of their prompt that the chosen worker was taken to hold. Good: dense at the top "
        "where prompts repeat; everything at 0 means that nothing is shared or that affinity is lost.",
        (
            Query(
                f"sum by (le) (increase(fairlead_matched_share_bucket{{{_MODEL}}}[$__rate_interval]))",
                "{{le}}",
            ),
        ),
        kind=Kind.HEATMAP,
        span=12,
    ),
    Panel(
        "Hot prefixes",
        "Share of the last 1000 requests that begin with the same 1 kB, the five most common. A share above that "
        "of one worker in the fleet has to spill; good is when placements stay even nevertheless.",
        (Query("max by (rank) (fairlead_hot_prefix_share)", "rank {{rank}}"),),
        Unit.SHARE,
        span=6,
        most=1,
    ),
    Panel(
        "Hot spot",
        "Placements of the busiest worker, as a multiple of the average. Good: below 2.",
        (Query(f"max({_PLACED}) / avg({_PLACED})", "busiest to average"),),
        Unit.NONE,
        span=6,
        warn=2,
        bad=4,
    ),
    Panel(
        "Heatmap: prefill and decode apart",
        "By what share a prefill/decode pair is faster than one worker, by prompt tokens and answer tokens per "
        "prompt token, as measured and learned since. It decides only where the fleet has workers with roles.",
        (Query(f"avg by (prompt_tokens, answer_ratio) (fairlead_heatmap_gain{{{_MODEL}}})"),),
        Unit.SHARE,
        Kind.MATRIX,
        span=24,
        signed=True,
        matrix=("prompt_tokens", "answer_ratio"),
    ),
)
_TREE = (
    Panel(
        "Size of the prefix tree",
        "Nodes, by model and kind of key. Bounded by what the workers' caches hold; good: it levels off.",
        (Query("sum by (tree) (fairlead_prefix_tree_nodes)", "{{tree}}"),),
        span=6,
    ),
    Panel(
        "Prompt text in the prefix tree",
        "Bytes of prompt that the nodes hold. Good: it levels off.",
        (Query("sum by (tree) (fairlead_prefix_tree_bytes)", "{{tree}}"),),
        Unit.BYTES,
        span=6,
    ),
    Panel(
        "Held by worker",
        "Prompt tokens that the index expects in each worker's cache. Good: near their KV capacity, and even.",
        (Query(f"sum by (worker) (fairlead_worker_prefix_held_tokens{{{_WORKER}}})", "{{worker}}"),),
        span=6,
    ),
    Panel(
        "Evictions and faults",
        "Units dropped from the index as caches must have dropped them; exceptions of policies. Good: faults 0.",
        (
            Query("sum by (tree) (rate(fairlead_prefix_tree_evicted_units_total[$__rate_interval]))", "{{tree}}"),
            Query(
                f"sum by (model) (rate(fairlead_policy_faults_total{{{_MODEL}}}[$__rate_interval]))",
                "faults {{model}}",
            ),
        ),
        Unit.PER_SECOND,
        span=6,
    ),
)
_REPORTED = (
    Panel(
        "How the caches are known",
        "Workers by index: exact (every block as reported), partial (what was reported since), predicted (from "
        "what was sent there). Good: all in one colour, and steady; exact where KV events are on.",
        (
            Query(
                f"sum by (index) (fairlead_worker_prefix_index{{{_WORKER}}})",
                "{{index}}",
            ),
        ),
        kind=Kind.STACK,
        span=6,
    ),
    Panel(
        "Predicted to the token",
        "Share of answers whose cached tokens were as expected. Good: 0.99 with exact indexes and token ids. "
        "With predicted ones it is near 0, as text says nothing exact.",
        (
            Query(
                "sum by (index) (rate(fairlead_cache_predictions_total"
                f'{{{_MODEL}, result="right"}}[$__rate_interval])) / '
                f"sum by (index) (rate(fairlead_cache_predictions_total{{{_MODEL}}}[$__rate_interval]))",
                "{{index}}",
            ),
        ),
        Unit.SHARE,
        span=6,
        most=1,
    ),
    Panel(
        "Prompts as token ids",
        "exact: their ids were known when they were placed. Anything else is why they went on as text. Good: "
        "exact, where a tokenizer is set; slow and busy say that tokenizing does not keep up.",
        (
            Query(
                f"sum by (result) (rate(fairlead_tokenizations_total{{{_MODEL}}}[$__rate_interval]))",
                "{{result}}",
            ),
        ),
        Unit.REQUESTS_PER_SECOND,
        Kind.STACK,
        span=6,
    ),
    Panel(
        "Trouble with KV events",
        "gap: messages were missed, and replayed. lost: they could not be, and the worker's index began anew. "
        "garbled, unknown_event: not as this gateway reads them. Good: nothing.",
        (
            Query(
                f"sum by (worker, kind) (rate(fairlead_kv_event_trouble_total{{{_WORKER}}}[$__rate_interval]))",
                "{{kind}} {{worker}}",
            ),
        ),
        Unit.PER_SECOND,
        span=6,
    ),
)

ROUTING = Board(
    "routing",
    "fairlead: Routing",
    "Decisions by reason, predicted against actual hits, the prefix tree, hot prefixes and spill.",
    (MODEL, WORKER),
    (
        ("Decisions", _DECISIONS),
        ("Hits", _HITS),
        ("Prefixes", _PREFIXES),
        ("Index", _TREE),
        ("Reported caches", _REPORTED),
    ),
)
