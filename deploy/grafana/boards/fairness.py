"""Fairness: who gets how much, who waits, and whether that is just."""

from deploy.grafana.boards.board import CLIENT, MODEL, Board
from deploy.grafana.boards.panels import Kind, Panel, Query, Unit

_CLIENT = 'client=~"$client"'

_INDEX = (
    Panel(
        "Jain's index",
        "Over clients that compete: those with requests waiting for most of five minutes. 1: equal service by "
        "weight; 1/n: one gets everything. 1 as well while fewer than two compete. Good: above 0.9.",
        (Query("fairlead:service_fairness:jain5m", "Jain's index"),),
        Unit.NONE,
        Kind.STAT,
        span=4,
        warn=0.9,
        bad=0.8,
        most=1,
    ),
    Panel(
        "Competing clients",
        "Had requests waiting for most of five minutes. At 0 or 1 there is nothing to be fair about.",
        (Query("fairlead:competing_clients:count", "clients"),),
        kind=Kind.STAT,
        span=4,
    ),
    Panel(
        "Jain's index over time",
        "As on the left. Good: above 0.9 whenever two or more compete.",
        (Query("fairlead:service_fairness:jain5m", "Jain's index"),),
        Unit.NONE,
        span=16,
        warn=0.9,
        bad=0.8,
        most=1,
    ),
)
_SERVICE = (
    Panel(
        "Service",
        "Work caused per second: prompt tokens that had to be computed, and output tokens with their weight. "
        "Counted when a request ends. Good: no client takes all of it while others wait.",
        (
            Query(
                f"sum by (client) (rate(fairlead_client_service_total{{{_CLIENT}}}[$__rate_interval]))",
                "{{client}}",
            ),
        ),
        Unit.PER_SECOND,
        Kind.STACK,
    ),
    Panel(
        "Service by weight of those who compete",
        "Service divided by the client's weight, over five minutes. Good: the lines lie together.",
        (Query(f"client:fairlead_competing_service_per_weight:rate5m{{{_CLIENT}}}", "{{client}}"),),
        Unit.PER_SECOND,
    ),
    Panel(
        "Deficit",
        "What the order owes a client (above 0: eligible) or has advanced to it, in units of service. Good: "
        "no client stays far below the others; empty where the order keeps no deficits.",
        (
            Query(
                f'sum by (client) (fairlead_client_deficit{{model=~"$model", {_CLIENT}}})',
                "{{client}}",
            ),
        ),
        signed=True,
    ),
)
_WAIT = (
    Panel(
        "Wait, p95",
        "In the queue, of requests that were placed. Good: light clients wait little whatever the heavy ones do.",
        (
            Query(
                "histogram_quantile(0.95, sum by (client, le) "
                f"(rate(fairlead_client_queue_wait_seconds_bucket{{{_CLIENT}}}[$__rate_interval])))",
                "{{client}}",
            ),
        ),
        Unit.SECONDS,
        warn=10,
        bad=60,
    ),
    Panel(
        "Longest wait right now",
        "How long the oldest request of each client has been waiting. Good: below 10 s; a client above 60 s that "
        "gets less than its share starves.",
        (Query(f"max by (client) (fairlead_client_oldest_wait_seconds{{{_CLIENT}}})", "{{client}}"),),
        Unit.SECONDS,
        warn=10,
        bad=60,
    ),
    Panel(
        "Waiting requests",
        "By client. A long queue of one client is its own affair as long as the others do not wait for it.",
        (Query(f"sum by (client) (fairlead_client_queued{{{_CLIENT}}})", "{{client}}"),),
    ),
)
_WHO = (
    Panel(
        "Requests",
        "That ended, by client.",
        (
            Query(
                f"sum by (client) (rate(fairlead_client_requests_total{{{_CLIENT}}}[$__rate_interval]))",
                "{{client}}",
            ),
        ),
        Unit.REQUESTS_PER_SECOND,
    ),
    Panel(
        "Turned away or failed",
        "By client. Good: 0; a single client with many probably exceeds its limits or sends to a wrong model.",
        (
            Query(
                "sum by (client, outcome) (rate(fairlead_client_requests_total"
                f'{{{_CLIENT}, outcome=~"rejected|refused|failed"}}[$__rate_interval]))',
                "{{client}} {{outcome}}",
            ),
        ),
        Unit.REQUESTS_PER_SECOND,
    ),
    Panel(
        "Weights",
        "Share of the fleet relative to other clients, from the configuration.",
        (Query(f"max by (client) (fairlead_client_weight{{{_CLIENT}}})", "{{client}}"),),
        Unit.NONE,
    ),
)

FAIRNESS = Board(
    "fairness",
    "fairlead: Fairness",
    "Service, deficit, wait and Jain's index per client.",
    (MODEL, CLIENT),
    (("Index", _INDEX), ("Service", _SERVICE), ("Wait", _WAIT), ("Clients", _WHO)),
)
