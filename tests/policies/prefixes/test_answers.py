"""A prompt that goes on where an answered one ended is taken to go on with that answer, as long as that is so."""

from hypothesis import given as any_of
from hypothesis import strategies as st

from policies.prefixes import answers
from policies.prefixes.answers import Answer, Answers

QUESTION, MORE = b"What is it? ", b"It is so. And that?"


SPACE = (None, b"", 1)


def answered(*by, tokens=30, right=True):
    """The question, answered by each of these workers; suppositions have been right so far, or wrong."""
    made = Answers()
    for worker in by:
        made.record_answer(SPACE, QUESTION, answer(worker, tokens))
    made.record_found(8, 8 if right else 0)
    return made


def answer(worker, tokens):
    return Answer(worker, tokens, len(QUESTION) + tokens)


def behind(made, key, width=1, **held):
    return made.following(SPACE, key, width, held)


def test_who_has_answered_holds_the_answer_behind_the_prompt():
    made = answered("a")
    assert behind(made, QUESTION + MORE, a=len(QUESTION), b=len(QUESTION)) == {"a": 30}
    assert made.assumed("a", SPACE, QUESTION + MORE, len(QUESTION)) == answer("a", 30)
    assert made.assumed("b", SPACE, QUESTION + MORE, len(QUESTION)) is None


def test_units_may_be_wider_than_a_byte():
    assert behind(answered("a"), QUESTION + MORE, 4, a=len(QUESTION) // 4) == {"a": 30}


def test_only_a_match_that_ends_where_the_prompt_ended_goes_on_with_its_answer():
    made = answered("a")
    for units in (0, 1, len(QUESTION) - 1, len(QUESTION) + 1):
        assert behind(made, QUESTION + MORE, a=units) == {}
    assert behind(made, b"what" + QUESTION[4:] + MORE, a=len(QUESTION)) == {}


def test_an_answer_of_another_space_is_not_in_the_prompt():
    made = answered("a")
    assert made.following(("an adapter", b"", 1), QUESTION + MORE, 1, {"a": len(QUESTION)}) == {}


def test_the_same_prompt_again_has_no_answer_in_it():
    assert behind(answered("a"), QUESTION, a=len(QUESTION)) == {}


def test_of_several_answers_by_one_worker_the_last_counts():
    made = answered("a")
    made.record_answer(SPACE, QUESTION, answer("a", 50))
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {"a": 50}


def test_nobody_knows_which_answer_a_prompt_goes_on_with_that_several_workers_have_given():
    made = answered("a", "b", "b")
    assert behind(made, QUESTION + MORE, a=len(QUESTION), b=len(QUESTION)) == {}
    assert made.assumed("b", SPACE, QUESTION + MORE, len(QUESTION)) is None


def test_nothing_is_supposed_aloud_before_a_supposition_was_right():
    made = Answers()
    made.record_answer(SPACE, QUESTION, answer("a", 30))
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {}
    assert made.assumed("a", SPACE, QUESTION + MORE, len(QUESTION)) == answer("a", 30)
    made.record_found(30, 16)
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {"a": 30}


def test_where_most_answers_are_left_out_of_the_next_prompt_none_is_supposed_until_that_changes():
    made = answered("a")
    for _ in range(32):
        made.record_found(400, 0)
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {}
    for _ in range(16):
        made.record_found(400, 390)
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {"a": 30}


def test_a_worker_that_holds_nothing_any_more_has_answered_nothing():
    made = answered("a")
    made.record_answer(SPACE, QUESTION + MORE, answer("b", 5))
    made.forget("a")
    assert len(made) == 1
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {}
    assert behind(made, QUESTION + MORE + MORE, b=len(QUESTION + MORE)) == {"b": 5}


def test_the_prompts_that_were_answered_last_are_remembered(monkeypatch):
    monkeypatch.setattr(answers, "MAX_MARKS", 3)
    made = answered("a")
    for number in (1, 2, 3):
        made.record_answer(SPACE, b"%d" % number, answer("a", 1))
        if number == 1:
            made.record_answer(SPACE, QUESTION, answer("a", 30))
    assert len(made) == 3
    assert behind(made, QUESTION + MORE, a=len(QUESTION)) == {"a": 30}
    assert behind(made, b"1 more", a=1) == {}
    assert behind(made, b"2 more", a=1) == {"a": 1}


@any_of(
    st.lists(st.tuples(st.sampled_from("ab"), st.binary(min_size=1, max_size=3), st.integers(1, 9)), max_size=40)
)
def test_whatever_was_answered_each_prompt_is_marked_once_and_found_as_it_was(given):
    made, oracle = Answers(), {}
    made.record_found(1, 1)
    for worker, key, tokens in given:
        made.record_answer(SPACE, key, answer(worker, tokens))
        alone = key not in oracle or (oracle[key] is not None and oracle[key][0] == worker)
        oracle[key] = (worker, tokens) if alone else None
    assert len(made) == len(oracle)
    for key, mark in oracle.items():
        held = {"a": len(key), "b": len(key)}
        assert made.following(SPACE, key + b"!", 1, held) == ({} if mark is None else {mark[0]: mark[1]})
    made.forget("a")
    made.forget("b")
    assert len(made) == sum(mark is None for mark in oracle.values())
