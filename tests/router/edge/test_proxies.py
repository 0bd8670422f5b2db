"""Whose request it is, by what proxies in front say of it: only those that are trusted are believed."""

import pytest
from typer.testing import CliRunner

from router.commands.cli import cli
from router.edge.proxies import TrustedProxies

TRUSTED = TrustedProxies(["10.0.0.0/8", "::1", "192.0.2.7"])


def client(peer, *forwarded):
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    found = TRUSTED.client({"client": (peer, 1234), "headers": headers})
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("10.1.2.3", ["203.0.113.9"], "203.0.113.9"),
        ("10.1.2.3", ["203.0.113.9, 10.9.9.9"], "203.0.113.9"),  # past a second proxy
        ("10.1.2.3", ["1.2.3.4, 203.0.113.9"], "203.0.113.9"),  # what the client itself has claimed
        ("10.1.2.3", ["1.2.3.4", "203.0.113.9"], "203.0.113.9"),  # on two lines
        ("10.1.2.3", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.1.2.3", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.1.2.3", ["203.0.113.9"], "203.0.113.9"),
        ("10.1.2.3", ["10.9.9.9"], "10.9.9.9"),  # a client inside
        ("203.0.113.9", ["1.2.3.4"], None),  # no proxy of ours
        ("10.1.2.3", [], None),
        ("10.1.2.3", ["unknown"], None),
        ("10.1.2.3", ["1.2.3.4, nonsense, 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["10.9.9.9," * 5000], None),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy_of_ours(peer, forwarded, found):
    assert client(peer, *forwarded) == found


def test_without_a_peer_nobody_is_believed():
    assert TRUSTED.client({"client": None, "headers": [(b"x-forwarded-for", b"1.2.3.4")]}) is None
    assert not TrustedProxies([])


def test_check_config_refuses_what_is_no_network(tmp_path):
    path = tmp_path / "fairlead.yaml"
    path.write_text("workers: [http://10.0.0.7:8000]\nlisten: {trusted_proxies: [proxy.example]}\n")
    result = CliRunner().invoke(cli, ["check-config", str(path)])
    assert (result.exit_code, "'proxy.example' is no address" in result.stderr) == (2, True)
