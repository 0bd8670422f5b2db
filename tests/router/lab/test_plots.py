"""The pictures of a comparison can be read: no label on another, none cut off, plain numbers."""

from itertools import combinations

import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from router.lab import plots
from router.lab.comparison import Source, compare
from router.lab.limits import limit
from router.lab.setup import make_setup
from router.lab.workload import Targets
from router.lab.workloads.open_workload import open_workload

PLACEMENTS = ("round_robin", "random", "least_loaded", "weighted_scores", "session_affinity", "cache_aware")


@pytest.fixture(scope="module")
def results():
    setups = [
        make_setup(placement=name, queue=queue, binding=binding, workers=2)
        for name in PLACEMENTS
        for queue in ("dlpm+svf", "fcfs")
        for binding in ("late", "early")
    ]
    return compare(Source("poisson:requests=25"), setups, targets=Targets(), seeds=(0, 1)).results


@pytest.fixture(scope="module")
def bounds():
    return limit(open_workload("poisson:requests=25"), make_setup(workers=2))


def texts(figure):
    """Every visible text of a picture with the box that it is drawn in."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for text in [*figure.texts, *figure.legends, *(each for axes in figure.axes for each in of_axes(axes))]:
        for part in text.get_texts() if hasattr(text, "get_texts") else [text]:
            if part.get_text().strip():
                yield part.get_text(), part.get_window_extent(renderer)


def of_axes(axes):
    """Its labels, the legend, and of its ticks those that are drawn: within the axis, and not shared away."""
    if not axes.get_visible():
        return
    yield from (axes.title, *axes.texts, *([axes.get_legend()] if axes.get_legend() else []))
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        yield axis.label
        yield axis.get_offset_text()
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if low <= tick.get_loc() <= high and tick.label1.get_visible():
                yield tick.label1


def shown(figure, box):
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1


def overlap(one, other):
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 1 and height > 1.5


@pytest.mark.parametrize(
    "picture", ["_first_tokens", "_ends", "_times", "_service", "_tradeoff", "_hit_ratio", "_worker_load"]
)
def test_no_label_lies_on_another_or_is_cut_off(picture, results, bounds):
    figure = getattr(plots, picture)(results, bounds)
    figure.suptitle(plots._title(results[0].report, "poisson:requests=25", 2.0), fontsize=10)
    found = list(texts(figure))
    assert len(found) > 10
    assert [text for text, box in found if not shown(figure, box)] == []
    assert [(a[0], b[0]) for a, b in combinations(found, 2) if overlap(a[1], b[1])] == []


def test_an_axis_of_large_numbers_has_no_offset():
    figure = plots.Figure()
    axes = figure.subplots()
    axes.plot([184_300.01, 184_300.02], [0, 1])
    plots._plain_numbers(axes)
    figure.canvas.draw()
    assert axes.xaxis.get_offset_text().get_text() == ""


def test_the_subtitle_names_rate_workers_and_seeds(results):
    assert plots._title(results[0].report, "chat", 0.5).splitlines() == [
        "chat",
        "25 requests at rate x 0.5, 2 workers (h100-llama-3.1-8b), seeds 0 to 1",
    ]
