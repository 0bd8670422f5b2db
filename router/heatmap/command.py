"""The commands `fairlead heatmap show` and `fairlead heatmap measure`."""

# ruff: noqa: PLC0415, FBT002, PLR0917  # as in `router/commands/cli.py`: late imports, and what typer makes of parameters
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from router.commands.progress_bar import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.heatmap.measure import Bench
    from router.heatmap.sweep import Findings, Sweep

SHOW_EXAMPLES = """\b
Examples:
  fairlead heatmap show                            the one that ships
  fairlead heatmap show mine.json --plot mine.png
"""
MEASURE_EXAMPLES = """\b
Examples:
  fairlead heatmap measure --colocated http://gpu1:8000,http://gpu2:8000 \\
      --disaggregated P=http://gpu3:8000,D=http://gpu4:8000 --out mine.json
  fairlead heatmap measure ... --out mine.json --resume          go on after an interruption
"""

commands = typer.Typer(
    help="Which requests are better off on prefill/decode pairs: show the map, measure one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@commands.command(epilog=SHOW_EXAMPLES)
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", dir_okay=False, help="A heatmap.", show_default="as shipped")
    ] = None,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw it as a PNG, too.")] = None,
) -> None:
    """Show a heatmap.

    Rows are prompt lengths, columns the ratio of answer to prompt. What is green is faster on a pair.
    """
    from policies.estimates.heatmap_file import HeatmapError
    from router.heatmap.file import read_heatmap, shipped_heatmap
    from router.heatmap.show import plot_heatmap, print_heatmap

    try:
        heatmap = shipped_heatmap() if file is None else read_heatmap(file)
    except HeatmapError as error:
        _refuse(str(error))
    print_heatmap(heatmap)
    if plot is not None:
        try:
            plot_heatmap(heatmap, plot)
        except ImportError:
            _refuse("--plot needs matplotlib: pip install 'fairlead-router[plots]'")
        except (OSError, ValueError) as error:
            _refuse(f"cannot draw {plot}: {error}")
        typer.echo(f"wrote {plot}", err=True)


@commands.command(epilog=MEASURE_EXAMPLES)
def measure(
    colocated: Annotated[
        list[str], typer.Option(metavar="URL,...", help="Idle workers that do both; commas or several times.")
    ],
    disaggregated: Annotated[
        list[str], typer.Option(metavar="P=URL,D=URL", help="An idle prefill and decode worker; several times.")
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The heatmap; written after each batch.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with that file.")] = False,
    model: Annotated[str | None, typer.Option(help="A model they serve.", show_default="their base model")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="The workers' key.", show_default="none")
    ] = None,
    prompt_lengths: Annotated[str, typer.Option(help="Tokens, with commas between.")] = "256,1024,4096,16384",
    ratios: Annotated[str, typer.Option(help="Answer / prompt, with commas between.")] = "0.016,0.06,0.25,1",
    rates: Annotated[str, typer.Option(help="Requests per second and worker.")] = "0.5,2",
    requests: Annotated[int, typer.Option(min=1, help="Of a batch, per worker.")] = 16,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal moments of arrival.")] = 0,
    hardware: Annotated[str, typer.Option(help="What they run on: a note in the file.")] = "not said",
) -> None:
    """Measure a heatmap with workers.

    Batches of equal requests at a fixed rate, on both sides: as many colocated workers as the pairs have together.
    Ctrl-C leaves a file that --resume goes on with.
    """
    from router.heatmap.sweep import Sweep

    alone = [url.strip() for text in colocated for url in text.split(",") if url.strip()]
    pairs = [_pair(text) for text in disaggregated]
    urls = [*alone, *(url for pair in pairs for url in pair)]
    if len(alone) != 2 * len(pairs):
        _refuse(
            f"{len(alone)} colocated workers and {2 * len(pairs)} in pairs: both sides need the same number, "
            "or the map compares hardware"
        )
    if len(set(urls)) < len(urls):
        _refuse("a worker is named twice: what one side does would disturb the other")
    if out.exists() and not resume:
        _refuse(f"{out} is there already: --resume goes on with it, or take another name")
    if resume and not out.exists():
        _refuse(f"--resume: there is no {out}")
    try:
        sweep = Sweep(
            tuple(int(length) for length in _numbers("--prompt-lengths", prompt_lengths)),
            tuple(_numbers("--ratios", ratios)),
            tuple(_numbers("--rates", rates)),
            requests,
            seed=seed,
        )
    except ValueError as error:
        _refuse(str(error))
    _run(alone, pairs, model, api_key, sweep, out, resume=resume, hardware=hardware)


def _run(
    alone: "Sequence[str]",
    pairs: "Sequence[tuple[str, str]]",
    model: str | None,
    api_key: str | None,
    sweep: "Sweep",
    out: Path,
    *,
    resume: bool,
    hardware: str,
) -> None:
    from policies.estimates.heatmap_file import HeatmapError
    from router.heatmap.resuming import DifferentSweepError
    from router.heatmap.show import print_heatmap
    from router.lab.profiling.stream import MeasurementError

    try:
        findings, conditions = asyncio.run(
            _measure(alone, pairs, model, api_key, sweep, out, resume=resume, hardware=hardware)
        )
    except (HeatmapError, DifferentSweepError) as error:
        _refuse(str(error))
    except MeasurementError as error:
        _fail(f"{error}{_go_on(out)}")
    except OSError as error:
        _fail(f"cannot write {out}: {error.strerror}")
    except KeyboardInterrupt:
        typer.echo(f"fairlead: stopped{_go_on(out)}", err=True)
        raise typer.Exit(130) from None
    if not findings.any:
        _fail("the workers could not keep up with any batch: take lower --rates")
    print_heatmap(findings.heatmap(conditions))
    typer.echo(f"wrote {out}", err=True)


async def _measure(
    alone: "Sequence[str]",
    pairs: "Sequence[tuple[str, str]]",
    model: str | None,
    api_key: str | None,
    sweep: "Sweep",
    out: Path,
    *,
    resume: bool,
    hardware: str,
) -> "tuple[Findings, dict[str, Any]]":
    from dataclasses import replace

    from router.heatmap.file import write_heatmap
    from router.heatmap.measure import opened, run
    from router.heatmap.resuming import conditions_of, resumed
    from router.heatmap.sweep import Findings

    async with opened(alone, pairs, model, api_key) as bench:
        sweep = replace(sweep, most_tokens=bench.most_tokens)
        places = list(sweep.places())
        if not places:
            _refuse(f"no batch fits the workers, whose limit is {bench.most_tokens} tokens: take shorter prompts")
        conditions = conditions_of(bench, sweep, hardware)
        findings, before = resumed(out, sweep, conditions) if resume else (Findings(sweep), 0)
        _tell(bench, await bench.warm_up(min(sweep.prefill_tokens)))

        def done(number: int) -> None:
            conditions["batches_done"] = before + number
            if findings.any:
                write_heatmap(out, findings.heatmap(conditions))
            progress(before + number)

        with progress_bar("measuring", len(places)) as progress:
            progress(before)
            await run(bench, sweep, findings, places[before:], done)
    return findings, conditions


def _tell(bench: "Bench", notes: "Sequence[str]") -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    limit = bench.most_tokens
    if limit is not None:
        typer.echo(f"note: shapes of more than {limit} tokens are left out: the workers take no longer", err=True)


def _pair(text: str) -> tuple[str, str]:
    parts = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if set(parts) != {"P", "D"} or not all(parts.values()) or text.count(",") != 1:
        _refuse(f"--disaggregated {text}: expected P=URL,D=URL, the prefill and the decode worker of a pair")
    return parts["P"].strip(), parts["D"].strip()


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = sorted({float(word) for word in text.split(",")})
    except ValueError:
        numbers = []
    whole = option != "--prompt-lengths" or all(number.is_integer() for number in numbers)
    if not numbers or not whole or numbers[0] <= 0 or not numbers[-1] < 1e9:
        _refuse(f"{option} {text}: expected positive numbers with commas between")
    return numbers


def _go_on(out: Path) -> str:
    return f"; {out} has what was measured, --resume goes on with it" if out.exists() else ""


def _refuse(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(2)


def _fail(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(1)
