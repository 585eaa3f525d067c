"""How an upstream, or a target of it, is reached, in the configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowstack.config import parse
from flowstack.config.credentials import proxy_authorization
from flowstack.config.settings import Target, Upstream
from flowstack.config.ways import Way, way_of
from flowstack.errors import ParseError
from tests.config.faults import PATH, lines_of, openai, parsed

PROXY = "http://, a host and a port, such as http://proxy.example:3128"
CANARY = "canary:hush"


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.secret"
    path.write_text(f"{CANARY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def pair(tls: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A certificate, and its key, which only its owner may read."""
    key = tmp_path / "key.pem"
    key.write_bytes((tls / "key.pem").read_bytes())
    key.chmod(0o600)
    return tls / "cert.pem", key


def test_the_ways_to_an_upstream_and_a_target_are_read(credentials: Path, pair: tuple[Path, Path], tls: Path) -> None:
    (upstream,) = parse(
        f"""
        [upstreams.openai]
        proxy = "http://proxy.example:3128/"
        proxy_auth_file = "{credentials}"
        client_cert_file = "{pair[0]}"
        client_key_file = "{pair[1]}"
        connection_max_age = 0
        [upstreams.openai.targets.near]
        base_url = "http://near.example/v1"
        socket = "run/http.sock"
        ca_file = "{tls}/authority.pem"
        """.encode(),
        "f.toml",
        directory=Path("/etc/flowstack"),
    ).upstreams
    assert upstream.connection_max_age == 0.0
    assert way_of(upstream) == Way(
        proxy="http://proxy.example:3128",
        proxy_auth_file=credentials,
        client_cert_file=pair[0],
        client_key_file=pair[1],
    )
    assert upstream.targets == (
        Target(
            "near",
            "http://near.example/v1",
            socket=Path("/etc/flowstack/run/http.sock"),
            ca_file=tls / "authority.pem",
        ),
    )


A, B = Path("/a"), Path("/b")


@pytest.mark.parametrize(
    ("upstream", "target", "found"),
    [
        ({}, {}, {}),
        ({"ca_file": A}, {}, {"ca_file": A}),
        ({"ca_file": A}, {"ca_file": B}, {"ca_file": B}),
        ({"ca_file": A}, {"socket": B}, {"ca_file": A, "socket": B}),
        ({"proxy": "p", "proxy_auth_file": A}, {}, {"proxy": "p", "proxy_auth_file": A}),
        ({"proxy": "p", "proxy_auth_file": A}, {"proxy": "q"}, {"proxy": "q"}),
        ({"proxy": "p", "proxy_auth_file": A}, {"socket": B}, {"socket": B}),
        ({"socket": A}, {"proxy": "q", "proxy_auth_file": B}, {"proxy": "q", "proxy_auth_file": B}),
        (
            {"client_cert_file": A, "client_key_file": A},
            {"client_cert_file": B, "client_key_file": B, "proxy": "q"},
            {"client_cert_file": B, "client_key_file": B, "proxy": "q"},
        ),
    ],
)
def test_a_targets_own_way_goes_before_its_upstreams(
    upstream: dict[str, object], target: dict[str, object], found: dict[str, object]
) -> None:
    assert way_of(Upstream(**upstream), Target("west", **target)) == Way(**found)  # type: ignore[arg-type]


BAD = {
    "proxy = 5": f"proxy: found 5, expected {PROXY}",
    "proxy = 'proxy.example:3128'": f"proxy: found 'proxy.example:3128', expected {PROXY}",
    "proxy = 'http://proxy.example'": f"proxy: found 'http://proxy.example', expected {PROXY}",
    "proxy = 'http://proxy.example:3128/x'": f"proxy: found 'http://proxy.example:3128/x', expected {PROXY}",
    "proxy = 'socks5://proxy.example:1080'": f"proxy: found 'socks5://proxy.example:1080', expected {PROXY}",
    "proxy = 'https://proxy.example:3129'": f"proxy: found 'https://proxy.example:3129', expected {PROXY}; TLS goes "
    "through a proxy, and not to it",
    "proxy = 'http://canary:hush@proxy.example:3128'": "proxy: found a URL that holds credentials (redacted), expected "
    f"{PROXY}; credentials go into proxy_auth_file",
    "proxy = 'http://proxy.example:3128'\nsocket = '/run/x'": "socket: found it beside proxy, expected one of the two",
    "socket = 5": f"socket: found 5, expected {PATH}",
    f"socket = '/{'x' * 107}'": f"socket: found '/{'x' * 99}…', a path of 108 bytes, expected a path of at most 107 "
    "bytes",
    "connection_max_age = -1": "connection_max_age: found -1, expected a number of seconds from 0 to 31536000",
}


@pytest.mark.parametrize(("lines", "fault"), BAD.items(), ids=[*BAD])
def test_a_bad_way_is_told_with_its_place(lines: str, fault: str) -> None:
    assert lines_of(openai(lines)) == [f"[upstreams.openai] {fault}"]


def test_what_does_not_go_together_is_told_of_upstreams_and_targets_at_once(
    credentials: Path, pair: tuple[Path, Path]
) -> None:
    alone = f"proxy_auth_file = '{credentials}'\n"
    text = openai(
        f"{alone}client_cert_file = '{pair[0]}'\n"
        f"[upstreams.openai.targets.a]\nbase_url = 'https://a'\n{alone}"
        f"[upstreams.openai.targets.b]\nbase_url = 'https://b'\nclient_key_file = '{pair[1]}'\n"
    )
    without = "proxy_auth_file: found it without proxy, expected it beside the proxy that it is for"
    both = "a certificate and its private key, or neither"
    assert lines_of(text) == [
        f"[upstreams.openai] {without}",
        f"[upstreams.openai] client_key_file: found nothing beside client_cert_file, expected {both}",
        f"[upstreams.openai.targets.a] {without}",
        f"[upstreams.openai.targets.b] client_cert_file: found nothing beside client_key_file, expected {both}",
    ]


def test_a_key_of_another_certificate_is_a_fault(tls: Path, pair: tuple[Path, Path]) -> None:
    other = tls / "authority.pem"
    lines = f"client_cert_file = '{other}'\nclient_key_file = '{pair[1]}'\n"
    fault = f"client_key_file: found '{pair[1]}', which is not that of client_cert_file, expected the private key of "
    assert lines_of(openai(f"{lines}[upstreams.openai.targets.west]\nbase_url = 'https://west'\n{lines}")) == [
        f"[upstreams.openai] {fault}the first certificate there",
        f"[upstreams.openai.targets.west] {fault}the first certificate there",
    ]


@pytest.mark.parametrize(
    ("mode", "name", "found"),
    [
        (0o604, "key.pem", "(mode 0604), which every user of this machine may read or write"),
        (0o600, "encrypted.pem", "found an encrypted private key in"),
        (0o600, "cert.pem", "found no private key in"),
    ],
)
def test_a_private_key_is_private_plain_and_there(tls: Path, tmp_path: Path, mode: int, name: str, found: str) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes((tls / name).read_bytes())
    key.chmod(mode)
    (line,) = lines_of(openai(f"client_cert_file = '{tls}/cert.pem'\nclient_key_file = '{key}'"))
    assert line.startswith("[upstreams.openai] client_key_file: found ")
    assert found in line and str(key) in line


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for key in ("client_cert_file", "client_key_file", "proxy_auth_file"):
        lines = lines_of(openai(f"proxy = 'http://p:1'\n{key} = '{tmp_path}/fifo'"))
        assert any("a FIFO, no regular file" in line for line in lines)


@pytest.mark.parametrize("text", [b"canary", b":hush", b"canary:hu\nsh", b"canary:hush\x00", b"\x01canary:hush"])
def test_credentials_are_a_user_and_a_password_on_one_line(text: bytes, credentials: Path) -> None:
    credentials.write_bytes(text)
    (line,) = lines_of(openai(f"proxy = 'http://proxy.example:3128'\nproxy_auth_file = '{credentials}'"))
    assert line == (
        f"[upstreams.openai] proxy_auth_file: found something else in '{credentials}', expected user:password, and "
        "nothing else"
    )


def test_credentials_are_what_the_proxy_is_told(credentials: Path) -> None:
    credentials.write_bytes("Aladdin:open sesame:ä\r\n".encode())
    assert proxy_authorization(credentials) == b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZTrDpA=="
    credentials.chmod(0o644)
    with pytest.raises(ParseError, match="every user of this machine"):
        proxy_authorization(credentials)


def test_an_empty_string_is_no_way_of_its_own() -> None:
    text = openai("".join(f"{key} = ''\n" for key in ("proxy", "proxy_auth_file", "socket", "client_key_file")))
    assert way_of(*parsed(text).upstreams) == Way()
