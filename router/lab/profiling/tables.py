"""A fit as a person reads it."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from router.lab.profiling.fit import Fit
from router.lab.profiling.sweep import Facts

_WIDTH = 100


def print_fit(fit: Fit, facts: Facts) -> None:
    """Every point with what the fit makes of it, then the profile."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    version = f", vLLM {facts.version}" if facts.version else ""
    console.print(f"{facts.model} at {facts.url}{version}", highlight=False)
    console.print(_points(fit))
    console.print(_profile(fit))
    worst = max(abs(fit.residual(point)) for point in fit.points)
    console.print(f"error: mean {fit.error():.1%}, worst {worst:.1%}", highlight=False)


def _points(fit: Fit) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "prompt", "batch", "measured ms", "predicted ms", "residual"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    names = {"prefill": "time to first token", "decode": "time per token"}
    for point in sorted(fit.points, key=lambda point: (point.kind != "prefill", point.prompt_tokens, point.batch)):
        table.add_row(
            names[point.kind],
            str(point.prompt_tokens),
            str(point.batch),
            f"{1000 * point.measured_s:.2f}",
            f"{1000 * fit.predicted_s(point):.2f}",
            f"{fit.residual(point):+.1%}",
        )
    return table


def _profile(fit: Fit) -> Table:
    profile = fit.profile
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    for value, unit, meaning in (
        (1e3 * profile.overhead_s, "ms", "every step (overhead_s)"),
        (1e3 * profile.weights_s, "ms", "reading the weights: the least that a step's products take (weights_s)"),
        (1e6 * profile.token_s, "us", "products of one token (token_s)"),
        (1e6 * profile.sample_s, "us", "one sampled token (sample_s)"),
        (1e9 * profile.context_s, "ns", "a token of context of a decoding answer (context_s)"),
        (1e9 * profile.pair_s, "ns", "a prompt token's attention to one token (pair_s)"),
        (1e3 * fit.transport_s, "ms", "on a first token's way to the client (not in the profile)"),
    ):
        table.add_row(f"{value:,.3f} {unit}", meaning)
    table.add_row(f"{profile.kv_tokens:,}", "tokens of KV cache (kv_tokens)")
    table.add_row(str(profile.max_num_seqs), "answers at once (max_num_seqs)")
    table.add_row(str(profile.max_num_batched_tokens), "tokens per step (max_num_batched_tokens)")
    return table
