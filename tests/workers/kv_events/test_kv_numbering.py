"""Where a numbered batch belongs, asked of values alone."""

from workers.kv_events.numbering import Numbering, Place


def taken(*batches):
    numbering = Numbering()
    for number, ts in batches:
        numbering.take(number, ts)
    return numbering


def test_a_sequence_begins_with_number_0():
    assert Numbering().place(0, 1.0) is Place.NEXT
    assert Numbering().place(1, 1.0) is Place.AFTER_GAP


def test_what_was_repeated_already_is_known():
    numbering = taken((0, 1.0), (1, 2.0), (2, 3.0))
    assert numbering.place(1, 2.0) is Place.KNOWN
    assert numbering.place(2, 3.0) is Place.KNOWN
    assert numbering.place(3, 4.0) is Place.NEXT
    assert numbering.place(5, 6.0) is Place.AFTER_GAP


def test_a_small_number_with_a_late_date_is_another_process():
    assert taken((0, 1.0), (1, 2.0)).place(0, 9.0) is Place.ANOTHER_PROCESS


def test_a_number_that_was_published_before_is_another_process_whatever_its_date():
    numbering = taken((0, 1.0), (1, 2.0))
    numbering.hear(1)
    assert numbering.place(1, 0.5) is Place.ANOTHER_PROCESS
    assert numbering.place(0, 0.5) is Place.ANOTHER_PROCESS
    assert numbering.place(2, 0.5) is Place.NEXT


def test_asking_changes_nothing():
    numbering = taken((0, 1.0))
    for number in (0, 1, 5):
        numbering.place(number, 2.0)
    assert (numbering.next, numbering.before) == (1, 1.0)


def test_the_date_before_is_that_of_the_batch_just_before_or_none():
    numbering = taken((0, 1.0), (1, 2.0))
    assert numbering.before == 2.0
    numbering.take(2, None)
    assert (numbering.next, numbering.before) == (3, None)
    assert numbering.place(1, 1.9) is Place.KNOWN
    numbering.take(3, 3.0)
    numbering.skip_to(10)
    assert (numbering.next, numbering.before) == (10, None)
