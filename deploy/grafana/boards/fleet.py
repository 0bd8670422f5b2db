"""Fleet: what users feel."""

from deploy.grafana.boards.board import MODEL, Board
from deploy.grafana.boards.panels import Kind, Panel, Query, Unit, quantiles

_MODEL = 'model=~"$model"'
_ERRORS = (
    f'sum(rate(fairlead_requests_total{{{_MODEL}, outcome=~"failed|rejected"}}[$__rate_interval]))'
    f' / sum(rate(fairlead_requests_total{{{_MODEL}, outcome=~"completed|failed|rejected"}}[$__rate_interval]))'
)

_NOW = (
    Panel(
        "Requests",
        "Requests that ended, per second, in every way there is.",
        (Query(f"sum(rate(fairlead_requests_total{{{_MODEL}}}[$__rate_interval]))"),),
        Unit.REQUESTS_PER_SECOND,
        Kind.STAT,
        span=4,
    ),
    Panel(
        "Errors",
        "Share of requests that failed or were turned away; what clients got wrong or gave up does not count. "
        "Good: below 0.5%.",
        (Query(_ERRORS),),
        Unit.SHARE,
        Kind.STAT,
        span=4,
        warn=0.005,
        bad=0.03,
    ),
    Panel(
        "First token, p95",
        "Of streamed requests, from their arrival, waiting included. Good: below 2.5 s, and not rising.",
        (quantiles("fairlead_time_to_first_token_seconds", _MODEL)[1],),
        Unit.SECONDS,
        Kind.STAT,
        span=4,
        warn=1,
        bad=2.5,
    ),
    Panel(
        "Waiting",
        "Requests in the gateway's queue. Good: 0, or short bursts.",
        (Query(f"sum(fairlead_queue_depth{{{_MODEL}}})"),),
        kind=Kind.STAT,
        span=4,
        warn=50,
        bad=500,
    ),
    Panel(
        "Routable workers",
        "Workers that may be given requests. Good: all there are; at 0 every request is answered with 503.",
        (Query(f"sum(fairlead_routable_workers{{{_MODEL}}})"),),
        kind=Kind.STAT,
        span=4,
        warn=2,
        bad=1,
    ),
    Panel(
        "Alerts",
        "Alerts that fire now; each has a section in the runbook. Good: 0.",
        (Query('count(ALERTS{alertstate="firing", alertname=~"Fairlead.*"}) or vector(0)'),),
        kind=Kind.STAT,
        span=4,
        warn=1,
        bad=3,
    ),
)
_TRAFFIC = (
    Panel(
        "Requests by outcome",
        "completed: answered. cancelled: the client left. refused: the request was wrong. rejected: turned away "
        "by the gateway. failed: a worker broke off. Good: nearly all completed.",
        (Query(f"sum by (outcome) (rate(fairlead_requests_total{{{_MODEL}}}[$__rate_interval]))", "{{outcome}}"),),
        Unit.REQUESTS_PER_SECOND,
        Kind.STACK,
    ),
    Panel(
        "Errors against the objective",
        "Failed or rejected share by model. Good: below the line of 0.5%.",
        (
            Query("model:fairlead_request_errors:ratio_rate5m{" + _MODEL + "}", "5 min {{model}}"),
            Query("model:fairlead_request_errors:ratio_rate1h{" + _MODEL + "}", "1 h {{model}}"),
        ),
        Unit.SHARE,
        warn=0.005,
        bad=0.03,
    ),
    Panel(
        "Tokens",
        "As workers report them: prompt tokens, of these from the cache, and answers. Good: cached follows input.",
        (Query(f"sum by (kind) (rate(fairlead_tokens_total{{{_MODEL}}}[$__rate_interval]))", "{{kind}}"),),
        Unit.PER_SECOND,
    ),
)
_LATENCY = (
    Panel(
        "Time to first token",
        "Of streamed requests, from arrival; includes the wait in the queue. Good: p95 below 2.5 s.",
        quantiles("fairlead_time_to_first_token_seconds", _MODEL),
        Unit.SECONDS,
        span=6,
        warn=2.5,
    ),
    Panel(
        "Time per output token",
        "After the first one, of streamed requests. Good: p95 below 50 ms, faster than people read.",
        quantiles("fairlead_time_per_output_token_seconds", _MODEL),
        Unit.SECONDS,
        span=6,
        warn=0.05,
    ),
    Panel(
        "Request duration",
        "From arrival to the last byte. It follows the length of answers; look for jumps.",
        quantiles("fairlead_request_duration_seconds", _MODEL),
        Unit.SECONDS,
        span=6,
    ),
    Panel(
        "Wait in the queue",
        "From arrival to the decision, of requests that were placed. Good: p95 below 1 s; above 10 s the fleet is "
        "too small for what is asked.",
        quantiles("fairlead_queue_wait_seconds", _MODEL),
        Unit.SECONDS,
        span=6,
        warn=1,
        bad=10,
    ),
)
_LOAD = (
    Panel(
        "Waiting and open",
        "Requests waiting for room by model, and everything inside the gateway. Good: waiting near 0.",
        (
            Query(f"sum by (model) (fairlead_queue_depth{{{_MODEL}}})", "waiting {{model}}"),
            Query("sum(fairlead_open_requests)", "open"),
            Query("sum(fairlead_open_streams)", "open streams"),
        ),
    ),
    Panel(
        "Clients that left",
        "Their work on the workers is cut short at once. Good: few; a rise often means that answers are too slow.",
        (
            Query(
                f"sum by (model) (rate(fairlead_cancellations_total{{{_MODEL}}}[$__rate_interval]))", "{{model}}"
            ),
        ),
        Unit.PER_SECOND,
    ),
    Panel(
        "Attempts that failed on a worker",
        "Most are made good on another worker before the client sees anything. Good: 0.",
        (Query("sum by (reason) (rate(fairlead_attempt_failures_total[$__rate_interval]))", "{{reason}}"),),
        Unit.PER_SECOND,
        warn=0.1,
    ),
    Panel(
        "Streams whose worker died",
        "By what became of them: continued at another worker (and how theirs died), or broken off (and why). "
        "Good: 0; with `continuation: off` all are broken.",
        (
            Query(
                "sum by (outcome, reason) (rate(fairlead_continuations_total[$__rate_interval]))",
                "{{outcome}}: {{reason}}",
            ),
        ),
        Unit.PER_SECOND,
        warn=0.1,
    ),
    Panel(
        "Stillness of continued streams",
        "From a worker's death to the stream's next token elsewhere. Good: p95 below 2.5 s.",
        (
            Query(
                # Of no stream there is no quantile: NaN, which a panel would show as missing data.
                "histogram_quantile(0.95, sum by (le) "
                "(rate(fairlead_continuation_gap_seconds_bucket[$__rate_interval]))) >= 0 or vector(0)",
                "p95",
            ),
        ),
        Unit.SECONDS,
        warn=2.5,
    ),
)

FLEET = Board(
    "fleet",
    "fairlead: Fleet",
    "What users feel: rate, errors, time to first token, time per token, queue.",
    (MODEL,),
    (("Now", _NOW), ("Traffic", _TRAFFIC), ("Latency", _LATENCY), ("Load", _LOAD)),
)
