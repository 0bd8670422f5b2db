from router.control import response_owners as module
from router.control.response_owners import ResponseOwners


def test_a_response_is_found_where_it_was_kept_by_its_owner_only():
    owners = ResponseOwners()
    owners.keep("resp_1", "worker", "a")
    assert owners.find("resp_1", "a") == "worker"
    assert owners.find("resp_1", "b") is None
    assert owners.find("resp_1", "") is None
    assert owners.find("resp_2", "a") is None
    assert owners.find(None, "a") is None


def test_an_id_never_changes_its_owner():
    owners = ResponseOwners()
    assert owners.claim("resp_1", "a")
    assert owners.find("resp_1", "a") is None  # no worker stores it yet
    owners.keep("resp_1", "worker", "a")
    assert owners.claim("resp_1", "a")
    assert not owners.claim("resp_1", "b")
    owners.keep("resp_1", "another", "b")
    assert owners.find("resp_1", "b") is None
    assert owners.find("resp_1", "a") == "worker"
    owners.keep("resp_1", "another", "a")
    assert owners.find("resp_1", "a") == "another"
    assert len(owners) == 1


def test_only_the_last_ones_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    owners = ResponseOwners()
    for number in range(5):
        owners.keep(f"resp_{number}", "worker", "a")
    assert len(owners) == 3
    assert [owners.find(f"resp_{number}", "a") for number in range(5)] == [None, None, *["worker"] * 3]


def test_an_owner_with_many_makes_room_by_its_own(monkeypatch):
    monkeypatch.setattr(module, "MOST", 10)
    owners = ResponseOwners()
    owners.keep("resp_b", "worker", "b")
    owners.keep("resp_c", "worker", "c")
    for number in range(100):
        owners.keep(f"resp_{number}", "worker", "a")
        assert len(owners) <= 10
    assert owners.find("resp_b", "b") == owners.find("resp_c", "c") == "worker"
    for number in range(100):
        owners.keep(f"resp_b{number}", "worker", "b")
    kept = {name: sum(owner == name for owner in owners._owners.values()) for name in "abc"}
    assert kept["c"] == 1
    assert kept["b"] >= 4
    assert kept["a"] >= 3
    assert sum(map(len, owners._by_owner.values())) == len(owners) == 10
