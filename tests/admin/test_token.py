"""The admin listener's bearer token."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.web.resource import Resource

from flowstack.admin.access import Access
from flowstack.admin.health import admin_resource
from flowstack.admin.token import Token
from flowstack.errors import ParseError
from tests.admin.lab import AdminListener

SECRET = "s3cret-Token.of_16+/=="
OTHER = "another-token-of-more-than-16"


class Page(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:  # noqa: N802
        return b"the page"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "token", SECRET + "\n")


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def asked(token: Token | None, target: bytes, *authorizations: bytes, method: bytes = b"GET") -> bytes:
    access = Access(token, None, False, time.monotonic)
    listener = AdminListener(admin_resource(lambda: None, {b"page": Page()}, access))
    return listener.ask(target, method, *(b"Authorization: " + value for value in authorizations))


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER   "])
def test_who_shows_the_token_gets_the_page(path: Path, scheme: bytes) -> None:
    answer = asked(Token(path), b"/page", scheme + SECRET.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"the page")


@pytest.mark.parametrize(
    "shown",
    [
        (),
        (b"Bearer",),
        (b"Bearer ",),
        (SECRET.encode(),),
        (b"Basic " + SECRET.encode(),),
        (b"Bearer " + OTHER.encode(),),
        (b"Bearer " + SECRET[:-1].encode(),),
        (b"Bearer " + SECRET.encode() + b"=",),
        (b"Bearer " + SECRET.lower().encode(),),
        (b"Bearer " + SECRET.encode() + b", Bearer " + SECRET.encode(),),
        (b"Bearer " + SECRET.encode(), b"Bearer " + SECRET.encode()),
        (b"Bearer " + OTHER.encode(), b"Bearer " + SECRET.encode()),
        (b"Bearer \xff\xfe" + SECRET.encode(),),
    ],
)
@pytest.mark.parametrize("target", [b"/page", b"/page/x", b"/", b"//page", b"/nothing", b"/healthz/../page"])
def test_everybody_else_gets_401_with_a_challenge_and_learns_nothing(
    path: Path, shown: tuple[bytes, ...], target: bytes
) -> None:
    answer = asked(Token(path), target, *shown)
    if target.startswith(b"/healthz"):
        assert b"the page" not in answer
        return
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'\r\nWWW-Authenticate: Bearer realm="flowstack admin"\r\n' in answer
    assert b"the page" not in answer
    assert SECRET.encode() not in answer


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS"])
def test_no_method_goes_around_it(path: Path, method: bytes) -> None:
    assert asked(Token(path), b"/page", method=method).startswith(b"HTTP/1.1 401 ")


def test_head_gets_the_challenge_without_a_body(path: Path) -> None:
    answer = asked(Token(path), b"/page", method=b"HEAD")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"\r\n\r\n")


def test_health_needs_no_token(path: Path) -> None:
    for target in (b"/healthz", b"/readyz"):
        assert asked(Token(path), target).startswith(b"HTTP/1.1 200 ")


def test_without_a_token_in_the_configuration_everybody_gets_the_page() -> None:
    assert asked(None, b"/page").endswith(b"the page")


@pytest.mark.parametrize(
    ("text", "mode", "fault"),
    [
        (SECRET, 0o604, "'{}' (mode 0604), which every user"),
        (SECRET, 0o602, "'{}' (mode 0602), which every user"),
        ("", 0o600, "'{}', which is empty"),
        ("short", 0o600, "no usable token in '{}'"),
        ("a" * 15, 0o600, "no usable token in '{}'"),
        ("two words of more than sixteen", 0o600, "no usable token in '{}'"),
        (SECRET + "\n" + OTHER, 0o600, "no usable token in '{}'"),
        ("schlüssel-schlüssel", 0o600, "no usable token in '{}'"),
        (b"\xff\x00" * 20, 0o600, "no usable token in '{}'"),
        ("a" * 100_000, 0o600, "'{}', which has too many bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason_and_not_its_text(
    tmp_path: Path, text: str | bytes, mode: int, fault: str
) -> None:
    path = written(tmp_path / "token", text, mode)
    with pytest.raises(ParseError) as raised:
        Token(path)
    told = str(raised.value)
    assert told.startswith(f"[admin] token_file: found {fault.format(path)}")
    assert ", expected " in told
    if text:
        assert str(text)[:5] not in told


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"cannot be read \(No such file"):
        Token(tmp_path / "none")
    with pytest.raises(ParseError, match="no regular file, expected a file with the secret"):
        Token(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ParseError, match="no regular file, expected a file with the secret"):
        Token(tmp_path / "fifo")


def test_a_group_may_read_the_file(path: Path) -> None:
    path.chmod(0o640)
    assert asked(Token(path), b"/page", b"Bearer " + SECRET.encode()).startswith(b"HTTP/1.1 200 ")


def test_a_reload_takes_the_new_token_and_the_old_one_no_more(path: Path) -> None:
    token = Token(path)
    written(path, OTHER)
    assert asked(token, b"/page", b"Bearer " + OTHER.encode()).startswith(b"HTTP/1.1 401 ")
    token.reload()
    assert asked(token, b"/page", b"Bearer " + OTHER.encode()).startswith(b"HTTP/1.1 200 ")
    assert asked(token, b"/page", b"Bearer " + SECRET.encode()).startswith(b"HTTP/1.1 401 ")


def test_a_reload_of_a_bad_file_keeps_the_old_token_and_says_so(path: Path, logged: list[str]) -> None:
    token = Token(path)
    for text, mode in (("bad", 0o600), (OTHER, 0o644)):
        written(path, text, mode)
        token.reload()
    path.unlink()
    token.reload()
    assert asked(token, b"/page", b"Bearer " + SECRET.encode()).startswith(b"HTTP/1.1 200 ")
    assert asked(token, b"/page", b"Bearer " + OTHER.encode()).startswith(b"HTTP/1.1 401 ")
    assert len(logged) == 3
    assert all(line.startswith("the admin token was not reloaded, the old one stays") for line in logged)
    assert not [line for line in logged if SECRET in line or OTHER in line]


def test_the_token_shows_itself_nowhere(path: Path) -> None:
    token = Token(path)
    assert SECRET not in repr(token) + str(vars(token))
