import pytest

from router.edge.api.counts import FIELDS, ITEMS, TOKEN_IDS, VALUES, check_counts, check_values
from router.edge.errors import BadRequest


@pytest.mark.parametrize(
    ("fields", "where", "what", "most"),
    [
        ({"prompt": ["x"] * 2049}, "`prompt`", "2049 prompts", 2048),
        ({"prompt": [[5]] * 2049}, "`prompt`", "2049 prompts", 2048),
        ({"prompt": [7] * (TOKEN_IDS + 1)}, "`prompt`", f"{TOKEN_IDS + 1} token ids", TOKEN_IDS),
        ({"prompt": [[7] * (TOKEN_IDS // 2 + 1)] * 2}, "`prompt`", f"{TOKEN_IDS + 2} token ids", TOKEN_IDS),
        ({"messages": [{}] * (ITEMS + 1)}, "`messages`", f"{ITEMS + 1} messages", ITEMS),
        ({"messages": [{"content": [1] * 9000}] * 2}, "`messages`", "18000 content parts", ITEMS),
        ({"input": [{"content": [1] * 9000}] * 2}, "`input`", "18000 content parts", ITEMS),
        ({"input": [{}] * (ITEMS + 1)}, "`input`", f"{ITEMS + 1} items", ITEMS),
        ({"tools": [{}] * 2049}, "`tools`", "2049 tools", 2048),
        ({"stop": ["x"] * 257}, "`stop`", "257 stop strings", 256),
        ({"stop_sequences": ["x"] * 257}, "`stop_sequences`", "257 stop strings", 256),
        ({"documents": [""] * (ITEMS + 1)}, "`documents`", f"{ITEMS + 1} documents", ITEMS),
        ({"whatever": [None] * (ITEMS + 1)}, "`whatever`", f"{ITEMS + 1} items", ITEMS),
        ({"metadata": dict.fromkeys(map(str, range(ITEMS + 1)))}, "`metadata`", f"{ITEMS + 1} items", ITEMS),
        ({"w" * 500: [0] * (ITEMS + 1)}, f"`{'w' * 64}`", f"{ITEMS + 1} items", ITEMS),
        (dict.fromkeys(map(str, range(FIELDS + 1))), "The request body", f"{FIELDS + 1} fields", FIELDS),
    ],
    ids=lambda value: str(value)[:20],
)
def test_too_many_of_anything_are_refused_with_what_where_how_many_and_how_many_are_possible(
    fields, where, what, most
):
    with pytest.raises(BadRequest) as refused:
        check_counts(fields)
    assert refused.value.message == f"{where} has {what}; at most {most} are possible."
    assert refused.value.param in ("body", where.strip("`"))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["x"] * 2048},
        {"prompt": [7] * 200_000},
        {"prompt": [[7] * 500] * 100},
        {"prompt": "x" * 1_000_000},
        {"logit_bias": dict.fromkeys(map(str, range(200_000)), 1)},
        {"allowed_token_ids": [1] * 150_000},
        {"tokens": [1] * 200_000},
        {"messages": [{"content": "x"}] * ITEMS},
        {"messages": 5, "stop": "x", "tools": None, "input": {}},
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_models_and_apis_take_passes(fields):
    check_counts(fields)


def test_inputs_of_embeddings_are_prompts():
    check_counts({"input": ["x"] * 2048}, embeds=True)
    with pytest.raises(BadRequest, match="`input` has 2049 inputs; at most 2048"):
        check_counts({"input": ["x"] * 2049}, embeds=True)


@pytest.mark.parametrize("each", [b"0", b"[]", b"{}", b'"a"', b"[[1]]", b'{"a":1}'])
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(each):
    with pytest.raises(BadRequest, match=f"more than {VALUES} JSON values"):
        check_values(b'{"x":[' + (each + b",") * VALUES + each + b"]}")


@pytest.mark.parametrize("text", [b",", b"[{,", b'\\"[', b"\\\\,", b"\\u005b,"])
def test_commas_and_brackets_in_texts_are_no_values(text):
    check_values(b'{"prompt":"' + text * (VALUES + 5) + b'","x":[1,2]}')
