"""Several reports as one."""

from router.lab.seeds import extremes, merged, seeds_of


def report(seed, mean, hits, **rest):
    times = {"mean": mean, "p99": None}
    return {
        "placement": "a",
        "seed": seed,
        "ttft_s": times,
        "prefix_hit_ratio": hits,
        "clients": {"x": {"n": seed}},
    } | rest


def test_one_report_stays_as_it_is():
    only = report(3, 1.0, 0.5)
    assert merged([only]) is only
    assert seeds_of(only) == [3]
    assert extremes(only, "ttft_s", "mean") is None


def test_numbers_are_means_with_their_extremes_and_words_stay():
    both = merged([report(0, 1.0, 0.5), report(1, 3.0, 0.5)])
    assert (both["placement"], both["ttft_s"], both["prefix_hit_ratio"]) == ("a", {"mean": 2.0, "p99": None}, 0.5)
    assert seeds_of(both) == [0, 1]
    assert extremes(both, "ttft_s", "mean") == (1.0, 3.0)
    assert extremes(both, "ttft_s", "p99") is None
    assert extremes(both, "no", "such") is None
    assert "seed" not in both
    assert [each["seed"] for each in both["runs"]] == [0, 1]


def test_what_only_some_seeds_have_is_their_mean():
    both = merged([report(0, None, 0.5, jain=None), report(1, 3.0, 0.7, jain=0.9)])
    assert (both["ttft_s"]["mean"], both["jain"]) == (3.0, 0.9)
    assert both["clients"] == {"x": {"n": 0.5}}
