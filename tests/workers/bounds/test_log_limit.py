"""What is said once, again, or no more."""

import logging

import pytest

from workers.bounds.backoff import Backoff
from workers.bounds.log_limit import LogLimit

logger = logging.getLogger("test.log_limit")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, logger.name)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_lasting_state_is_said_at_once_and_then_ever_more_seldom(said):
    limit = LogLimit(logger, Backoff(first_s=10, longest_s=40))
    due = [now for now in range(200) if limit.warn("w", "refused", now, "%s is %s", "w", "refused")]
    assert due == [0, 10, 30, 70, 110, 150, 190]
    assert said() == ["w is refused"] * len(due)


def test_another_cause_and_another_subject_are_news(said):
    limit = LogLimit(logger)
    for cause in ("refused", "refused", "no route", "refused"):
        limit.warn("w", cause, 0.0, cause)
    limit.warn("v", "refused", 0.0, "another")
    assert said() == ["refused", "no route", "refused", "another"]


def test_what_is_over_is_news_when_it_begins_again(said):
    limit = LogLimit(logger)
    assert not limit.over("w")
    for _ in range(2):
        limit.warn("w", "refused", 0.0, "refused")
        assert limit.over("w")
    assert said() == ["refused", "refused"]


def test_without_repeats_it_is_said_once(said):
    limit = LogLimit(logger, repeat=None)
    assert [limit.warn("w", "garbled", now * 1e6, "garbled") for now in range(3)] == [True, False, False]


def test_the_subjects_that_it_remembers_are_bounded():
    limit = LogLimit(logging.getLogger("test.silent"))
    for number in range(5000):
        limit.warn(str(number), "c", 0.0, "x")
    assert len(limit._said) == 1024
