import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import catalog
from router.config.api_keys import hash_key
from router.config.render import as_yaml
from router.config.schema import Config
from router.config.sections import ClientConfig
from router.config.worker import WorkerConfig
from router.config.yaml_lines import MAX_NODES, ConfigError, dotted, read


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="fairlead.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def problems_of(path=None, env=None, overrides=None):
    with pytest.raises(ConfigError) as caught:
        Config.load(path, env or {}, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_with_nothing_but_workers_is_complete(write):
    config = Config.load(write("workers: [http://10.0.0.7:8000, {url: 'http://10.0.0.8:8000'}]"), {})
    assert [worker.url for worker in config.workers] == ["http://10.0.0.7:8000", "http://10.0.0.8:8000"]
    assert config.workers[0].spec().roles == {"prefill", "decode"}
    assert config.policies.placement.name == catalog.DEFAULT_PLACEMENT
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8000)


def test_every_mistake_is_told_at_once_with_line_path_and_the_nearest_right_name(write):
    path = write(
        "listen:\n"
        "  prot: 9000\n"
        "workers:\n"
        "  - url: http://10.0.0.7:8000\n"
        "    max_num_seq: 8\n"
        "  - url: ftp://10.0.0.7\n"
        "limit: {}\n"
        "log:\n"
        "  level: loud\n"
    )
    assert problems_of(path) == [
        f"{path}:2: listen.prot: not a known key; did you mean `port`?",
        f"{path}:5: workers[0].max_num_seq: not a known key; did you mean `max_num_seqs`?",
        f"{path}:6: workers[1].url: should begin with http:// or https://",
        f"{path}:7: limit: not a known key; did you mean `limits`?",
        f"{path}:9: log.level: should be 'debug', 'info', 'warning' or 'error' (it is \"loud\")",
    ]


def test_a_key_that_resembles_nothing_is_answered_with_the_known_keys(write):
    (problem,) = problems_of(write("metrics: {zzz: 1}"))
    assert problem.endswith(":1: metrics.zzz: not a known key; known are `max_clients`")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- http://10.0.0.7:8000", "this is a list; expected a mapping"),
        ("just text", "just the value 'just text'"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (b"listen: {port: 1}\0", "not a text file"),
        ("a: [1, 2", ":1: not valid YAML"),
        ("listen:\n  port: 1\n  port: 2", ":3: listen.port: given twice, first on line 2"),
        ("workers:\n - url: http://a\n   url: http://b", ":3: workers[0].url: given twice"),
        ("a: &a [*a]", "an alias that contains itself"),
        ("? [1]\n: 2", "a list or a mapping cannot be a key"),
        ("a: !!python/object/apply:os.getcwd []", "not a known key"),
        ("a: !thing x", "not a value that a configuration can hold"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_configuration_gets_a_clear_message(write, text, message):
    assert message in problems_of(write(text))[0]


def test_aliases_that_unfold_without_end_are_refused(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert MAX_NODES < 10**9
    assert "unfold" in problems_of(write("\n".join(lines)))[0]


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert "No such file" in problems_of(tmp_path / "none.yaml")[0]
    assert "directory" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("text", ["", "# nothing\n", "limits:\nworkers:\nlog: {}\n"])
def test_an_empty_file_and_empty_sections_mean_the_defaults(write, text):
    assert Config.load(write(text), {}) == Config()


def test_merge_keys_fill_in_what_a_mapping_does_not_say_itself(write):
    config = Config.load(
        write(
            "workers:\n"
            "  - &first {url: 'http://a:1', max_num_seqs: 8, model: m}\n"
            "  - &second {<<: *first, url: 'http://b:1'}\n"
            "  - {<<: *second, url: 'http://c:1', max_num_seqs: 9}\n"
        ),
        {},
    )
    assert [(w.url, w.max_num_seqs, w.model) for w in config.workers] == [
        ("http://a:1", 8, "m"),
        ("http://b:1", 8, "m"),
        ("http://c:1", 9, "m"),
    ]


def test_environment_overrides_the_file_and_the_command_line_overrides_both(write):
    path = write("listen: {port: 1000, host: 10.0.0.1, backlog: 7}")
    env = {"FAIRLEAD_LISTEN__PORT": "2000", "FAIRLEAD_LISTEN__HOST": "10.0.0.2"}
    config = Config.load(path, env, {"listen": {"port": 3000}})
    assert (config.listen.port, config.listen.host, config.listen.backlog) == (3000, "10.0.0.2", 7)


def test_lists_come_from_the_environment_as_json_and_policies_by_name():
    config = Config.load(
        None,
        {
            "FAIRLEAD_WORKERS": '["http://a:1"]',
            "FAIRLEAD_POLICIES__PLACEMENT": "round_robin",
            "FAIRLEAD_POLICIES__QUEUE": '{"name": "fcfs", "patience_s": 3}',
        },
    )
    assert config.workers[0].url == "http://a:1"
    assert config.policies.placement.name == "round_robin"
    assert config.policies.queue.settings.patience_s == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FAIRLEAD_LISTN__PORT", "1", "no such setting; did you mean FAIRLEAD_LISTEN__PORT?"),
        ("FAIRLEAD_PORT", "1", "no such setting; did you mean FAIRLEAD_LISTEN__PORT?"),
        ("FAIRLEAD_LISTEN__PROT", "1", "listen.prot: not a known key; did you mean `port`?"),
        ("FAIRLEAD_LISTEN__PORT", "many", "listen.port: should be a valid integer"),
        ("FAIRLEAD_WORKERS", "[", "given as JSON"),
        ("FAIRLEAD_WORKERS__0__URL", "http://a", "as JSON in FAIRLEAD_WORKERS"),
        ("FAIRLEAD_LISTEN__TLS_KEY", "/nowhere", "listen: `tls_certificate` and `tls_key` belong together"),
        ("FAIRLEAD_ZZZ", "1", "known are FAIRLEAD_SECTION__KEY with the sections"),
    ],
)
def test_a_variable_that_is_wrong_is_named(name, value, message):
    (problem,) = problems_of(env={name: value})
    assert problem.startswith(f"environment: {name}: ")
    assert message in problem


def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_left_alone():
    env = {
        "FAIRLEAD_PORT": "tcp://10.0.0.1:8000",
        "FAIRLEAD_PORT_8000_TCP_ADDR": "10.0.0.1",
        "FAIRLEAD_SERVICE_HOST": "10.0.0.1",
        "FAIRLEAD_SERVICE_PORT_HTTP": "8000",
        "FAIRLEAD_METRICS_SERVICE_PORT": "8000",
        "FAIRLEAD_VLLM_HOME": "/tmp",
        "FAIRLEAD_IMAGE": "registry.example/fairlead:1",
    }
    assert Config.load(None, env) == Config()


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("http://10.0.0.7:8000/", "http://10.0.0.7:8000"),
        ("HTTP://Host:80", "http://host"),
        ("https://host:443/vllm/", "https://host/vllm"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://host/v1v1", "http://host/v1v1"),
    ],
)
def test_a_worker_url_is_kept_in_one_spelling(given_url, kept):
    assert WorkerConfig(url=given_url).url == kept


def test_a_trailing_v1_is_taken_off_with_a_note(write):
    config = Config.load(write("workers: [http://a:1/v1/]"), {})
    assert config.workers[0].url == "http://a:1"
    assert config.notes == ("http://a:1/v1/: /v1 is left out; the router adds it where it belongs",)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("10.0.0.7:8000", "did you mean http://10.0.0.7:8000?"),
        ("http://", "host and a port"),
        ("http://host:99999", "not a URL"),
        ("http://me:pa55word@host", "use `api_key`"),
        ("http://host/?a=b", "neither"),
        ("http://ho st", "spaces"),
    ],
)
def test_a_url_that_cannot_be_a_worker_is_refused(write, url, message):
    (problem,) = problems_of(write(f"workers: ['{url}']"))
    assert ":1: workers[0].url: " in problem
    assert message in problem
    assert "pa55word" not in problem


def test_what_must_be_unique_is(write):
    path = write(
        "workers:\n"
        "  - http://a:80\n"
        "  - http://A/v1\n"
        "clients:\n"
        "  - {name: x, keys: [k1, k2]}\n"
        "  - {name: x, keys: [k2]}\n"
        "  - {name: x/y}\n"
        "models: {a: b, b: c, d: d}\n"
    )
    assert problems_of(path) == [
        f"{path}:3: workers[1].url: the same server as workers[0]",
        f"{path}:6: clients[1].name: the same name as clients[0]",
        f"{path}:6: clients[1].keys[0]: the same key as one of clients[0]",
        f"{path}:7: clients[2].name: lies below the client `x`, whose users would be taken for it",
        f"{path}:8: models.a: an alias of the alias `b`; name the model itself",
        f"{path}:8: models.d: an alias of itself",
    ]


def test_keys_are_hashed_when_read_whichever_way_they_are_given(write):
    write("from-file\n", "secret")
    path = write(
        f"clients: [{{name: a, keys: [plain, 'env:KEY', 'file:secret'], key_hashes: ['{hash_key('hashed')}']}}]"
    )
    config = Config.load(path, {"KEY": "from-env"})
    keys = ("plain", "from-env", "from-file", "hashed")
    assert config.clients[0].digests == tuple(hash_key(key) for key in keys)
    assert hash_key("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_no_secret_is_ever_shown(write):
    path = write(
        "workers: [{url: 'http://a', api_key: sk-worker}]\n"
        "clients: [{name: a, keys: [sk-client]}]\n"
        "admin: {key: sk-admin}\n"
    )
    config = Config.load(path, {})
    shown = repr(config) + str(config) + as_yaml(config)
    assert "sk-" not in shown
    assert config.workers[0].spec().api_key == "sk-worker"


@pytest.mark.parametrize(
    "text",
    [
        'clients: [{name: a, keys: ["sk-secret\\n"]}]',
        "clients: [{name: a, keys: sk-secret}]",
        "clients: [{name: a, keys: [{sk-secret: 1}]}]",
        "clients: [{name: a, key_hashes: [sk-secret]}]",
        "clients: [{name: a, api_key: sk-secret}]",
        "admin: {key: ' sk-secret'}",
        "admin: {key: sk-secret, key_hash: sk-secret}",
        "workers: [{url: 'http://a', api_key: [sk-secret]}]",
        f"clients: [{{name: a, keys: ['{hash_key('x')}']}}]",
        "clients: [{name: a, keys: ['env:NOT_SET']}]",
        "clients: [{name: a, keys: ['file:/nowhere']}]",
        "clients: [{name: a, keys: ['']}]",
    ],
)
def test_a_wrong_secret_is_refused_without_being_repeated(write, text):
    assert "sk-secret" not in "\n".join(problems_of(write(text)))


@pytest.mark.parametrize(
    "text",
    [
        "listen: {port: yes}",
        "listen: {port: 65536}",
        "limits: {drain_s: .inf}",
        "limits: {attempts: 0}",
        "limits: {queue_wait_s: .nan}",
        "clients: [{name: a, weight: 0}]",
        "clients: [{name: '../a'}]",
        "clients: [{name: a, requests_per_minute: -1}]",
        "workers: [{url: 'http://a', roles: []}]",
        "workers: [{url: 'http://a', roles: [prefil]}]",
        "workers: {url: 'http://a'}",
        "workers: [{}]",
        "admin: {}",
        "admin: {port: 9}",
        "policies: {hold_ms: -1}",
        "health: {scrape_every_s: 15}",
        "models: [a]",
    ],
)
def test_a_value_outside_its_range_is_refused(write, text):
    assert problems_of(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{placement: cache_awar}",
            "placement: there is no placement policy `cache_awar`; did you mean `cache_aware`",
        ),
        ("{placement: {name: zzz}}", "placement.name: there is no placement policy `zzz`; known are "),
        ("{queue: {name: fcfs, patience: 1}}", "queue.patience: not a known key; did you mean `patience_s`?"),
        ("{queue: {name: fcfs, patience_s: long}}", "queue.patience_s: "),
        ("{queue: [fcfs]}", "queue: should be a name, or a mapping"),
    ],
)
def test_a_policy_and_its_settings_are_checked_against_the_catalog(write, text, message):
    (problem,) = problems_of(write(f"policies: {text}"))
    assert f"policies.{message}" in problem


@pytest.mark.parametrize("kind", ["placement", "queue"])
def test_every_policy_of_the_catalog_can_be_chosen_by_its_name(kind):
    known = catalog.placement_policies() if kind == "placement" else catalog.queue_policies()
    for name, entry in known.items():
        choice = getattr(Config.load(None, {}, {"policies": {kind: name}}).policies, kind)
        assert (choice.name, choice.settings) == (name, entry.settings())


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Config().listen.port = 1


def test_the_admin_api_is_off_unless_it_has_a_key(write):
    assert Config().admin is None
    admin = Config.load(write("admin: {key: secret, port: 9001}"), {}).admin
    assert (admin.digest, admin.port, admin.host) == (hash_key("secret"), 9001, "127.0.0.1")


def test_what_is_printed_reads_back_as_the_same_configuration(write):
    path = write(
        "workers: [{url: 'http://a:1', roles: decode, max_num_seqs: 4}, http://b:1]\n"
        "clients: [{name: org/team, keys: [k1, k2], weight: 2, trust_user: yes}]\n"
        "models: {'on': m, '7': \"it's: odd\"}\n"
        "policies: {placement: round_robin, queue: {name: fcfs, patience_s: 4}}\n"
        "admin: {key: secret}\n"
        "log: {format: json}\n"
    )
    config = Config.load(path, {})
    again = Config.load(write(as_yaml(config), "again.yaml"), {})
    assert as_yaml(again) == as_yaml(config)
    assert again.workers == config.workers
    assert again.models == config.models
    assert again.clients[0].digests == config.clients[0].digests
    assert again.policies == config.policies


def test_the_printed_defaults_explain_every_key_and_are_the_defaults(write):
    text = as_yaml(Config())
    assert Config.load(write(text), {}) == Config()
    for model in (WorkerConfig, ClientConfig):
        for name, info in model.model_fields.items():
            assert f"{name}: " in text
            assert info.description in text


def test_the_address_for_clients_on_this_machine():
    def url(**listen):
        return Config.load(None, {}, {"listen": listen}).listen.url

    assert url() == "http://127.0.0.1:8000"
    assert url(host="0.0.0.0", port=1) == "http://127.0.0.1:1"
    assert url(host="::", port=1) == "http://[::1]:1"


KEYS = st.sampled_from(["a", "b", "on", "7", "null"])
TREES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.none(), st.text("ab:#- ", max_size=4)),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(data=st.dictionaries(KEYS, TREES, max_size=3))
def test_reading_agrees_with_pyyaml_and_every_value_has_a_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    path.write_text(yaml.safe_dump(data))
    file = read(path)
    assert file.data == data

    def paths(value, at=()):
        steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for step, below in steps:
            yield (*at, step)
            yield from paths(below, (*at, step))

    count = len(path.read_text().splitlines())
    for at in paths(data):
        assert 1 <= file.lines[at] <= count, dotted(at)
