"""The map that ships is what its script makes: a corner of it, in virtual time."""

from benchmarks.make_heatmap import measure, setups
from router.heatmap.sweep import Sweep


def test_both_sides_have_the_same_number_of_workers():
    sides = setups("h100-llama-3.1-8b")
    assert {setup.workers for setup in sides.values()} == {2}
    assert [setup.roles for setup in sides.values()] == [("mixed", "mixed"), ("prefill", "decode")]


def test_pairs_pay_for_long_prompts_with_short_answers_and_for_nothing_else():
    sweep = Sweep((256, 8192), (1 / 32, 1.0), (2.0,), requests=12)
    gains = measure(sweep, "h100-llama-3.1-8b").heatmap({}).layers[0].gains
    assert gains[1][0] > 0.1
    assert gains[0][0] < -0.1
    assert gains[1][1] < 0


def test_equal_seeds_make_equal_maps():
    one, other, third = (
        measure(Sweep((2048,), (0.05,), (1.0,), requests=8, seed=seed), "h100-llama-3.1-8b").gains
        for seed in (1, 1, 2)
    )
    assert one == other != third
