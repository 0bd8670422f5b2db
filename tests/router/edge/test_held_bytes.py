import pytest

from router.edge.errors import Overloaded
from router.edge.held_bytes import HeldBytes, Holding


def test_what_all_requests_hold_is_bounded_in_sum_and_given_back():
    everything = HeldBytes(100)
    one, other = Holding(everything), Holding(everything)
    one.add_request(60)
    other.add_answer(30)
    with pytest.raises(Overloaded, match="holds 60 bytes of requests and 30 of answers; its limit is 100"):
        other.add_request(11)
    assert (everything.requests, everything.answers) == (60, 30)  # what is refused is not counted
    one.drop_request(10)
    other.add_request(11)
    one.drop_request()
    other.drop_request()
    other.drop_answer()
    assert (everything.requests, everything.answers) == (0, 0)


def test_no_more_is_given_back_than_is_held():
    everything = HeldBytes(100)
    one = Holding(everything)
    one.add_request(5)
    one.drop_request(50)
    one.drop_answer(50)
    assert (everything.requests, everything.answers) == (0, 0)


def test_slow_clients_share_a_quarter_of_what_may_be_held_and_the_same_count_as_all_else():
    everything = HeldBytes(24 << 20)
    assert [everything.take_share() for _ in range(3)] == [4 << 20, 2 << 20, 0]
    assert everything.answers == 6 << 20
    holding = Holding(everything)
    holding.add_request(18 << 20)
    with pytest.raises(Overloaded):
        holding.add_answer(1)
    everything.give_back(4 << 20)
    holding.add_request(3 << 20)
    assert everything.take_share() == 1 << 20  # bodies have the rest
    holding.drop_request()
    everything.give_back(3 << 20)
    assert (everything.requests, everything.answers) == (0, 0)


def test_memory_is_worth_giving_back_once_for_each_fall():
    everything = HeldBytes(100)
    one, other = Holding(everything), Holding(everything)
    one.add_request(60)
    other.add_answer(20)
    assert not everything.fallen(10)
    one.drop_request(50)
    assert everything.fallen(10)
    assert not everything.fallen(10)  # said once
    other.drop_answer()
    assert everything.fallen(10)
