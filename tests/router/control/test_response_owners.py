from router.control import response_owners as module
from router.control.response_owners import ResponseOwners


def test_a_response_is_found_where_it_was_kept():
    holders = ResponseOwners()
    holders.keep("resp_1", "a")
    assert holders.find("resp_1") == "a"
    assert holders.find("resp_2") is None
    assert holders.find(None) is None


def test_only_the_last_ones_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "_MAX_HELD", 3)
    holders = ResponseOwners()
    for number in range(5):
        holders.keep(f"resp_{number}", "a")
    assert len(holders) == 3
    assert [holders.find(f"resp_{number}") for number in range(5)] == [None, None, "a", "a", "a"]
