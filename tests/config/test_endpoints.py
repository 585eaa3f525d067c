from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.endpoints import _parse
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from flowstack.config.endpoints import FORMS, UNFIT, Address, address, fields, kind_of
from flowstack.errors import ParseError
from flowstack.redact import shown

KINDS = ", ".join(FORMS)


def rejection(endpoint: str) -> tuple[str, str]:
    """What was found and what was expected."""
    with pytest.raises(ParseError) as caught:
        address(endpoint)
    found, comma, expected = str(caught.value).removeprefix("found ").partition(", expected ")
    assert comma
    return found, expected


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        ("tcp:80", Address("0.0.0.0", 80)),
        ("tcp:port=80:interface=127.0.0.1:backlog=9", Address("127.0.0.1", 80)),
        ("tcp:0:interface=localhost", Address("localhost", 0)),
        ("tcp:80:interface=\\:\\:1", Address("::1", 80)),
        ("tcp6:80", Address("::", 80)),
        ("unix:/run/a\\:b:mode=660", Address("/run/a:b", None)),
        ("systemd:domain=INET:name=flowstack.socket", None),
        ("systemd:domain=INET6:index=0", None),
        ("systemd:name=x:domain=UNIX", None),
    ],
)
def test_a_listener_is_understood_without_being_bound(endpoint: str, where: Address | None) -> None:
    assert address(endpoint) == where


BAD_FORM = {
    "tcp": "'tcp' without its port",
    "tcp:": "'tcp:' with a word where a number belongs",
    "tcp:http": "'tcp:http' with a word where a number belongs",
    "tcp:80:backlog=x": "'tcp:80:backlog=x' with a word where a number belongs",
    "tcp:80:inteface=127.0.0.1": "'tcp:80:inteface=127.0.0.1' with the unknown argument inteface",
    "tcp:80:127.0.0.1:50:9": "'tcp:80:127.0.0.1:50:9' with too many arguments",
    "tcp:80\\": "'tcp:80\\\\', which Twisted cannot read",
    "tcp:80:é=1": "'tcp:80:é=1', which Twisted cannot read",
    "tcp6": "'tcp6' without its port",
    "unix": "'unix' without its address",
    "unix:": "'unix:' without its address",
    "unix:/a:mode=rw": "'unix:/a:mode=rw' with a word where a number belongs",
    "systemd": "'systemd'",
    "systemd:INET:name=x": "'systemd:INET:name=x'",
    "systemd:domain=INET": "'systemd:domain=INET'",
    "systemd:domain=TCP:name=x": "'systemd:domain=TCP:name=x'",
    "systemd:domain=INET:name=x:index=0": "'systemd:domain=INET:name=x:index=0'",
    "systemd:domain=INET:index=-1": "'systemd:domain=INET:index=-1'",
    "systemd:domain=INET:name=": "'systemd:domain=INET:name='",
    "systemd:domain=INET:name=x:a=b": "'systemd:domain=INET:name=x:a=b'",
    "ssl:443:privateKey=/nowhere/key.pem": "'ssl:443:privateKey=/nowhere/key.pem', whose file '/nowhere/key.pem' "
    "cannot be read (No such file or directory)",
}  # fmt: skip


@pytest.mark.parametrize(("endpoint", "found"), BAD_FORM.items())
def test_a_string_that_is_no_listener_is_refused_with_the_form_of_its_kind(endpoint: str, found: str) -> None:
    told, expected = rejection(endpoint)
    assert told == found
    assert expected.startswith(FORMS[endpoint.partition(":")[0]])


@pytest.mark.parametrize(
    ("endpoint", "found", "hint"),
    [
        ("tpc:80", "'tpc:80', of an unknown kind", " (did you mean tcp?)"),
        ("8080", "'8080', of an unknown kind", ""),
        ("", "an empty endpoint string", ""),
    ],
)
def test_an_unknown_kind_is_refused_with_the_kinds_that_there_are(endpoint: str, found: str, hint: str) -> None:
    expected = f"an endpoint string of one of {KINDS}{hint}, such as tcp:8080:interface=127.0.0.1"
    assert rejection(endpoint) == (found, expected)


UNFIT_STRINGS = {
    "stdio:": "an endpoint that several clients can connect to",
    "tls:/etc/flowstack/tls:443": "ssl:PORT:privateKey=FILE:certKey=FILE",
    "tls:443": "SIGHUP reloads its certificate",
    "haproxy:tcp:80": "proxy_protocol = true and trusted_proxies",
    "haproxy:ssl:443:privateKey=/key.pem": "proxy_protocol = true and trusted_proxies",
    "haproxy:haproxy:unix:/a": "proxy_protocol = true and trusted_proxies",
    "hap\\roxy:tcp:80": "proxy_protocol = true and trusted_proxies",
    "interface=127.0.0.1:haproxy:tcp:80": "proxy_protocol = true and trusted_proxies",
    "\\tls:/etc/flowstack/tls:443": "ssl:PORT:privateKey=FILE:certKey=FILE",
}


@pytest.mark.parametrize(("endpoint", "instead"), UNFIT_STRINGS.items())
def test_a_kind_that_is_not_fit_is_refused_with_what_takes_its_place(endpoint: str, instead: str) -> None:
    found, expected = rejection(endpoint)
    assert found == shown(endpoint)
    assert instead in expected


@pytest.mark.parametrize("parser", [plugin.prefix for plugin in getPlugins(IStreamServerEndpointStringParser)])
def test_each_kind_that_twisted_has_is_one_of_ours_or_refused(parser: str) -> None:
    assert (parser in FORMS) != (parser in UNFIT), f"nobody has judged whether a proxy can listen on {parser}:"


@pytest.mark.parametrize(
    "endpoint", ["tcp:80", "t\\cp:a\\:b=c\\=d:x\\\\:y", "a=1:tcp:b=c=d:", "unix:/run/a\\:b:mode=660"]
)
def test_an_endpoint_string_is_split_as_twisted_splits_it(endpoint: str) -> None:
    positional, named = fields(endpoint)
    assert _parse(endpoint) == (positional, named)
    assert kind_of(endpoint) == positional[0]


@pytest.mark.parametrize("port", ["-1", "65536", "99999999999999999999"])
def test_a_port_is_one_that_can_be_bound(port: str) -> None:
    assert rejection(f"tcp:{port}") == (f"'tcp:{port}'", "a port from 0 to 65535, as tcp:PORT[:interface=ADDRESS]")


@pytest.mark.parametrize("interface", ["127.0.0.300", "1.2.3", "fe80\\:\\:xyz"])
def test_an_interface_that_looks_like_an_address_is_one(interface: str) -> None:
    expected = "an IP address of this machine as interface, as tcp:PORT[:interface=ADDRESS]"
    assert rejection(f"tcp:80:interface={interface}")[1] == expected


def test_a_tls_listener_with_its_key_and_certificate_is_taken(tls: Path) -> None:
    endpoint = f"ssl:443:privateKey={tls}/key.pem:certKey={tls}/cert.pem:extraCertChain={tls}/chain.pem"
    assert address(endpoint) == Address("0.0.0.0", 443)


@pytest.mark.parametrize(
    ("key", "certificate"),
    [("key.pem", "authority.pem"), ("empty.pem", "cert.pem"), ("key.pem", "empty.pem"), ("key.pem", "key.pem")],
    ids=["of another key", "no key", "no certificate", "key twice"],
)
def test_a_key_and_certificate_that_do_not_make_a_pair_are_refused(tls: Path, key: str, certificate: str) -> None:
    endpoint = f"ssl:443:privateKey={tls}/{key}:certKey={tls}/{certificate}"
    found, expected = rejection(endpoint)
    assert found.endswith("whose private key or certificate is not valid PEM, or which do not belong together")
    assert expected.endswith("with a PEM private key and its certificate")


def test_an_encrypted_key_is_refused_instead_of_asking_for_its_pass_phrase(tls: Path) -> None:
    found, expected = rejection(f"ssl:443:privateKey={tls}/encrypted.pem:certKey={tls}/encrypted-cert.pem")
    assert found == f"an encrypted private key in '{tls}/encrypted.pem'"
    assert expected == "a key without a pass phrase: no one is there to type it"


@pytest.mark.parametrize(
    "form",
    [
        "ssl:443:privateKey={fifo}:certKey={tls}/cert.pem",
        "ssl:443:privateKey={tls}/key.pem:certKey={fifo}",
        "ssl:443:{fifo}:{tls}/cert.pem",
        "ssl:443:{tls}/key.pem:{fifo}",
        "privateKey={tls}/key.pem:ssl:443:certKey={fifo}",
        "ssl:443:privateKey={tls}/key.pem:certKey={tls}/cert.pem:extraCertChain={fifo}",
        "ssl:443:privateKey={tls}/key.pem:certKey={tls}/cert.pem:dhParameters={fifo}",
    ],
)
def test_a_file_of_a_tls_listener_s_that_is_none_is_not_waited_for(tls: Path, tmp_path: Path, form: str) -> None:
    fifo = tmp_path / "fifo.pem"
    os.mkfifo(fifo)
    found, _ = rejection(form.format(fifo=fifo, tls=tls))
    assert found.endswith(f"whose '{fifo}' is no regular file")


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("tcp:80", "tcp:80", True),
        ("tcp:80", "tcp:81", False),
        ("tcp:0", "tcp:0", False),
        ("tcp:80", "tcp:80:interface=127.0.0.1", True),
        ("tcp:80:interface=127.0.0.1", "tcp:80:interface=127.0.0.2", False),
        ("tcp6:80", "tcp:80:interface=\\:\\:1", True),
        ("tcp6:80:interface=\\:\\:1", "tcp:80:interface=127.0.0.1", False),
        ("tcp:80:interface=127.0.0.1", "tcp6:80", False),
        ("unix:/a", "unix:/a:mode=600", True),
        ("unix:/a", "unix:/b", False),
    ],
)
def test_two_listeners_clash_where_both_cannot_be_bound(one: str, other: str, clash: bool) -> None:
    here, there = address(one), address(other)
    assert here is not None
    assert there is not None
    assert here.clashes(there) is clash
    assert there.clashes(here) is clash


def test_checking_endpoints_leaves_the_choice_of_a_reactor_open() -> None:
    program = (
        "import sys\n"
        "from flowstack.config.endpoints import address\n"
        "for endpoint in ('tcp:1', 'tcp6:1', 'unix:/a', 'systemd:domain=INET:name=x'):\n"
        "    address(endpoint)\n"
        "sys.exit('twisted.internet.reactor' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
