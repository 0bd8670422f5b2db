"""The heatmap: looked up between its cells, summed over its rates, refused where it is broken, and learning."""

import json
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.estimates.heatmap import EXPLORED, NOTHING_KNOWN, Heatmap, Layer, LearnedHeatmap
from policies.estimates.heatmap_file import HeatmapError, parse, render
from policies.fleet.speed import Profile

LENGTHS, RATIOS = (100, 1000, 10_000), (0.01, 0.1, 1.0)
GAINS = ((0.1, -0.2, -0.3), (0.5, 0.2, -0.1), (0.9, 0.4, 0.0))


def heatmap(*layers, lengths=LENGTHS, ratios=RATIOS):
    return Heatmap(
        lengths,
        ratios,
        tuple(Layer(float(rate), gains) for rate, gains in enumerate(layers or (GAINS,), 1)),
        {"model": "m"},
    )


# -- looking up


def test_a_cell_is_worth_what_was_measured_there():
    found = heatmap()
    for row, length in enumerate(LENGTHS):
        for column, ratio in enumerate(RATIOS):
            assert found.gain(length, round(length * ratio)) == pytest.approx(GAINS[row][column])


def test_between_cells_the_gain_is_interpolated_along_logarithms():
    found = heatmap()
    assert found.gain(1000, round(1000 * 10**-0.5)) == pytest.approx((0.2 - 0.1) / 2, abs=1e-3)
    middle = round(10**3.5)
    assert found.gain(middle, middle // 10) == pytest.approx((0.2 + 0.4) / 2, abs=1e-3)
    centre = sum(GAINS[r][c] for r in (1, 2) for c in (1, 2)) / 4
    assert found.gain(middle, round(middle * 10**-0.5)) == pytest.approx(centre, abs=1e-3)


@pytest.mark.parametrize(
    ("length", "output", "row", "column"),
    [(1, 1, 0, 2), (10**7, 1, 2, 0), (10**7, 10**8, 2, 2), (50, 50_000, 0, 2), (0, 0, 0, 2)],
)
def test_outside_of_the_map_its_edge_counts(length, output, row, column):
    assert heatmap().gain(length, output) == pytest.approx(GAINS[row][column])


def test_the_maps_of_all_rates_are_summed():
    found = heatmap(((1.0, -0.4),), ((-0.2, -0.4),), lengths=(100,), ratios=(0.1, 1.0))
    assert found.gain(100, 10) == pytest.approx((1.0 - 0.2) / 2)
    assert found.agreement() == 0.5
    assert heatmap().agreement() is None


def test_a_cell_that_nobody_measured_is_worth_its_nearest_neighbour():
    found = heatmap(((0.1, -0.2, None), (0.5, None, None), (None, None, None)))
    assert found.total == ((0.1, -0.2, -0.2), (0.5, -0.2, -0.2), (0.5, 0.5, -0.2))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-0.9, 5), min_size=9, max_size=9), st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_gain_lies_between_those_of_the_cells_around(gains, length, output):
    found = heatmap(tuple(tuple(gains[row * 3 : row * 3 + 3]) for row in range(3)))
    corners = found.corners(length, output)
    assert sum(corner.share for corner in corners) == pytest.approx(1)
    around = [found.total[corner.row][corner.column] for corner in corners]
    assert min(around) - 1e-9 <= found.gain(length, output) <= max(around) + 1e-9


def test_where_nothing_is_known_nothing_is_disaggregated():
    assert NOTHING_KNOWN.gain(123, 45) == 0.0


# -- as text


def test_a_map_read_again_is_the_same():
    measured = heatmap(GAINS, ((None,) * 3, GAINS[1], GAINS[2]))
    again = parse(render(measured))
    assert again.measured == measured
    assert again.gains == measured.total
    assert render(again) == render(measured)


def test_what_was_learned_is_written_and_read_with_the_map():
    learned = LearnedHeatmap(heatmap())
    teach(learned, 1000, 100, colocated_s=1.0, disaggregated_s=3.0, requests=2000)
    teach(learned, 100, 1, colocated_s=1.0, disaggregated_s=1.0, requests=3)
    again = parse(render(learned))
    assert again.gains == learned.gains != heatmap().total
    assert again.evidence == learned.evidence
    assert again.undecided(100, 1)


def document(**changes):
    written = json.loads(render(heatmap())) | changes
    return json.dumps({key: value for key, value in written.items() if value != "gone"})


BAD_ROW = [[0.1, 0.1, 0.1], [0.1, "x", 0.1], [0.1, 0.1, 0.1]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", 'no `"format"'),
        ('{"profile": {}}', 'no `"format"'),
        (document(version=2), "version: 2; this release reads 1"),
        (document(version="gone"), "version: missing"),
        (document(shape=3), "unknown shape"),
        (document(conditions=None), "conditions: missing"),
        (document(prefill_tokens="gone"), "prefill_tokens: missing; expected a list"),
        (document(prefill_tokens=[]), "prefill_tokens: empty"),
        (document(prefill_tokens=[1, 3, 3]), r"prefill_tokens\[2\]: 3; expected positive numbers, each larger"),
        (document(prefill_tokens=[0, 3, 4]), r"prefill_tokens\[0\]: 0; expected positive"),
        (document(prefill_tokens=[1.5, 3, 4]), "whole numbers"),
        (document(prefill_tokens=list(range(1, 200))), "199 entries; at most 128"),
        (document(ratios=[0.1, True, 2]), r"ratios\[1\]: true; expected a number"),
        (document(ratios=[0.1, 10**400, 2]), r"ratios\[1\]: 1000"),
        (document(ratios=[0.1, 1]), r"layers\[0\].gains\[0\]: expected 2 numbers"),
        (document(layers=[]), "layers: none"),
        (document(layers=[3]), r"layers\[0\]: 3; expected an object"),
        (document(layers=[{"rate_per_s": 0, "gains": GAINS}]), r"layers\[0\].rate_per_s: 0"),
        (document(layers=[{"rate_per_s": 1, "gains": GAINS[:2]}]), "expected 3 rows"),
        (document(layers=[{"rate_per_s": 1, "gains": BAD_ROW}]), r'gains\[1\]\[1\]: "x"; expected a number'),
        (document(layers=[{"rate_per_s": 1, "gains": [[math.nan] * 3] * 3}]), "NaN; expected a number"),
        (document(layers=[{"rate_per_s": 1, "gains": [[-1, 0, 0]] * 3}]), "above -1"),
        (document(layers=[{"rate_per_s": 1, "gains": [[None] * 3] * 3}]), "not one cell was measured"),
        (document(learned=[{}]), r"learned\[0\].row: missing; expected 0 to 2"),
        (document(learned=[{"row": 0, "column": 3}]), r"learned\[0\].column: 3; expected 0 to 2"),
        (document(learned=[{"row": 0, "column": 0, "colocated": [1]}]), "a mean and its weight"),
        (
            document(learned=[{"row": 0, "column": 0, "colocated": [-1, 1], "disaggregated": [1, 1], "gain": 0}]),
            "expected a positive mean",
        ),
        (
            document(learned=[{"row": 0, "column": 0, "colocated": [1, 1], "disaggregated": [1, 1], "gain": -2}]),
            r"learned\[0\].gain: -2",
        ),
    ],
)
def test_a_text_that_is_no_heatmap_is_refused_with_its_reason(text, reason):
    with pytest.raises(HeatmapError, match=reason):
        parse(text)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_damaged_file_is_refused_or_read_but_never_breaks_the_reader(seed):
    rng = Random(seed)
    text = list(render(heatmap()))
    for _ in range(rng.randint(1, 4)):
        text[rng.randrange(len(text))] = rng.choice('0123456789,.:[]{}"-en \x00')
    try:
        found = parse("".join(text))
    except HeatmapError:
        return
    assert math.isfinite(found.gain(500, 50))


# -- learning


def teach(learned, length, output, *, colocated_s, disaggregated_s, requests, share=EXPLORED):
    """Requests of one shape, of which the side that the map advises against gets `share`, spread evenly."""
    rare = 0.0
    for _ in range(requests):
        rare += share
        against = rare >= 1
        rare -= against
        disaggregated = (learned.gain(length, output) > 0) != against
        seconds = disaggregated_s if disaggregated else colocated_s
        learned.record(length, output, seconds, disaggregated=disaggregated)


def test_nothing_is_learned_from_one_side_alone():
    learned = LearnedHeatmap(heatmap())
    for _ in range(500):
        learned.record(1000, 100, 60.0, disaggregated=True)
    assert learned.gains == heatmap().total
    assert learned.undecided(1000, 100)


def test_a_handful_of_requests_teaches_nothing_yet():
    learned = LearnedHeatmap(heatmap())
    for number in range(12):
        learned.record(1000, 100, 9.0 if number % 2 else 1.0, disaggregated=bool(number % 2))
    assert learned.gains == heatmap().total
    assert learned.undecided(1000, 100)


def test_a_cell_turns_when_its_requests_say_so_and_takes_no_other_with_it():
    learned = LearnedHeatmap(heatmap())
    assert learned.gain(1000, 100) > 0
    teach(learned, 1000, 100, colocated_s=1.0, disaggregated_s=2.0, requests=1500)
    assert learned.gain(1000, 100) < -0.25
    others = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
    assert all(learned.gains[r][c] == GAINS[r][c] for r, c in others)


def test_two_percent_of_exploring_are_enough_to_decide_a_cell():
    learned = LearnedHeatmap(heatmap())
    teach(learned, 1000, 100, colocated_s=1.0, disaggregated_s=2.0, requests=1500)
    assert not learned.undecided(1000, 100)


def test_a_difference_that_is_not_clear_changes_no_sign():
    learned = LearnedHeatmap(heatmap())
    teach(learned, 1000, 100, colocated_s=0.97, disaggregated_s=1.0, requests=3000, share=0.5)
    assert learned.gain(1000, 100) > 0
    assert learned.undecided(1000, 100)


def test_a_cell_that_turned_does_not_turn_back_for_a_difference_that_is_not_clear():
    learned = LearnedHeatmap(heatmap())
    teach(learned, 1000, 100, colocated_s=1.0, disaggregated_s=2.0, requests=1500)
    turns, last = 0, learned.gain(1000, 100) > 0
    rng = Random(3)
    for _ in range(4000):
        disaggregated = rng.random() < 0.5
        learned.record(1000, 100, rng.uniform(0.9, 1.1) * 2.0, disaggregated=disaggregated)
        now = learned.gain(1000, 100) > 0
        turns, last = turns + (now != last), now
    assert turns <= 1


def test_a_side_that_is_not_used_any_more_is_forgotten_so_that_its_cell_is_explored_again():
    learned = LearnedHeatmap(heatmap())
    teach(learned, 1000, 100, colocated_s=3.0, disaggregated_s=1.0, requests=1500)
    assert not learned.undecided(1000, 100)
    for _ in range(1500):
        learned.record(1000, 100, 1.0, disaggregated=True)
    assert learned.undecided(1000, 100)
    assert learned.gain(1000, 100) > 0.5


def test_differences_of_size_within_a_cell_teach_nothing():
    """The colocated ones happen to be short, the others long; both run as an idle worker would run them."""
    learned, alone = LearnedHeatmap(heatmap()), Profile()
    for number in range(400):
        length, output = (700, 70) if number % 2 else (1400, 140)
        seconds = alone.prefill_s(length) + alone.decode_s(output, 1, length)
        learned.record(length, output, seconds, disaggregated=not number % 2)
    assert abs(learned.gains[1][1]) < 0.05
