"""What a worker reports is believed as far as it can be true, and told apart from what is predicted."""

import pytest
from block_pool import Stored, asking, removed, stored

from policies.prefixes.trust import Reports, Trust

IDS = tuple(range(100, 120))


def reporting(*events, worker="a"):
    reports = Reports()
    reports.start(worker)
    reports.caught_up(worker)
    for event in events:
        reports.stored(worker, event)
    return reports


def match(reports, predicted=None, ids=IDS, **fields):
    return reports.match(asking(ids, **fields), None, predicted or {})


def test_a_worker_that_does_not_report_is_predicted():
    reports = Reports()
    assert (reports.trust("a"), reports.any_trusted, reports.tally("a")) == (Trust.PREDICTED, False, None)
    assert match(reports, {"a": 7}) == {"a": 7}
    for act in (reports.lost, reports.cleared):
        act("a")
    reports.stored("a", stored(IDS))
    reports.removed("a", removed(IDS[:4]))
    assert (reports.trust("a"), match(reports)) == (Trust.PREDICTED, {})


def test_a_report_from_the_beginning_is_exact():
    reports = reporting(stored(IDS))
    assert (reports.trust("a"), reports.exact(), match(reports)) == (Trust.EXACT, ["a"], {"a": 16})
    reports.removed("a", removed(IDS[:12]))
    assert match(reports) == {"a": 8}


def test_more_is_predicted_than_reported_while_a_prompt_is_computed():
    assert match(reporting(stored(IDS[:8])), {"a": 15, "b": 15}) == {"a": 12, "b": 15}


def test_less_is_predicted_than_reported():
    assert match(reporting(stored(IDS[:8])), {"a": 5}) == {"a": 8}


def test_predictions_for_who_reports_are_cut_to_full_blocks_and_never_the_whole_prompt():
    reports = reporting(stored(IDS[:4]))
    for predicted, held in ((3, 4), (9, 8), (19, 16), (20, 16)):
        assert match(reports, {"a": predicted}) == {"a": held}
    before = reporting()
    assert match(before, {"a": 9}) == {"a": 9}
    before.set_sizes("a", 16)
    assert match(before, {"a": 9}) == {}


def test_what_was_lost_is_void_and_what_follows_is_learned():
    reports = reporting(stored(IDS))
    reports.lost("a")
    assert (reports.trust("a"), match(reports), reports.exact()) == (Trust.PARTIAL, {}, [])
    reports.stored("a", stored(IDS, after=8))
    reports.stored("a", stored(IDS[:8]))
    assert match(reports, {"a": 13}) == {"a": 12}
    assert reports.tally("a").unknown_parent == 3


def test_an_emptied_cache_is_known_exactly():
    reports = reporting(stored(IDS))
    reports.lost("a")
    reports.stored("a", stored(IDS))
    reports.cleared("a")
    assert (reports.trust("a"), match(reports)) == (Trust.EXACT, {})


def test_what_is_predicted_is_hit_in_full_blocks_once_their_size_is_known():
    reports = Reports()
    assert match(reports, {"a": 7, "b": 7}) == {"a": 7, "b": 7}
    reports.set_sizes("a", 4)
    reports.set_sizes("b", 16)
    assert match(reports, {"a": 7, "b": 7}) == {"a": 4}


@pytest.mark.parametrize("metrics_first", [True, False])
def test_blocks_of_another_size_than_the_metrics_say_are_not_believed(metrics_first):
    reports = reporting()
    if metrics_first:
        reports.set_sizes("a", 16)
    else:
        reports.set_sizes("a", None)
    reports.stored("a", stored(IDS))
    if not metrics_first:
        assert reports.trust("a") is Trust.EXACT
        reports.set_sizes("a", 16)
    assert (reports.trust("a"), reports.any_trusted) == (Trust.PREDICTED, False)
    assert reports.distrust_reason("a") == "its events have blocks of 4 tokens, its metrics say 16"
    reports.stored("a", stored(IDS))
    assert match(reports, {"a": 17}) == {"a": 16}


def test_blocks_of_the_size_that_the_metrics_say_are_believed():
    reports = reporting()
    reports.set_sizes("a", 4)
    reports.stored("a", stored(IDS))
    reports.set_sizes("a", 4)
    assert (reports.distrust_reason("a"), match(reports)) == (None, {"a": 16})


def test_who_tells_the_same_time_and_again_is_known_in_part():
    reports = reporting()
    reports.set_sizes("a", 4, 40)
    for _ in range(4):
        reports.stored("a", stored(IDS))
    assert (reports.trust("a"), match(reports)) == (Trust.EXACT, {"a": 16})
    reports.stored("a", stored(IDS))
    assert (reports.trust("a"), match(reports, {"a": 9})) == (Trust.PARTIAL, {"a": 8})


def test_hits_that_were_not_reported_time_and_again_end_the_belief():
    reports = reporting(stored(IDS))
    for _ in range(8):
        reports.record_cached("a", 16, 16)
    for _ in range(23):
        reports.record_cached("a", 0, 400)
    assert reports.trust("a") is Trust.EXACT
    reports.record_cached("a", 0, 400)
    assert reports.trust("a") is Trust.PREDICTED
    assert reports.distrust_reason("a") == "24 of its last 32 answers had other hits than reported"


def test_single_surprises_and_a_block_more_or_less_do_not():
    reports = reporting(stored(IDS))
    for turn in range(200):
        reports.record_cached("a", 16, 400 if turn % 2 else 12)
    assert reports.trust("a") is Trust.EXACT


def test_partial_reports_are_not_judged_by_answers():
    reports = reporting()
    reports.lost("a")
    for _ in range(100):
        reports.record_cached("a", 0, 400)
    assert reports.trust("a") is Trust.PARTIAL


def test_a_worker_that_left_is_as_if_it_had_never_been():
    reports = reporting(stored(IDS))
    reports.set_sizes("a", 8)
    reports.remove_worker("a")
    assert (reports.trust("a"), reports.distrust_reason("a"), reports.any_trusted) == (
        Trust.PREDICTED,
        None,
        False,
    )
    reports.start("a")
    reports.stored("a", stored(IDS))
    assert match(reports) == {"a": 16}


def test_every_report_moves_the_version():
    reports, seen = Reports(), []
    for act in (
        lambda: reports.start("a"),
        lambda: reports.caught_up("a"),
        lambda: reports.stored("a", stored(IDS)),
        lambda: reports.removed("a", removed(IDS)),
        lambda: reports.cleared("a"),
        lambda: reports.lost("a"),
        lambda: reports.remove_worker("a"),
    ):
        act()
        seen.append(reports.version)
    assert seen == sorted(set(seen))


def test_nonsense_is_refused_and_changes_nothing():
    reports = reporting(stored(IDS))
    with pytest.raises(ValueError, match="token ids"):
        reports.stored("a", Stored((1,), None, (1, 2), 4))
    assert match(reports) == {"a": 16}
