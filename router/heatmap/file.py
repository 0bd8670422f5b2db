"""A heatmap as a file: the one that ships with the program, or one made by `fairlead heatmap measure`."""

from importlib.resources import files
from pathlib import Path

from policies.estimates.heatmap import Heatmap, LearnedHeatmap
from policies.estimates.heatmap_file import HeatmapError, parse, render

SHIPPED = "h100-llama-3.1-8b"
"""Made by `python -m benchmarks.make_heatmap` from the simulator's profile of this name."""
_MOST_BYTES = 4 * 1024 * 1024


def read_heatmap(path: Path) -> LearnedHeatmap:
    """Read a map, and what was learned since it was measured. Raises HeatmapError, which names the file."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise HeatmapError(f"{path}: larger than {_MOST_BYTES >> 20} MiB, so no heatmap")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HeatmapError(f"{path}: not text; expected a file of `fairlead heatmap measure`") from None
    except OSError as error:
        raise HeatmapError(f"cannot read {path}: {error.strerror}") from None
    try:
        return parse(text)
    except HeatmapError as error:
        raise HeatmapError(f"{path}: {error}") from None


def shipped_heatmap() -> LearnedHeatmap:
    """The map that is used where no file is named."""
    return parse(files("router.heatmap").joinpath(f"{SHIPPED}.json").read_text(encoding="utf-8"))


def write_heatmap(path: Path, heatmap: Heatmap | LearnedHeatmap) -> None:
    """Write a map so that a reader of the file meanwhile finds the old or the new one. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(render(heatmap), encoding="utf-8")
    beside.replace(path)
