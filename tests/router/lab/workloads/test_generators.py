"""The seeded generators: what holds for all of them, and each one's numbers."""

import statistics
from array import array
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.prefixes.radix_tree import PrefixTree, TokenBudget
from router.lab.workload import UNIT_BYTES, WorkloadError
from router.lab.workloads.generators import BLOCK_TOKENS, SHAPES, Traffic, generate, options_of
from workers.simulator.engine import Engine
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest

NAMES = sorted(SHAPES)
KINDS = st.sampled_from(["none", "s1", "s2"])
SMALL = {"question_tokens": 60, "essay_tokens": 90, "document_tokens": 200, "system_tokens": 100}


def small(name, **options):
    """Options that keep the prompts of a generator short."""
    return {key: value for key, value in SMALL.items() if key in options_of(name)} | options


def units(key):
    return array("Q", key).tolist()


def programs(workload):
    """The requests of each session."""
    found = defaultdict(list)
    for request in workload.requests:
        found[request.session].append(request)
    return found


def mean(values):
    return statistics.fmean(list(values))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**40), st.integers(1, 120), st.integers(1, 5), KINDS)
def test_every_workload_is_well_formed_and_the_same_for_the_same_seed(name, seed, requests, clients, how):
    options = small(name, requests=requests, clients=clients, misbehaving=how)
    workload = generate(name, seed, **options)
    rows = list(workload.requests)
    assert rows == list(generate(name, seed, **options).requests)
    assert len(rows) == requests
    assert workload.name == name
    assert len(workload.clients) == clients
    assert workload.misbehaving == (set() if how == "none" else {workload.clients[-1]})
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    names = {}
    for number, row in enumerate(rows):
        assert row.input_tokens >= 1
        assert row.output_tokens >= 1
        assert len(row.key) == row.input_tokens // BLOCK_TOKENS * UNIT_BYTES
        whole = (row.input_tokens + row.output_tokens) // BLOCK_TOKENS
        assert len(row.key + row.reply_key) in {len(row.key), whole * UNIT_BYTES}
        assert row.weight == workload.weights[row.client]
        if row.after is not None:
            before, delay = row.after
            assert before < number
            assert delay >= 0
            assert row.at == pytest.approx(rows[before].at + delay)
            assert row.session == rows[before].session
            assert row.key.startswith(rows[before].key + rows[before].reply_key)
        history = ()
        for unit in units(row.key):  # equal units stand behind equal units
            assert names.setdefault(unit, history) == history
            history = (unit,)


def test_another_seed_is_another_workload():
    assert list(generate("chat", 1, requests=50).requests) != list(generate("chat", 2, requests=50).requests)


@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_workload_is_the_beginning_of_a_longer_one(name):
    # Made-up units are numbered as they are written, so what is compared is everything else.
    def rows(count):
        made = generate(name, 3, **small(name, requests=count)).requests[:40]
        return [(row.at, row.client, row.input_tokens, row.output_tokens, row.after, row.session) for row in made]

    assert rows(40) == rows(400)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["s1", "s2"])
def test_the_well_behaved_clients_do_the_same_whatever_the_other_does(name, how):
    def rows(misbehaving):
        workload = generate(name, 5, **small(name, duration_s=20, rate=8, clients=4, misbehaving=misbehaving))
        return [
            (row.at, row.client, row.input_tokens, row.output_tokens, row.session)
            for row in workload.requests
            if row.client != "client-3"
        ]

    assert rows("none") == rows(how)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_kept_in_the_mean(name):
    rate = 50
    pauses = {"think_s": 0.5} if name == "chat" else {}  # a loop gets to its rate within a program's length
    workload = generate(name, 7, **small(name, requests=8000, rate=rate), **pauses)
    assert len(workload.requests) / workload.requests[-1].at == pytest.approx(rate, rel=0.2)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gaps_between_a_client_s_programs_have_the_wanted_variation(cv):
    workload = generate("poisson", 11, requests=6000, clients=1, arrival_cv=cv)
    ats = [request.at for request in workload.requests]
    gaps = [later - earlier for earlier, later in pairwise(ats)]
    assert statistics.stdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.1)


def test_duration_ends_the_starts_of_programs():
    workload = generate("chat", 1, duration_s=30, rate=20)
    starts = [request.at for request in workload.requests if request.after is None]
    assert 25 < max(starts) < 30
    assert max(request.at for request in workload.requests) > 30


def test_weights_are_dealt_to_the_clients_in_turn_also_as_text():
    expected = {"client-0": 1.0, "client-1": 2.0, "client-2": 1.0}
    for weights in ((1, 2), "1/2"):
        workload = generate("poisson", clients="3", weights=weights)
        assert workload.weights == expected
        assert all(request.weight == expected[request.client] for request in workload.requests)
    assert len(workload.requests) == 1000


def test_client_names_sort_as_their_numbers():
    assert list(generate("poisson", clients=11).clients) == sorted(generate("poisson", clients=11).clients)


def test_a_tree_of_thoughts_has_the_paper_s_numbers():
    (tree, *_rest) = programs(generate("tot", 1, duration_s=60)).values()
    assert len(tree) == 2 + 4 + 8 + 16
    assert [row.input_tokens - tree[0].input_tokens for row in tree] == [0] * 2 + [280] * 4 + [560] * 8 + [
        840
    ] * 16
    flood = programs(generate("tot", 1, duration_s=60, misbehaving="s1"))
    assert {len(rows) for session, rows in flood.items() if session.startswith("client-7/")} == {340}
    assert {len(rows) for session, rows in flood.items() if session.startswith("client-6/")} == {30}
    roots = [row for row in generate("tot", 1, requests=9000).requests if row.after is None]
    assert mean(row.input_tokens for row in roots) == pytest.approx(546, rel=0.05)
    assert {row.output_tokens for row in roots} == {256}
    assert Counter(row.after[0] for row in tree if row.after).most_common(1)[0][1] == 2


def test_longer_questions_of_a_tree_are_ten_times_as_long():
    workload = generate("tot", 1, duration_s=300, misbehaving="s2")
    sizes = {True: [], False: []}
    for row in workload.requests:
        if row.after is None:
            sizes[row.client in workload.misbehaving].append(row.input_tokens)
    assert mean(sizes[True]) / mean(sizes[False]) == pytest.approx(10, rel=0.1)


def test_judgements_have_the_paper_s_numbers():
    essays = programs(generate("judge", 1, requests=4000))
    first = next(iter(essays.values()))
    assert len(first) == 2
    assert len({row.at for row in first}) == 1
    assert mean(row.input_tokens for rows in essays.values() for row in rows) == pytest.approx(2701, rel=0.02)
    one, other = (units(row.key) for row in first)
    assert sum(a == b for a, b in zip(one, other, strict=True)) >= len(one) - 4, "the essay is shared"
    assert one[-1] != other[-1]
    flood = programs(generate("judge", 1, duration_s=60, misbehaving="s1"))
    assert {len(rows) for session, rows in flood.items() if session.startswith("client-7/")} == {16}
    longer = generate("judge", 1, requests=4000, misbehaving="s2")
    assert mean(row.input_tokens for row in longer.requests if row.client in longer.misbehaving) == pytest.approx(
        3301, rel=0.05
    )


def test_long_documents_have_the_paper_s_numbers():
    workload = generate("longqa", 1, requests=3000)
    assert mean(row.input_tokens for row in workload.requests) == pytest.approx(21_449, rel=0.05)
    assert mean(row.output_tokens for row in workload.requests) == pytest.approx(15, rel=0.05)
    document = programs(generate("longqa", 1, requests=200))["client-0/0"]
    assert len({row.key[: 400 * UNIT_BYTES] for row in document}) == 1
    more = generate("longqa", 1, duration_s=2000, misbehaving="s1")
    counts = Counter(row.client for row in more.requests)
    assert counts["client-7"] / mean(counts[f"client-{n}"] for n in range(7)) == pytest.approx(4, rel=0.3)
    longer = generate("longqa", 1, requests=3000, misbehaving="s2")
    assert mean(row.input_tokens for row in longer.requests if row.client in longer.misbehaving) == pytest.approx(
        42_849, rel=0.1
    )


def test_a_chat_turn_repeats_everything_before_it():
    workload = generate("chat", 1, requests=5000)
    messages, before = [], {}
    for row in workload.requests:
        past = before.get(row.session)
        assert (past is None) == (row.after is None)
        if past is not None:
            assert row.input_tokens > past.input_tokens + past.output_tokens
            assert row.key.startswith(past.key + past.reply_key)
        messages.append(row.input_tokens - (past.input_tokens + past.output_tokens if past else 0))
        before[row.session] = row
    assert mean(messages) == pytest.approx(56, rel=0.05)
    assert mean(row.output_tokens for row in workload.requests) == pytest.approx(142, rel=0.05)
    whole = programs(generate("chat", 1, duration_s=150)).values()
    assert mean(len(rows) for rows in whole) == pytest.approx(8, rel=0.15)


def test_agents_of_a_kind_share_their_system_prompt_and_grow_by_tool_results():
    workload = generate("agents", 1, requests=5000, kinds=3)
    starts = {row.key[: 100 * UNIT_BYTES] for row in workload.requests}
    assert len(starts) == 3, "over all clients"
    sessions = [rows for rows in programs(workload).values() if len(rows) > 1]
    grown = [
        late.input_tokens - early.input_tokens - early.output_tokens
        for rows in sessions
        for early, late in pairwise(rows)
    ]
    assert mean(grown) == pytest.approx(350, rel=0.1)
    assert mean(row.output_tokens for row in workload.requests) == pytest.approx(97, rel=0.1)


def test_the_wanted_share_of_plain_requests_begins_with_a_common_prefix():
    workload = generate("poisson", 1, requests=4000, shared=0.3, prefixes=2, prefix_tokens=160)
    starts = Counter(row.key[: 10 * UNIT_BYTES] for row in workload.requests if len(row.key) >= 80)
    common = [count for _start, count in starts.most_common(2)]
    assert sum(common) / 4000 == pytest.approx(0.3, abs=0.03)
    assert common[0] / common[1] == pytest.approx(2, rel=0.2)
    assert starts.most_common(3)[2][1] == 1


@pytest.mark.parametrize("name", ["chat", "agents", "tot", "judge"])
def test_router_and_engine_find_the_same_prefixes(name):
    config = EngineConfig(kv_blocks=200_000)
    engine = Engine(config, PROFILES["h100-llama-3.1-8b"])
    tree = PrefixTree(UNIT_BYTES, budget=TokenBudget(200_000))
    hits = 0
    for number, row in enumerate(generate(name, 2, requests=60).requests):
        expected = tree.match(row.key).get("w", 0) * BLOCK_TOKENS
        asked = EngineRequest(
            str(number), Blocks(row.block_names, row.input_tokens), row.output_tokens, row.output_tokens
        )
        sequence = engine.add(asked, engine.next_event() or 0.0)
        while (at := engine.next_event()) is not None:
            engine.advance(at)
        # One block less where the last token of an answer, or of the prompt, is the one that has to be computed.
        assert expected - BLOCK_TOKENS <= sequence.cached <= expected
        hits += sequence.cached
        tree.insert("w", row.key + row.reply_key, float(number))
    assert hits > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tott", {}, "there is no generator `tott`; did you mean `tot`?"),
        ("zzz", {}, "there is no generator `zzz`; known are tot, judge, longqa, chat, agents, poisson"),
        ("tot", {"branch": 3}, "`tot` has no option `branch`; did you mean `branches`?"),
        ("judge", {"zzz": 3}, "`judge` has no option `zzz`; known are clients, weights, requests, "),
        ("chat", {"clients": 0}, "`clients`: Input should be greater than or equal to 1"),
        ("chat", {"clients": "many"}, "`clients`: Input should be a valid integer"),
        ("chat", {"turns": -1, "rate": "0"}, "`rate`: Input should be greater than 0; `turns`: Input should be"),
        ("chat", {"misbehaving": "s3"}, "`misbehaving`: Input should be 'none', 's1' or 's2'"),
        ("chat", {"weights": "1/0"}, "`weights`: Input should be greater than 0"),
        ("chat", {"clients": 1, "weights": "1/2"}, "`weights`: there are more of them than clients"),
        (
            "chat",
            {"clients": 1, "misbehaving": "s1", "misbehaving_clients": 2},
            "`misbehaving_clients`: there are more of them than clients",
        ),
        ("chat", {"duration_s": 1e-9}, "`chat`: no request arrives within 1e-09 s"),
    ],
)
def test_a_name_or_an_option_that_does_not_fit_says_why(name, options, message):
    with pytest.raises(WorkloadError) as caught:
        generate(name, **options)
    assert str(caught.value).startswith(message)


def test_the_options_of_a_generator_have_their_defaults():
    assert options_of("tot")["branches"] == 2
    assert options_of("tot")["rate"] == SHAPES["tot"].rate
    common = set(Traffic.__dataclass_fields__)
    for shape in SHAPES.values():
        assert not common & {field.name for field in fields(shape)}, "no option means two things"


def test_what_requests_want_beside_their_text_changes_nothing_else():
    plain = list(generate("agents", 3, requests=200).requests)
    options = {"whole": 0.25, "sequences": 2, "adapters": 2, "priorities": "0/5"}
    workload = generate("agents", 3, requests=200, **options, slo_ttft_s="0.5/30", slo_tpot_s="0.05/1")
    changed = list(workload.requests)
    assert [(r.at, r.client, r.key, r.after) for r in changed] == [(r.at, r.client, r.key, r.after) for r in plain]
    assert 30 <= sum(not request.streams for request in changed) <= 70
    by_client = {}
    for request in changed:
        kind = (request.sequences, request.served_name, request.priority, request.targets)
        by_client.setdefault(request.client, set()).add(kind)
    assert all(len(kinds) == 1 for kinds in by_client.values())
    ((sequences, name, priority, targets),) = by_client["client-1"]
    assert (sequences, name, priority, targets.ttft_s, targets.tpot_s) == (2, "adapter-1", 5, 30.0, 1.0)
    assert set(workload.served_names) == {"model", "adapter-1", "adapter-2"}


def test_service_levels_need_both_targets():
    with pytest.raises(WorkloadError, match="as many of one as of the other"):
        generate("chat", slo_ttft_s="1/2", slo_tpot_s="1")
