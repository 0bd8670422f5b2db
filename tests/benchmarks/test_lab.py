"""The lab's benchmark: which replays it makes, how it keeps them, and what its tables say of them."""

import json

import pytest

from benchmarks.lab.cases import Case, generated, misbehaving, traces
from benchmarks.lab.cells import LIMIT, Cell, CellFile, Combination, measure
from benchmarks.lab.plan import (
    ABLATIONS,
    Wanted,
    ablation_cells,
    ablations,
    default,
    misbehaving_cells,
    placement_cells,
)
from benchmarks.lab.tables import grouped, markdown, verdicts
from policies import catalog
from router.lab.setup import make_setup
from router.lab.workloads.generators import options_of

SMALL = Case("small", "poisson:requests=30,rate={rate}", 20.0, 2)
OURS = catalog.DEFAULT_PLACEMENT


def wanted(placements=(OURS, "cache_aware"), seeds=(0, 1), loads=(0.6, 0.9), cases=None):
    return Wanted(cases or {"small": SMALL}, loads, seeds, placements, ("dlpm",), ("late", "early"))


def row(mean, hits=0.5):
    times = {"mean": mean, "p50": mean, "p90": mean, "p99": 3 * mean}
    steady = {"from_s": 1.0, "to_s": 2.0, "service_per_s": 1000.0, "requests_per_s": 10.0}
    return {"ttft_s": times, "e2e_s": times, "hits": hits, "steady": steady, "rejected": 0, "jain": 0.9}


def filled(want, means):
    """A file in memory with a row for each cell; `means`: by placement and binding."""
    file = CellFile(None, "code")
    for cell in placement_cells(want):
        chosen = cell.combination
        file.add(
            cell, row(0.1 if chosen.placement == LIMIT else means[chosen.placement, chosen.binding] + cell.seed)
        )
    return file


def test_every_placement_meets_every_seed_load_and_binding_beside_the_limit():
    cells = list(placement_cells(wanted(tuple(catalog.placement_policies()))))
    assert len(cells) == 2 * 2 * (2 * len(catalog.placement_policies()) + 1)
    assert len({cell.key for cell in cells}) == len(cells)
    assert [cell.combination.placement for cell in cells[:2]] == [LIMIT, OURS]
    assert (cells[0].seed, cells[0].load) == (0, 0.9)


def test_cells_that_differ_in_anything_have_different_keys():
    cell = Cell(SMALL, 0.9, 0, default())
    others = [
        Cell(SMALL, 0.6, 0, default()),
        Cell(SMALL, 0.9, 1, default()),
        Cell(SMALL, 0.9, 0, Combination(OURS, "dlpm", "early")),
        Cell(SMALL, 0.9, 0, Combination(OURS, "dlpm", "late", (("hold_ms", 0),))),
        Cell(Case("small", SMALL.wanted, 20.0, 3), 0.9, 0, default()),
    ]
    assert len({each.key for each in [cell, *others]}) == 6


def test_a_trace_is_known_by_its_name_and_its_rate_wherever_it_lies():
    here, there = (traces(f"{folder}/trace.jsonl", None)["mooncake"] for folder in ("/here", "/there"))
    assert Cell(here, 0.9, 0, default()).key == Cell(there, 0.9, 0, default()).key
    assert Cell(here, 0.9, 0, default()).key != Cell(here, 0.6, 0, default()).key
    assert here.source(0.5, 3).rate == 0.5 * here.unit


def test_what_is_finished_is_not_replayed_again(tmp_path):
    path = tmp_path / "results" / "cells.jsonl"
    cells = list(placement_cells(wanted(seeds=(0,), loads=(0.9,))))
    file = CellFile(path, "abc")
    assert file.missing(cells + cells) == cells
    file.add(cells[0], row(1.0))
    file.add(cells[2], row(2.0))
    with path.open("a") as end:
        end.write('{"cell": "half a li')
    again = CellFile(path, "abc")
    assert again.missing(cells) == [cells[1], *cells[3:]]
    assert again.row(cells[2]) == row(2.0)


def test_replays_of_other_code_are_not_used_unless_they_are_asked_for(tmp_path):
    path = tmp_path / "cells.jsonl"
    cell = Cell(SMALL, 0.9, 0, default())
    CellFile(path, "old").add(cell, row(1.0))
    new = CellFile(path, "new")
    assert (new.row(cell), new.outdated) == (None, 1)
    assert CellFile(path, "new", any_version=True).row(cell) == row(1.0)


@pytest.mark.parametrize("placement", [OURS, LIMIT])
def test_a_row_has_what_the_tables_need(placement):
    found = measure(Cell(SMALL, 0.9, 0, Combination(placement, "dlpm", "late")))
    assert found.keys() >= {"ttft_s", "e2e_s", "hits"}
    assert json.loads(json.dumps(found)) == found
    if placement == OURS:
        assert found.keys() >= {"steady", "jain", "rejected", "service_per_request"}


def test_with_a_misbehaving_client_the_others_are_looked_at_apart():
    case = Case("bad", "poisson:clients=3,requests=60,rate={rate},misbehaving=s1", 20.0, 1, misbehaving="client-2")
    found = measure(Cell(case, 1.0, 0, default()))
    assert found["well_behaved_p99_s"] > 0
    assert found["misbehaving_p99_s"] > 0


def test_the_default_is_compared_with_the_better_binding_of_the_best_other():
    means = {
        (OURS, "late"): 2.0,
        (OURS, "early"): 0.5,
        ("cache_aware", "late"): 3.0,
        ("cache_aware", "early"): 1.0,
    }
    want = wanted(loads=(0.9,))
    ((case, load, judged, ours, bounds),) = verdicts(grouped(placement_cells(want), filled(want, means)), "dlpm")
    assert (case, load) == ("small", 0.9)
    assert [(mine, theirs, rival.binding) for mine, theirs, rival in judged] == [
        (2.5, 1.5, "early"),
        (7.5, 4.5, "early"),
        (2.5, 1.5, "early"),
    ]
    assert len(ours.rows) == len(bounds.rows) == 2


def test_a_rival_with_fewer_seeds_is_not_compared():
    want = wanted(loads=(0.9,))
    file = CellFile(None, "code")
    for cell in placement_cells(want):
        if cell.seed == 0 or cell.combination.placement == OURS:
            file.add(cell, row(1.0))
    assert list(verdicts(grouped(placement_cells(want), file), "dlpm")) == []


def test_the_tables_show_means_spreads_and_the_limit():
    means = {
        (OURS, "late"): 1.0,
        (OURS, "early"): 1.5,
        ("cache_aware", "late"): 3.0,
        ("cache_aware", "early"): 2.0,
    }
    want = wanted(loads=(0.9,))
    text = markdown(want, filled(want, means))
    assert "| small | 90% | 1.500: 0.60 x cache_aware early |" in text
    assert f"| **dlpm / {OURS} / late** | 1.500 ±0.500 |" in text
    assert "*limit of any router*" in text
    assert markdown(want, CellFile(None, "code")) == "\n"


def test_a_replay_that_never_ends_is_a_row_that_says_so():
    want = wanted(("cache_aware",), seeds=(0,), loads=(0.9,))
    file = CellFile(None, "code")
    for cell in placement_cells(want):
        file.add(cell, {"error": "5 requests wait"} if cell.combination.placement != LIMIT else row(0.1))
    assert "| dlpm / cache_aware / late | 5 requests wait |" in markdown(want, file)


def test_cases_name_workloads_that_exist_and_floods_begin_like_them():
    for name, case in generated().items():
        options = dict(part.split("=") for part in case.wanted.partition(":")[2].split(","))
        assert options.keys() <= options_of(name).keys()
        assert case.unit > 0
    for title, (case, load) in misbehaving().items():
        assert title.split()[0] in generated()
        assert f"misbehaving={title.split()[1]}" in case.wanted
        assert load > 0
    floods = list(misbehaving_cells(wanted(cases={"judge": generated()["judge"]}, seeds=(0,))))
    assert {cell.case.name for cell in floods} == {"judge s1"}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_an_ablation_changes_settings_that_exist(changes):
    assert make_setup(settings=changes).config.policies != make_setup().config.policies


def test_every_ablation_is_a_cell_of_its_own():
    assert all(combination != default() for combination in ablations().values())
    assert "early binding" in ablations()
    cells = list(ablation_cells(wanted(seeds=(0,))))
    assert len({cell.key for cell in cells}) == len(ablations()) + 1
