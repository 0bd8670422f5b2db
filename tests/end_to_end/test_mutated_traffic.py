"""Mutated requests and answers through a gateway: nothing breaks, nothing stays behind, every answer is HTTP.

As many as an ordinary run has time for, from one seed. `python -m tests.end_to_end.wild` does the same with 10,000
of each from any seed, and prints the figures.
"""

import pytest

from tests.end_to_end.wild.storm import storm_of_answers, storm_of_requests


@pytest.mark.parametrize(("storm", "count"), [(storm_of_requests, 600), (storm_of_answers, 700)])
async def test_of_mutated_messages_none_breaks_anything_or_stays_behind(storm, count):
    tally = await storm(count, seed=1)
    assert tally.sent == count
    assert tally.by_status["200"] > count / 20, tally.text()
    assert tally.sound(), tally.text()
