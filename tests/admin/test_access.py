"""Who may ask the page's API: tokens, sessions, what another page may not have a browser do, and how guesses end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed

from flowstack.admin.access import (
    IDLE,
    LIFETIME,
    LINK_LIFETIME,
    MAX_LINKS,
    MAX_SESSIONS,
    OF_ALL,
    OF_AN_ADDRESS,
    WINDOW,
    Access,
    access_of,
)
from flowstack.admin.api import Api, House
from flowstack.admin.health import admin_resource
from flowstack.admin.token import Token
from flowstack.config.settings import Admin
from flowstack.errors import ParseError
from flowstack.interfaces import Answered
from tests.admin.lab import AdminListener

VIEW, MANAGE = b"viewer-token-0123456789", b"manager-token-0123456789"
CANARY = "fsk-canary"


class Answer:
    """An answer, taken apart."""

    def __init__(self, text: bytes) -> None:
        head, _, self.body = text.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split()[1])
        self.fields = [tuple(line.split(b": ", 1)) for line in lines]

    def __getitem__(self, name: str) -> str | None:
        found = [value for field, value in self.fields if field.lower() == name.encode()]
        return found[0].decode() if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.json["error"]["code"] if self.body and "error" in self.json else None


class Lab:
    """The API on a listener in memory, with another process that answers at once with what it was asked."""

    def __init__(self, folder: Path, view: bool = True, manage: bool = True, manages: bool = True) -> None:
        self.folder = folder
        tokens = []
        for there, name, token in ((view, "token_file", VIEW), (manage, "manage_token_file", MANAGE)):
            path = folder / name
            if there:
                path.write_bytes(token)
                path.chmod(0o600)
            tokens.append(Token(path, name) if there else None)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.access = Access(*tokens, manages, lambda: self.listener.turns.clock.seconds())
        api = Api(self.access, House(self._ask, lambda: {"in_flight": 0}, lambda: succeed({"ok": True})))
        self.listener = AdminListener(admin_resource(lambda: None, {}, self.access, {b"api": api}))
        self.here: Any = None
        self.from_address: Any = None

    def _ask(self, what: str, parameters: Any, seconds: float) -> Deferred[Answered]:
        self.asked.append((what, dict(parameters)))
        return succeed(Answered(b"{}"))

    def ask(self, method: str, path: str, *fields: bytes, body: Any = None, host: bytes = b"localhost") -> Answer:
        client = self.listener.connect()
        if self.here is not None:
            client.getHost = lambda: self.here  # type: ignore[method-assign]
        if self.from_address is not None:
            client.getPeer = lambda: IPv4Address("TCP", self.from_address, 4711)  # type: ignore[method-assign]
        data = b"" if body is None else json.dumps(body).encode()
        more = [b"Content-Type: application/json", b"Content-Length: %d" % len(data)] if body is not None else []
        head = b"\r\n".join([b"%b /api/v1/%b HTTP/1.1" % (method.encode(), path.encode()), b"Host: " + host,
                             *fields, *more])  # fmt: skip
        client.send(head + b"\r\n\r\n" + data)
        return Answer(client.take())

    def sign_in(self, token: bytes = MANAGE, *fields: bytes) -> tuple[bytes, bytes]:
        """The fields with which a browser and its page go on: the cookie, and the second secret."""
        got = self.ask("POST", "session", *fields, body={"token": token.decode()})
        assert got.status == 204, got.body
        cookie = b"Cookie: " + (got["set-cookie"] or "").partition(";")[0].encode()
        return cookie, b"X-CSRF-Token: " + self.ask("GET", "session", cookie).json["csrf_token"].encode()

    def wait(self, seconds: float) -> None:
        self.listener.turns.clock.advance(seconds)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def bearer(token: bytes) -> bytes:
    return b"Authorization: Bearer " + token


NOBODY, VIEWER, MANAGER = (), (bearer(VIEW),), (bearer(MANAGE),)
CHANGE = ("PATCH", "keys/k1", {"disabled": True})


@pytest.mark.parametrize(
    ("shown", "method", "path", "body", "status", "code"),
    [
        (NOBODY, "GET", "session", None, 200, None),
        (NOBODY, "GET", "openapi.json", None, 200, None),
        (NOBODY, "GET", "report", None, 401, "not_signed_in"),
        (NOBODY, "GET", "live", None, 401, "not_signed_in"),
        (NOBODY, "GET", "audit", None, 401, "not_signed_in"),
        (NOBODY, "GET", "keys", None, 401, "not_signed_in"),
        (NOBODY, *CHANGE, 401, "not_signed_in"),
        (NOBODY, "GET", "nothing", None, 404, "unknown_path"),
        (VIEWER, "GET", "report", None, 200, None),
        (VIEWER, "HEAD", "report", None, 200, None),
        (VIEWER, "GET", "keys", None, 200, None),
        (VIEWER, *CHANGE, 403, "not_allowed"),
        (VIEWER, "POST", "keys", {}, 403, "not_allowed"),
        (VIEWER, "DELETE", "groups/a", None, 403, "not_allowed"),
        (MANAGER, *CHANGE, 200, None),
        (MANAGER, "GET", "report", None, 200, None),
        (MANAGER, "POST", "keys", {"attributes": {"owner": "alice"}}, 201, None),
        ((bearer(b"another-token-0123456789"),), "GET", "report", None, 401, "wrong_token"),
        ((b"Authorization: Basic " + VIEW,), "GET", "report", None, 401, "wrong_token"),
        ((*VIEWER, *MANAGER), "GET", "report", None, 401, "wrong_token"),
        ((b"Cookie: flowstack_session=" + VIEW,), "GET", "report", None, 401, "not_signed_in"),
    ],
)
def test_what_each_token_lets_its_holder_do(
    lab: Lab, shown: tuple[bytes, ...], method: str, path: str, body: Any, status: int, code: str | None
) -> None:
    got = lab.ask(method, path, *shown, body=body)
    assert got.status == status
    assert (got.code if method != "HEAD" else None) == code
    assert (len(lab.asked) == 1) == (status in (200, 201) and path not in ("session", "openapi.json", "live"))
    assert VIEW not in got.body
    assert MANAGE not in got.body
    if status == 401:
        assert got["www-authenticate"] == 'Bearer realm="flowstack admin"'


def test_a_change_says_who_made_it_and_is_loaded_then(lab: Lab) -> None:
    got = lab.ask(*CHANGE[:2], *MANAGER, body=CHANGE[2])
    assert got.json == {"reload": {"ok": True}}
    ((what, asked),) = lab.asked
    assert what == "keys.change"
    assert asked == {"id": "k1", "disabled": True, "actor": {"role": "manager", "address": "192.0.2.7"}}


def test_nobody_changes_keys_where_that_is_not_switched_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path, manages=False)
    assert lab.ask(*CHANGE[:2], *MANAGER, body=CHANGE[2]).code == "not_allowed"
    assert lab.ask("GET", "session", *MANAGER).json["manage_keys"] is False
    assert lab.asked == []


def test_a_browser_signs_in_by_a_cookie_that_no_script_reads_and_no_other_site_sends(lab: Lab) -> None:
    got = lab.ask("POST", "session", body={"token": VIEW.decode()})
    assert (got.status, got.body) == (204, b"")
    value, *marks = (got["set-cookie"] or "").split("; ")
    assert marks == ["Path=/", f"Max-Age={int(LIFETIME)}", "HttpOnly", "SameSite=Strict"]
    assert len(value.partition("=")[2]) >= 43  # 256 bits
    cookie = b"Cookie: a=b; " + value.encode() + b"; c=d"
    told = lab.ask("GET", "session", cookie).json
    assert (told["signed_in"], told["role"], told["manage_keys"], told["token"]) == (True, "viewer", False, True)
    assert lab.ask("GET", "report", cookie).status == 200
    assert lab.ask("GET", "session").json["signed_in"] is False


def test_over_tls_the_cookie_is_for_tls_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowstack.admin.site.AdminRequest.isSecure", lambda request: True)
    assert "; Secure" in (lab.ask("POST", "session", body={"token": VIEW.decode()})["set-cookie"] or "")


@pytest.mark.parametrize(("step", "ends"), [(IDLE, IDLE), (IDLE - 60, LIFETIME)])
def test_a_session_ends_when_nobody_uses_it_and_after_its_time(lab: Lab, step: float, ends: float) -> None:
    cookie, _ = lab.sign_in()
    for _ in range(int(ends // step) - (ends == step)):
        lab.wait(step)
        assert lab.ask("GET", "report", cookie).status == 200
    lab.wait(step)
    assert lab.ask("GET", "report", cookie).code == "not_signed_in"


def test_signing_out_ends_the_session_and_takes_the_cookie_away(lab: Lab) -> None:
    cookie, csrf = lab.sign_in()
    other, _ = lab.sign_in()
    assert lab.ask("DELETE", "session", cookie).code == "foreign_page"
    got = lab.ask("DELETE", "session", cookie, csrf)
    assert got.status == 204
    assert "flowstack_session=; Path=/; Max-Age=0" in (got["set-cookie"] or "")
    assert lab.ask("GET", "report", cookie).status == 401
    assert lab.ask("GET", "report", other).status == 200


def test_a_token_that_is_replaced_ends_its_sessions_and_no_others(lab: Lab) -> None:
    (managing, _), (looking, _) = lab.sign_in(MANAGE), lab.sign_in(VIEW)
    (lab.folder / "manage_token_file").write_bytes(b"a-new-token-of-the-manager")
    assert lab.ask("GET", "report", managing).status == 200
    lab.access.reload()
    assert lab.ask("GET", "report", managing).status == 401
    assert lab.ask("GET", "report", looking).status == 200


def test_one_session_too_many_ends_the_oldest(lab: Lab) -> None:
    first, _ = lab.sign_in()
    second, _ = lab.sign_in()
    for _ in range(MAX_SESSIONS - 1):
        lab.sign_in()
    assert lab.ask("GET", "report", first).status == 401
    assert lab.ask("GET", "report", second).status == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 403),
        ([b"X-CSRF-Token: "], 403),
        ([b"X-CSRF-Token: wrong"], 403),
        ([b"right", b"right"], 403),
        ([b"right"], 200),
        ([b"right", b"Origin: http://localhost"], 200),
        ([b"right", b"Origin: https://localhost"], 200),
        ([b"right", b"Origin: http://localhost:8080"], 403),
        ([b"right", b"Origin: http://evil.example"], 403),
        ([b"right", b"Origin: null"], 403),
        ([b"right", b"Origin: http://localhost", b"Origin: http://evil.example"], 403),
    ],
)
@pytest.mark.parametrize("change", [CHANGE, ("POST", "keys/k1/rotate", {}), ("DELETE", "keys/k1", None)])
def test_a_change_with_a_cookie_needs_the_page_s_own_secret_and_origin(
    lab: Lab, fields: list[bytes], status: int, change: Any
) -> None:
    cookie, csrf = lab.sign_in()
    method, path, body = change
    got = lab.ask(method, path, cookie, *[csrf if field == b"right" else field for field in fields], body=body)
    assert got.status == status
    assert bool(lab.asked) == (status == 200)


def test_another_session_s_secret_changes_nothing(lab: Lab) -> None:
    (cookie, _), (_, csrf) = lab.sign_in(), lab.sign_in()
    assert lab.ask("DELETE", "keys/k1", cookie, csrf).code == "foreign_page"


def test_no_page_of_another_origin_signs_a_browser_in(lab: Lab) -> None:
    got = lab.ask("POST", "session", b"Origin: http://evil.example", body={"token": VIEW.decode()})
    assert got.code == "foreign_page"
    client = lab.listener.connect()
    form = b"token=" + VIEW
    client.send(b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
                b"Content-Type: text/plain\r\n\r\n" % len(form) + form)  # fmt: skip
    assert Answer(client.take()).code == "bad_parameter"


def linked(lab: Lab, *fields: bytes) -> str:
    made = lab.ask("POST", "session/link", *(fields or MANAGER))
    assert (made.status, made.json["seconds"]) == (201, LINK_LIFETIME)
    return str(made.json["code"])


def follow(lab: Lab, code: str, *fields: bytes) -> Answer:
    return lab.ask("POST", "session/code", *fields, body={"code": code})


@pytest.mark.parametrize(("fields", "role"), [(VIEWER, "viewer"), (MANAGER, "manager")])
def test_a_link_signs_one_browser_in_as_whoever_made_it(lab: Lab, fields: Any, role: str) -> None:
    code = linked(lab, *fields)
    got = follow(lab, code)
    assert got.status == 204
    cookie = b"Cookie: " + (got["set-cookie"] or "").partition(";")[0].encode()
    assert lab.ask("GET", "session", cookie).json["role"] == role
    assert follow(lab, code).code == "wrong_token"


def test_a_link_is_worth_nothing_after_ten_minutes_or_once_its_token_is_another(lab: Lab) -> None:
    old, young = linked(lab), linked(lab)
    lab.wait(LINK_LIFETIME - 1)
    assert follow(lab, young).status == 204
    lab.wait(1)
    assert follow(lab, old).code == "wrong_token"
    replaced = linked(lab)
    (lab.folder / "manage_token_file").write_bytes(b"another-token-0123456789")
    lab.access.reload()
    assert follow(lab, replaced).code == "wrong_token"


def test_links_are_made_for_tokens_alone_and_only_so_many(lab: Lab) -> None:
    cookie, csrf = lab.sign_in()
    assert lab.ask("POST", "session/link", cookie, csrf).code == "not_allowed"
    assert lab.ask("POST", "session/link").code == "not_signed_in"
    first, *others = [linked(lab) for _ in range(MAX_LINKS + 1)]
    assert follow(lab, first).code == "wrong_token"
    assert follow(lab, others[0]).status == 204


def test_codes_are_guessed_as_slowly_as_tokens_and_used_by_no_other_page(lab: Lab) -> None:
    code = linked(lab)
    assert follow(lab, code, b"Origin: http://evil.example").code == "foreign_page"
    for _ in range(OF_AN_ADDRESS):
        assert follow(lab, "guess").code == "wrong_token"
    assert follow(lab, code).code == "too_many_attempts"
    lab.wait(WINDOW)
    assert follow(lab, code).status == 204


def test_a_token_that_is_shown_goes_before_a_cookie(lab: Lab) -> None:
    cookie, csrf = lab.sign_in(MANAGE)
    assert lab.ask(*CHANGE[:2], cookie, csrf, bearer(VIEW), body=CHANGE[2]).code == "not_allowed"
    assert lab.ask("GET", "report", cookie, bearer(b"wrong-token-0123456789")).code == "wrong_token"


def test_guesses_are_slowed_down_for_an_address_and_its_sessions_go_on(lab: Lab) -> None:
    cookie, _ = lab.sign_in()
    for _ in range(OF_AN_ADDRESS):
        assert lab.ask("POST", "session", body={"token": "guess-0123456789ab"}).code == "wrong_token"
    lab.wait(1)
    for got in (lab.ask("POST", "session", body={"token": VIEW.decode()}), lab.ask("GET", "report", *VIEWER)):
        assert (got.status, got.code, got["retry-after"]) == (429, "too_many_attempts", str(int(WINDOW) - 1))
    assert lab.ask("GET", "report", cookie).status == 200
    lab.from_address = "192.0.2.8"
    assert lab.ask("GET", "report", *VIEWER).status == 200
    lab.from_address = None
    lab.wait(WINDOW - 1)
    assert lab.ask("GET", "report", *VIEWER).status == 200


def test_guesses_from_many_addresses_are_slowed_down_together(lab: Lab) -> None:
    for number in range(OF_ALL):
        lab.from_address = f"198.51.100.{number}"
        assert lab.ask("GET", "report", bearer(b"guess-0123456789ab")).code == "wrong_token"
    lab.from_address = "203.0.113.1"
    assert lab.ask("GET", "report", *VIEWER).code == "too_many_attempts"
    lab.wait(WINDOW)
    assert lab.ask("GET", "report", *VIEWER).status == 200


@pytest.mark.parametrize(
    ("here", "fields", "status"),
    [
        (IPv4Address("TCP", "127.0.0.1", 8081), [], 200),
        (IPv4Address("TCP", "127.0.0.2", 8081), [], 200),
        (IPv6Address("TCP", "::1", 8081), [], 200),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 8081), [], 200),
        (UNIXAddress("/run/admin.sock"), [], 200),
        (IPv4Address("TCP", "192.0.2.1", 8081), [], 403),
        (IPv4Address("TCP", "0.0.0.0", 8081), [], 403),
        (IPv6Address("TCP", "2001:db8::1", 8081), [], 403),
        (IPv4Address("TCP", "127.0.0.1", 8081), [b"X-Forwarded-For: 203.0.113.9"], 403),
        (UNIXAddress("/run/admin.sock"), [b"Forwarded: for=203.0.113.9"], 403),
        (IPv4Address("TCP", "127.0.0.1", 8081), [b"Via: 1.1 proxy"], 403),
    ],
)
def test_without_a_token_this_machine_alone_may_look_and_nobody_may_change(
    tmp_path: Path, here: Any, fields: list[bytes], status: int
) -> None:
    lab = Lab(tmp_path, view=False, manage=False, manages=True)
    lab.here = here
    got = lab.ask("GET", "report", *fields)
    assert (got.status, got.code) == (status, None if status == 200 else "not_allowed")
    told = lab.ask("GET", "session", *fields).json
    assert (told["signed_in"], told["token"], told["manage_keys"]) == (status == 200, False, False)
    assert lab.ask(*CHANGE[:2], *fields, body=CHANGE[2]).code == "not_allowed"
    assert lab.ask("POST", "session", *fields, body={"token": "guess-0123456789ab"}).code == "wrong_token"


def test_a_page_s_own_name_for_this_machine_gets_nothing(lab: Lab) -> None:
    for path in ("session", "report"):
        assert lab.ask("GET", path, host=b"evil.example").status == 421


def test_no_answer_is_kept_framed_read_as_something_else_or_shared_with_other_pages(lab: Lab) -> None:
    for path in ("session", "report", "nothing", "openapi.json"):
        got = lab.ask("GET", path, b"Origin: http://evil.example", *VIEWER)
        assert got["cache-control"] == "no-store"
        assert got["x-content-type-options"] == "nosniff"
        assert got["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in (got["content-security-policy"] or "")
        assert not [name for name, _ in got.fields if name.lower().startswith(b"access-control-")]
    assert lab.ask("OPTIONS", "report", b"Origin: http://evil.example").code == "method_not_allowed"


def test_the_two_tokens_must_be_two(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(VIEW)
        path.chmod(0o600)
    with pytest.raises(ParseError, match=r"\[admin\] manage_token_file: found the same token"):
        access_of(Admin(token_file=paths[0], manage_token_file=paths[1]), lambda: 0.0)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("GET", "report?nonsense=1", None, "nonsense"),
        ("GET", "report?limit=0", None, "limit"),
        ("GET", "report?limit=ten", None, "limit"),
        ("GET", "report?limit=1&limit=2", None, "limit"),
        ("GET", "report?since=%ff", None, "since"),
        ("GET", "report?since=" + "a" * 65, None, "since"),
        ("PATCH", "keys/" + "a" * 65, {"disabled": True}, "id"),
        ("PATCH", "keys/k1", [], "body"),
        ("PATCH", "keys/k1", {"disabled": "yes"}, "disabled"),
        ("PATCH", "keys/k1", {"digest": "00"}, "body 'digest'"),
        ("PATCH", "keys/k1", {"attributes": {"owner": 1}}, "owner"),
        ("PATCH", "keys/k1", {"attributes": {"owner": "\ud800"}}, "body"),
        ("PATCH", "keys/k1", {"attributes": {"previous": "sha256:00"}}, "attributes 'previous'"),
        ("POST", "groups", {}, "body"),
    ],
)
def test_what_is_not_in_the_table_is_refused_by_name(lab: Lab, method: str, path: str, body: Any, param: str) -> None:
    got = lab.ask(method, path, *MANAGER, body=body)
    assert (got.status, got.code) == (400, "bad_parameter")
    assert got.json["error"]["param"] == param
    assert lab.asked == []


def test_the_log_says_who_signed_in_and_who_failed_to(lab: Lab, logged: list[str]) -> None:
    lab.sign_in(MANAGE)
    for _ in range(3):
        lab.ask("POST", "session", body={"token": "guess-0123456789ab"})
    assert logged == [
        "a manager signed in to the page from 192.0.2.7",
        "a wrong token was shown to the admin listener from 192.0.2.7",
    ]


def test_no_token_is_in_any_answer_or_log_line(lab: Lab, logged: list[str]) -> None:
    cookie, csrf = lab.sign_in()
    seen = b""
    for fields in ((), VIEWER, MANAGER, (cookie,), (cookie, csrf), (bearer(b"wrong" + VIEW),)):
        for method, path, body in (("GET", "session", None), ("GET", "report?where=x", None), CHANGE,
                                   ("GET", "openapi.json", None), ("POST", "keys", {"attributes": {}})):  # fmt: skip
            got = lab.ask(method, path, *fields, body=body)
            seen += got.body + b"".join(b"".join(field) for field in got.fields)
    for secret in (VIEW, MANAGE, cookie.partition(b"=")[2]):
        assert secret not in seen
        assert not [line for line in logged if secret.decode() in line]
