"""Workers in the configuration: KV events, certificates and addresses are checked before a start."""

import os

import pytest
import trustme

from router.config.render import as_yaml
from router.config.schema import Config
from router.config.worker import WorkerConfig
from router.config.yaml_lines import ConfigError
from workers.fleet.worker import WorkerSpec
from workers.http.tls import TlsFiles, context_of
from workers.kv_events.sources import KvSource

URL = "http://10.0.0.7:8000"


def load(tmp_path, text):
    path = tmp_path / "fairlead.yaml"
    path.write_text(text)
    return Config.load(path, {})


@pytest.mark.parametrize(
    ("told", "sources"),
    [
        (None, None),
        (False, ()),
        ("off", ()),
        ([], ()),
        ("tcp://10.0.0.7:5557", (KvSource("tcp://10.0.0.7:5557"),)),
        (
            {"endpoint": "tcp://a:1", "replay_endpoint": "tcp://a:2", "topic": "kv"},
            (KvSource("tcp://a:1", "tcp://a:2", "kv"),),
        ),
        (["ipc:///run/kv"], (KvSource("ipc:///run/kv"),)),
    ],
)
def test_where_events_come_from_is_said_in_short_or_in_full(told, sources):
    assert WorkerConfig(url=URL, kv_events=told).spec().kv_events == sources


def test_each_engine_has_an_endpoint_of_its_own():
    worker = WorkerConfig(url=URL, data_parallel=2, kv_events=["tcp://a:1", "tcp://a:2"])
    assert worker.spec().kv_events == (KvSource("tcp://a:1"), KvSource("tcp://a:2"))
    assert WorkerConfig(url=URL, data_parallel=2, kv_events="off").spec().kv_events == ()


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("kv_events: 10.0.0.7:5557", "kv_events[0].endpoint", "neither tcp://HOST:PORT nor ipc://PATH"),
        ("kv_events: {endpoint: 'tcp://*:5557'}", "kv_events[0].endpoint", "names no host to connect to"),
        (
            "kv_events: {endpoint: 'tcp://a:1', replay_endpoint: 'tcp://a'}",
            "kv_events[0].replay_endpoint",
            "neither tcp://HOST:PORT nor ipc://PATH",
        ),
        ("kv_events: {topic: kv}", "kv_events[0].endpoint", "is required"),
        ("kv_events: {endpoints: 'tcp://a:1'}", "kv_events[0].endpoints", "did you mean `endpoint`"),
        ("kv_events: ['tcp://a:1', 'tcp://a:2']", "workers[0]", "2 of them, for 1 engines (`data_parallel`)"),
        ("data_parallel: 2\n   kv_events: 'tcp://a:1'", "workers[0]", "1 of them, for 2 engines"),
    ],
)
def test_an_endpoint_that_nobody_can_connect_to_is_refused_at_its_place(tmp_path, text, where, message):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, f"workers:\n - url: {URL}\n   {text}\n")
    problems = [str(problem) for problem in refused.value.problems]
    assert any(where in problem and message in problem for problem in problems), problems


@pytest.mark.parametrize(("text", "setting"), [("off", "off"), ("on", "auto"), ("auto", "auto"), ("'off'", "off")])
def test_listening_is_turned_off_and_on_in_yamls_own_words(tmp_path, text, setting):
    assert load(tmp_path, f"health: {{kv_events: {text}}}").health.kv_events == setting


def test_a_word_that_is_neither_is_refused(tmp_path):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, "health: {kv_events: maybe}")
    assert "health.kv_events" in str(refused.value)
    assert Config().health.kv_events == "auto"


def test_what_is_printed_means_the_same(tmp_path):
    config = load(
        tmp_path,
        "workers:\n"
        f" - {{url: {URL}, kv_events: [{{endpoint: 'tcp://a:1', topic: kv}}]}}\n"
        " - {url: 'http://b:1', kv_events: off}\n"
        " - {url: 'http://c:1'}\n",
    )
    again = load(tmp_path, as_yaml(config))
    assert [worker.kv_events for worker in again.workers] == [worker.kv_events for worker in config.workers]


@pytest.fixture
def certificates(tmp_path):
    """Files of an authority, a certificate and its key."""
    authority = trustme.CA()
    certificate = authority.issue_cert("gateway.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    return tmp_path


def test_authorities_and_a_client_certificate_are_read_for_a_worker(certificates):
    config = load(
        certificates,
        "workers:\n"
        f" - {{url: 'https://w', tls_authorities: {certificates}/ca.pem,"
        f" tls_certificate: {certificates}/both.pem}}\n"
        f" - {{url: 'https://v', tls_certificate: {certificates}/cert.pem, tls_key: {certificates}/key.pem}}\n",
    )
    both, apart = config.workers
    assert context_of(both.spec().tls).get_ca_certs()
    assert context_of(apart.spec().tls) is context_of(apart.spec().tls)
    assert WorkerConfig(url="https://w").spec() == WorkerSpec("https://w")


def test_a_certificate_that_was_renewed_is_another_one(certificates):
    before = TlsFiles.read(certificates / "ca.pem")
    os.utime(certificates / "ca.pem", ns=(1, 1))
    assert TlsFiles.read(certificates / "ca.pem") != before


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("tls_authorities: {folder}/missing.pem", "missing.pem: No such file or directory"),
        ("tls_authorities: {folder}/fairlead.yaml", "fairlead.yaml cannot be used"),
        ("tls_certificate: {folder}/cert.pem", "cert.pem cannot be used"),
        ("tls_certificate: {folder}/cert.pem\n   tls_key: {folder}/ca.pem", "ca.pem cannot be used"),
        ("tls_key: {folder}/key.pem", "needs the certificate"),
    ],
)
def test_files_that_cannot_be_used_stop_the_start_by_name(certificates, told, message):
    text = "workers:\n - url: https://w\n   " + told.format(folder=certificates)
    with pytest.raises(ConfigError) as refused:
        load(certificates, text)
    assert message in str(refused.value)


def test_certificates_for_a_plain_url_are_a_mistake(certificates):
    with pytest.raises(ConfigError, match="https://"):
        load(certificates, f"workers:\n - url: http://w\n   tls_authorities: {certificates}/ca.pem")


def test_what_a_host_name_stands_for_and_what_is_loaded_on_demand_can_be_said():
    spec = WorkerConfig(url="http://w", addresses="one", resolves_adapters=True).spec()
    assert (spec.each_address, spec.resolves_adapters) == (False, True)
