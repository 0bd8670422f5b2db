import json
import sys
from array import array
from pathlib import Path

import pytest
from small_tokenizers import TEMPLATE, byte_level, save, sentence_piece
from transformers import AutoTokenizer

from router.tokenization import local
from router.tokenization.local import NotLoaded, load
from router.tokenization.prompt import Chat, Ids, Inexact, Texts, Why

TURNS = [{"role": "user", "content": "hello <|end|> there"}, {"role": "assistant", "content": "it's"}]


def ids(data):
    return list(array("I", data))


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_loaded_tokenizer_does_what_transformers_does(tmp_path, make):
    folder = save(tmp_path, make())
    ours, theirs = load(folder, 1 << 20), AutoTokenizer.from_pretrained(folder)
    for special_tokens in (True, False):
        text = "the lazy<|start|> dog"
        assert (
            ids(ours.ids(Texts((text,), special_tokens)))
            == theirs(text, add_special_tokens=special_tokens).input_ids
        )
    for more in ({"add_generation_prompt": True}, {"continue_final_message": True}):
        expected = theirs.apply_chat_template(TURNS, return_dict=False, **more)
        assert ids(ours.ids(Chat(TURNS, None, more))) == expected


def test_several_texts_and_ids_come_one_after_the_other(folder):
    tokenizer = load(folder, 1 << 20)
    both = tokenizer.ids(Texts(("hello", "dog")))
    assert both == tokenizer.ids(Texts(("hello",))) + tokenizer.ids(Texts(("dog",)))
    assert tokenizer.ids(Ids(b"1234")) == b"1234"
    assert sum(look.size for look in tokenizer.look(Texts(("hello", "quick", "lazy")))) == len("quicklazy")


def test_a_model_without_a_template_still_tokenizes_texts(tmp_path):
    tokenizer = load(save(tmp_path, byte_level(), template=None), 1 << 20)
    assert tokenizer.ids(Texts(("hello",)))
    with pytest.raises(Inexact, match="no usable chat template") as inexact:
        tokenizer.ids(Chat(TURNS))
    assert inexact.value.why is Why.FAILED


def test_a_template_that_is_none_is_told(tmp_path):
    tokenizer = load(save(tmp_path, byte_level(), template="{% for %}"), 1 << 20)
    with pytest.raises(Inexact):
        tokenizer.ids(Chat(TURNS))


@pytest.mark.parametrize("content", ["", "{", '{"model": 5}', json.dumps({"version": "1.0"})])
def test_a_corrupt_tokenizer_is_not_loaded_and_named(tmp_path, content):
    folder = save(tmp_path, byte_level(), TEMPLATE)
    (Path(folder) / "tokenizer.json").write_text(content)
    with pytest.raises(NotLoaded, match=tmp_path.name):
        load(folder, 1 << 20)


def test_what_is_not_there_is_not_loaded(tmp_path):
    for source in (str(tmp_path / "missing"), str(tmp_path), "no-one/has-this-model"):
        with pytest.raises(NotLoaded, match=source):
            load(source, 1 << 20)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotLoaded, match=r"fairlead-router\[tokens\]"):
        load("anything", 1 << 20)


def test_finding_out_whether_the_extra_is_there_imports_nothing(monkeypatch):
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
    assert not local.installed()
