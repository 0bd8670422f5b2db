from router.control.parties.wrong_keys import WrongKeys

HERE, THERE = "192.0.2.1", "192.0.2.2"


def test_a_bounded_number_of_wrong_keys_a_minute_is_looked_at():
    keys = WrongKeys(6)
    for _ in range(6):
        assert keys.wait_s(HERE, b"guess", 0.0) == 0
        keys.wrong(HERE, 0.0)
    assert keys.wait_s(HERE, b"guess", 0.0) == 10
    assert keys.wait_s(HERE, b"guess", 4.0) == 6
    assert keys.wait_s(THERE, b"guess", 0.0) == 0
    assert keys.wait_s(HERE, b"guess", 10.0) == 0
    keys.wrong(HERE, 10.0)
    assert keys.wait_s(HERE, b"guess", 10.0) == 10
    assert keys.wait_s(HERE, b"guess", 1e6) == 0


def test_a_key_that_was_right_there_does_not_wait():
    keys = WrongKeys(1)
    keys.right(HERE, b"mine", 0.0)
    keys.wrong(HERE, 0.0)
    assert keys.wait_s(HERE, b"mine", 0.0) == 0
    assert keys.wait_s(HERE, b"another", 0.0) > 0
    for number in range(100):
        keys.right(HERE, b"%d" % number, 0.0)
    assert len(keys._addresses[HERE].right) <= 32


def test_addresses_are_bounded_and_a_network_is_one():
    keys = WrongKeys(1, most=3)
    for number in range(10):
        keys.wrong(f"192.0.2.{number}", 0.0)
    assert len(keys) == 3
    keys = WrongKeys(1)
    keys.wrong("2001:db8::1", 0.0)
    assert keys.wait_s("2001:db8::ffff:1", b"guess", 0.0) > 0
    assert keys.wait_s("2001:db8:0:1::1", b"guess", 0.0) == 0
    keys.wrong("::ffff:192.0.2.1", 0.0)
    assert keys.wait_s("::ffff:192.0.2.2", b"guess", 0.0) == 0
    assert keys.wait_s("192.0.2.1", b"guess", 0.0) > 0


def test_without_a_limit_nothing_is_counted():
    keys = WrongKeys(None)
    for _ in range(1000):
        keys.wrong(HERE, 0.0)
    keys.right(HERE, b"mine", 0.0)
    assert keys.wait_s(HERE, b"guess", 0.0) == 0
    assert len(keys) == 0
