"""The command `fairlead profile`: measure workers, fit, print what was found, write it for the lab."""

# ruff: noqa: PLC0415, PLR0917  # as in `router/commands/cli.py`: late imports, and what typer makes of parameters
import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from router.commands.progress_bar import progress_bar

if TYPE_CHECKING:
    from router.lab.profiling.fit import Fit
    from router.lab.profiling.points import Point
    from router.lab.profiling.sweep import Facts, Sweep

EXAMPLES = """\b
Examples:
  fairlead profile http://127.0.0.1:8001 --out mine.json
  fairlead simulate chat --profile mine.json
  fairlead profile http://127.0.0.1:8001 http://127.0.0.1:8002 --out shared.json     on one machine, both busy
  fairlead profile http://10.0.0.7:8000 --prompt-lengths 128,1024,8192 --batches 1,8,32,128
"""
DEFAULT_KV_TOKENS = 400_000
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def profile(
    urls: Annotated[
        list[str],
        typer.Argument(
            metavar="URL...",
            help="An idle worker, such as http://127.0.0.1:8001. Several: measured at once, each while the others "
            "are as busy.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="A model it serves.", show_default="its base model")] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the profile to this file.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="The worker's key.", show_default="none")
    ] = None,
    prompt_lengths: Annotated[str, typer.Option(help="Tokens, with commas between.")] = "32,128,512,1024",
    batches: Annotated[str, typer.Option(help="Answers side by side, with commas between.")] = "1,2,4,8",
    output_tokens: Annotated[int, typer.Option(min=8, help="Of each answer.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements that a median is taken over.")] = 3,
    seed: Annotated[
        int | None, typer.Option(help="Equal seeds send equal prompts.", show_default="another each time")
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of KV cache.", show_default=f"as it says itself, else {DEFAULT_KV_TOKENS}"
        ),
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="As the worker was started.")] = DEFAULT_MAX_NUM_SEQS,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="As the worker was started.")
    ] = DEFAULT_MAX_NUM_BATCHED_TOKENS,
) -> None:
    """Measure a running worker.

    Workers that share a machine slow each other down: name them all, and the profile is that of each among busy
    neighbours.

    What it finds is a profile for the lab: `fairlead simulate WORKLOAD --profile FILE`.
    """
    import orjson

    from router.lab.profiling.fit import Limits, UndeterminedError, fit
    from router.lab.profiling.profile_file import document
    from router.lab.profiling.stream import MeasurementError
    from router.lab.profiling.sweep import Sweep

    sweep = Sweep(
        _numbers("--prompt-lengths", prompt_lengths),
        _numbers("--batches", batches),
        output_tokens,
        repeats,
        secrets.randbelow(1 << 32) if seed is None else seed,
    )
    if out is not None and not out.absolute().parent.is_dir():
        _fail(f"cannot write {out}: there is no such directory")
    try:
        facts, points, notes = asyncio.run(
            _measure(urls, model, api_key, sweep, max_num_batched_tokens, progress_bar)
        )
        limits = Limits(
            facts.model, kv_tokens or facts.kv_tokens or DEFAULT_KV_TOKENS, max_num_seqs, max_num_batched_tokens
        )
        found = fit(points, limits)
    except (MeasurementError, UndeterminedError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    _show(found, facts)
    if out is not None:
        content = document(found, _conditions(facts, sweep))
        try:
            out.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            _fail(f"cannot write {out}: {error.strerror}")
        typer.echo(f"wrote {out}", err=True)


async def _measure(
    urls: list[str], model: str | None, api_key: str | None, sweep: "Sweep", batched: int, bar: ProgressBar
) -> "tuple[Facts, list[Point], list[str]]":
    from contextlib import AsyncExitStack

    from router.lab.profiling.measure_together import facts_of, measure_together, notes_of, open_meters

    async with AsyncExitStack() as stack:
        meters = await open_meters(stack, urls, model, api_key)
        facts = facts_of(meters)
        with bar(f"measuring {facts.model}", sweep.requests()) as progress:
            points = await measure_together(meters, sweep, batched, progress)
        return facts, points, notes_of(meters)


def _conditions(facts: "Facts", sweep: "Sweep") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(facts),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(sweep),
    }


def _show(found: "Fit", facts: "Facts") -> None:
    from router.lab.profiling.tables import print_fit

    print_fit(found, facts)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 0 < len(word) < 8 and int(word) for word in words):
        typer.echo(f"fairlead: {option} {text}: expected positive numbers with commas between", err=True)
        raise typer.Exit(2)
    return tuple(sorted({int(word) for word in words}))


def _fail(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(1)
