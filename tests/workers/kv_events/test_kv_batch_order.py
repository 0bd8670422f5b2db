"""Where a numbered batch belongs, asked of values alone."""

from workers.kv_events.batch_order import BatchOrder, Place


def taken(*batches):
    order = BatchOrder()
    for number, ts in batches:
        order.take(number, ts)
    return order


def test_a_sequence_begins_with_number_0():
    assert BatchOrder().place(0, 1.0) is Place.NEXT
    assert BatchOrder().place(1, 1.0) is Place.AFTER_GAP


def test_what_was_repeated_already_is_known():
    order = taken((0, 1.0), (1, 2.0), (2, 3.0))
    assert order.place(1, 2.0) is Place.KNOWN
    assert order.place(2, 3.0) is Place.KNOWN
    assert order.place(3, 4.0) is Place.NEXT
    assert order.place(5, 6.0) is Place.AFTER_GAP


def test_a_small_number_with_a_late_date_is_another_process():
    assert taken((0, 1.0), (1, 2.0)).place(0, 9.0) is Place.ANOTHER_PROCESS


def test_a_number_that_was_published_before_is_another_process_whatever_its_date():
    order = taken((0, 1.0), (1, 2.0))
    order.hear(1)
    assert order.place(1, 0.5) is Place.ANOTHER_PROCESS
    assert order.place(0, 0.5) is Place.ANOTHER_PROCESS
    assert order.place(2, 0.5) is Place.NEXT


def test_asking_changes_nothing():
    order = taken((0, 1.0))
    for number in (0, 1, 5):
        order.place(number, 2.0)
    assert (order.next, order.before) == (1, 1.0)


def test_the_date_before_is_that_of_the_batch_just_before_or_none():
    order = taken((0, 1.0), (1, 2.0))
    assert order.before == 2.0
    order.take(2, None)
    assert (order.next, order.before) == (3, None)
    assert order.place(1, 1.9) is Place.KNOWN
    order.take(3, 3.0)
    order.skip_to(10)
    assert (order.next, order.before) == (10, None)
