"""Both keys in one string: what the upstream sees is what a client with the provider's key alone would have sent."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from flowstack.config import Upstream
from flowstack.keys import make_token
from tests.relay.lab import AUTH, KEY, NOW, Lab, answer, request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LINE = b"GET /v1/models HTTP/1.1"
OURS = make_token(lambda size: bytes(range(size)))[1].encode()
UNKNOWN = make_token(lambda size: bytes(range(9, 9 + size)))[1].encode()
DISABLED, EXPIRED, TILDES = b"a-disabled-key", b"an-expired-key", b"a~key~of~others"
OPERATORS = b"sk-the-operator-s"


def laboratory(**options: Any) -> Lab:
    lab = Lab(**options)
    lab.keys.add(OURS, id="ours")
    lab.keys.add(TILDES, id="tildes")
    lab.keys.add(DISABLED, id="disabled", disabled=True)
    lab.keys.add(EXPIRED, id="expired", expires_at=NOW - 1)
    return lab


def passed(lab: Lab, *fields: bytes, auth: bytes | None = None) -> list[bytes]:
    """The lines that the upstream got, but for the first two."""
    client = lab.ask(LINE, *fields, auth=auth)
    (upstream,) = [peer for provider in lab.providers.values() for peer in provider.peers]
    head = upstream.take()
    upstream.send(OK)
    assert answer(client).status == 200
    assert KEY not in head and OURS not in head and b"flowstack" not in head.lower()
    lines: list[bytes] = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    return lines[2:]


def refusal(lab: Lab, *fields: bytes, auth: bytes | None = None, line: bytes = LINE) -> tuple[int, str]:
    """What the client is told, with nothing said to an upstream, and no key repeated."""
    client = lab.ask(line, *fields, auth=auth)
    data = client.take()
    client.got += data
    for secret in (KEY, OURS, UNKNOWN, DISABLED, EXPIRED, TILDES, b"sk-theirs"):
        assert secret not in data
    assert [peer for provider in lab.providers.values() for peer in provider.peers] == []
    got = answer(client)
    return got.status, got.error["code"]


GOES_ON = {
    "a key of Flowstack's making": (
        [b"Authorization: Bearer " + OURS + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
    "another's key": ([b"Authorization: Bearer " + KEY + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
    "another's key that holds the separator": (
        [b"Authorization: Bearer " + TILDES + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
    "the scheme's case and spacing": (
        [b"authorization: bEARER   " + KEY + b"~sk-theirs"], [b"authorization: bEARER   sk-theirs"]),
    "api-key": ([b"api-key: " + OURS + b"~0123abcd"], [b"api-key: 0123abcd"]),
    "x-api-key": ([b"X-Api-Key: " + KEY + b"~sk-ant-theirs"], [b"X-Api-Key: sk-ant-theirs"]),
    "a provider's key that holds the separator": (
        [b"Authorization: Bearer " + KEY + b"~~a~b~"], [b"Authorization: Bearer ~a~b~"]),
    "a provider's key in no form at all": (
        [b'Authorization: Bearer ' + KEY + b'~ a%41 "b", c=d'], [b'Authorization: Bearer  a%41 "b", c=d']),
    "in its place": (
        [b"A: 1", b"Authorization: Bearer " + KEY + b"~sk-theirs", b"B: 2"],
        [b"A: 1", b"Authorization: Bearer sk-theirs", b"B: 2"]),
    "beside a plain one": (
        [b"x-api-key: sk-plain", b"Authorization: Bearer " + KEY + b"~sk-theirs"],
        [b"x-api-key: sk-plain", b"Authorization: Bearer sk-theirs"]),
    "twice, in two fields": (
        [b"api-key: " + KEY + b"~one", b"Authorization: Bearer " + KEY + b"~two"],
        [b"api-key: one", b"Authorization: Bearer two"]),
    "beside fields that are repeated": (
        [b"X-A: 1", b"x-a: 2", b"api-key: " + KEY + b"~one"], [b"X-A: 1", b"x-a: 2", b"api-key: one"]),
    "beside the same in Flowstack-Auth": (
        [AUTH, b"Authorization: Bearer " + KEY + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
    "beside the same in Flowstack-Auth, after it": (
        [b"x-api-key: " + KEY + b"~sk-theirs", AUTH], [b"x-api-key: sk-theirs"]),
    "no provider's key": ([b"A: 1", b"Authorization: Bearer " + KEY + b"~", b"B: 2"], [b"A: 1", b"B: 2"]),
    "no provider's key in x-api-key": ([b"x-api-key: " + OURS + b"~"], []),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), GOES_ON.values(), ids=GOES_ON)
def test_the_upstream_sees_the_providers_part_alone(fields: list[bytes], expected: list[bytes]) -> None:
    lab = laboratory()
    assert passed(lab, *fields) == expected
    assert lab.row["status"] == 200


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer sk-a~b", b"Bearer a~b", b"Bearer ~a", b"Bearer a~", b"Basic " + b64encode(b"a~b:c"),
        b"Bearer " + b"a~" * 40,
    ],
)  # fmt: skip
def test_a_providers_key_with_the_separator_passes_untouched(value: bytes) -> None:
    lab = laboratory()
    assert passed(lab, b"Authorization: " + value, auth=AUTH) == [b"Authorization: " + value]


REFUSED = {
    "an unknown key": ([b"Authorization: Bearer " + UNKNOWN + b"~sk-theirs"], 401, "invalid_flowstack_key"),
    "a wrong checksum": ([b"x-api-key: " + OURS[:-1] + b"!~sk-theirs"], 401, "invalid_flowstack_key"),
    "a key that is cut": ([b"api-key: fsk-abc~sk-theirs"], 401, "invalid_flowstack_key"),
    "an unknown key alone": ([b"x-api-key: " + UNKNOWN + b"~"], 401, "invalid_flowstack_key"),
    "a key that is too long": ([b"Authorization: Bearer fsk-" + b"a" * 600 + b"~x"], 401, "invalid_flowstack_key"),
    "a disabled key": ([b"Authorization: Bearer " + DISABLED + b"~sk-theirs"], 401, "flowstack_key_disabled"),
    "an expired key": ([b"api-key: " + EXPIRED + b"~sk-theirs"], 401, "flowstack_key_expired"),
    "no key that is known": ([b"Authorization: Bearer nobody-s~sk-theirs"], 401, "missing_flowstack_key"),
    "no key at all": ([b"Authorization: Bearer ~sk-theirs"], 401, "missing_flowstack_key"),
    "two keys": (
        [b"api-key: " + KEY + b"~a", b"Authorization: Bearer " + OURS + b"~b"], 400, "malformed_request"),
    "another in Flowstack-Auth": ([AUTH, b"Authorization: Bearer " + OURS + b"~sk-theirs"], 400, "malformed_request"),
    "an unknown one in Flowstack-Auth": (
        [b"Flowstack-Auth: Bearer x", b"api-key: " + OURS + b"~sk-theirs"], 400, "malformed_request"),
    "nothing in Flowstack-Auth": (
        [b"Flowstack-Auth:", b"api-key: " + OURS + b"~sk-theirs"], 401, "invalid_flowstack_key"),
    "Flowstack-Auth twice": ([AUTH, AUTH, b"api-key: " + KEY + b"~sk-theirs"], 400, "malformed_request"),
    "a field twice": ([b"api-key: " + KEY + b"~a", b"api-key: " + KEY + b"~a"], 400, "malformed_request"),
    "a field twice, once plain": (
        [b"Authorization: Bearer sk-theirs", b"Authorization: Bearer " + KEY + b"~a"], 400, "malformed_request"),
    "a Flowstack key for the provider's": ([b"api-key: " + KEY + b"~" + OURS], 401, "misplaced_key"),
    "the same key for the provider's": ([b"api-key: " + KEY + b"~" + KEY], 401, "misplaced_key"),
    "a third key": ([b"api-key: " + KEY + b"~sk-theirs~" + KEY], 401, "misplaced_key"),
    "a bare Flowstack key beside it": (
        [b"api-key: " + KEY, b"Authorization: Bearer " + KEY + b"~a"], 401, "misplaced_key"),
    "the wrong way round": ([b"Authorization: Bearer sk-theirs~" + KEY], 401, "misplaced_key"),
    "the wrong way round, with Flowstack-Auth": (
        [AUTH, b"Authorization: Bearer sk-theirs~" + KEY], 401, "misplaced_key"),
    "the wrong way round with a key that holds the separator": (
        [AUTH, b"Authorization: Bearer sk-theirs~" + TILDES], 401, "misplaced_key"),
    "no scheme": ([b"Authorization: " + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "no scheme, with Flowstack-Auth": ([AUTH, b"Authorization: " + OURS + b"~sk-theirs"], 401, "misplaced_key"),
    "a scheme where none belongs": ([b"x-api-key: Bearer " + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "another scheme": ([b"Authorization: Token " + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "Basic": ([b"Authorization: Basic " + b64encode(KEY + b"~sk-theirs:")], 401, "misplaced_key"),
    "Basic, as the password": ([b"Authorization: Basic " + b64encode(b"u:" + OURS + b"~sk-x")], 401, "misplaced_key"),
    "Base64": ([b"Authorization: Bearer " + b64encode(KEY + b"~sk-theirs")], 401, "misplaced_key"),
    "quotes": ([b'Authorization: Bearer "' + KEY + b'~sk-theirs"'], 401, "misplaced_key"),
    "quotes around the first": ([b"Authorization: Bearer '" + KEY + b"'~sk-theirs"], 401, "misplaced_key"),
    "a space before the separator": ([b"Authorization: Bearer " + OURS + b" ~sk-theirs"], 401, "misplaced_key"),
    "a tab behind the scheme": ([b"Authorization: Bearer\t" + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "the separator percent-encoded": ([b"Authorization: Bearer " + KEY + b"%7Esk-theirs"], 401, "misplaced_key"),
    "and Flowstack's own key": ([b"x-api-key: " + OURS + b"%7esk-theirs"], 401, "misplaced_key"),
    "the first percent-encoded": (
        [b"api-key: " + KEY.replace(b"-", b"%2d") + b"~sk-theirs"], 401, "misplaced_key"),
    "several, joined by a comma": (
        [b"Authorization: Bearer " + KEY + b"~a, Bearer " + KEY + b"~b"], 401, "misplaced_key"),
    "another field for a credential": ([AUTH, b"x-goog-api-key: " + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "a field that is spelt otherwise": ([AUTH, b"x_api_key: " + KEY + b"~sk-theirs"], 401, "misplaced_key"),
    "any other field": ([AUTH, b"Cookie: key=" + OURS + b"~sk-theirs"], 401, "misplaced_key"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_string_or_of_no_valid_key_goes_nowhere(fields: list[bytes], status: int, code: str) -> None:
    assert refusal(laboratory(), *fields) == (status, code)


@pytest.mark.parametrize("ours", [KEY, OURS, TILDES, KEY.replace(b"-", b"%2D")])
@pytest.mark.parametrize("form", [b"api-key=%b~sk-theirs", b"a=b&key=%b%%7Esk-theirs", b"%b~sk-theirs", b"k=sk-x~%b"])
def test_it_is_never_taken_from_the_url_nor_passed_there(form: bytes, ours: bytes) -> None:
    line = b"GET /v1/models?" + form % ours + b" HTTP/1.1"
    assert refusal(laboratory(), auth=AUTH, line=line) == (401, "misplaced_key")
    lab = laboratory()
    assert refusal(lab, line=line)[0] == 401
    assert lab.rows == []


def test_the_error_of_a_mistyped_key_says_what_is_wrong_with_it() -> None:
    lab = laboratory()
    got = answer(lab.ask(LINE, b"Authorization: Bearer " + OURS[:-2] + b"~sk-theirs", auth=None))
    assert "it has 60 characters, not 62" in got.error["message"]
    got = answer(lab.ask(LINE, b"Authorization: Bearer sk-theirs", auth=None))
    assert "Bearer fsk-...~<the provider's key>" in got.error["message"]


@pytest.mark.parametrize(
    "form", [b'Authorization: Bearer "%b~sk-theirs"', b"api-key: '%b'~sk-theirs", b"api-key: '%b'"]
)
def test_quotes_around_it_are_told_of(form: bytes) -> None:
    got = answer(laboratory().ask(LINE, form % OURS, auth=None))
    assert got.error["code"] == "misplaced_key"
    assert got.error["message"].endswith("Send it without quotes.")
    got = answer(laboratory().ask(LINE, b"Authorization: " + OURS, auth=None))
    assert "quotes" not in got.error["message"]


def house() -> Lab:
    """The operator holds the key of one of two upstreams."""
    lab = laboratory(
        upstreams=(
            Upstream(base_url="http://upstream.example/v1"),
            Upstream(name="own", base_url="http://own.example/v1", hosts=("own.example",), default=False),
        )
    )
    lab.relay.provider_keys = {"openai": OPERATORS}
    return lab


@pytest.mark.parametrize(
    "fields",
    [
        [b"Authorization: Bearer " + KEY + b"~"],
        [b"Authorization: Bearer " + OURS + b"~sk-theirs"],
        [b"x-api-key: " + KEY + b"~"],
        [b"x-api-key: " + TILDES + b"~sk-theirs", b"api-key: another"],
        [AUTH, b"Authorization: Bearer " + KEY + b"~sk-theirs"],
    ],
)
def test_the_operators_key_takes_the_place_of_the_providers_part(fields: list[bytes]) -> None:
    assert passed(house(), *fields) == [b"Authorization: Bearer " + OPERATORS]


def test_with_the_operators_key_flowstack_auth_counts_whatever_the_other_fields_hold() -> None:
    lab = house()
    fields = (b"Authorization: Bearer " + OURS + b"~sk-theirs", b"x-api-key: " + TILDES + b"~")
    assert passed(lab, *fields, auth=AUTH) == [b"Authorization: Bearer " + OPERATORS]
    assert lab.row["key_id"] == "k1"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"Authorization: Bearer " + KEY + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
        ([b"x-api-key: " + OURS + b"~sk-theirs"], [b"x-api-key: sk-theirs"]),
        ([b"x-api-key: " + OURS + b"~"], []),
        ([AUTH, b"Authorization: Bearer " + KEY + b"~sk-theirs"], [b"Authorization: Bearer sk-theirs"]),
    ],
)
def test_an_upstream_of_the_clients_own_key_gets_it(fields: list[bytes], expected: list[bytes]) -> None:
    lab = house()
    client = lab.client()
    client.send(request(LINE, *fields, auth=None).replace(b"flowstack.example", b"own.example", 1))
    (upstream,) = lab.providers["own"].peers
    assert upstream.take().removesuffix(b"\r\n\r\n").split(b"\r\n")[2:] == expected


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ([b"Authorization: Bearer " + UNKNOWN + b"~sk-theirs"], 401, "invalid_flowstack_key"),
        ([b"Authorization: Bearer nobody-s~sk-theirs"], 401, "invalid_flowstack_key"),
        ([b"x-api-key: " + DISABLED + b"~"], 401, "flowstack_key_disabled"),
        ([b"x-api-key: " + KEY], 401, "misplaced_key"),
        ([b"x-api-key: " + KEY + b"~", b"Authorization: Bearer " + OURS + b"~"], 400, "malformed_request"),
        ([b"x-api-key: " + KEY + b"~", b"x-api-key: " + KEY + b"~"], 400, "malformed_request"),
    ],
)
def test_nobody_gets_by_the_operators_key_with_such_a_string(fields: list[bytes], status: int, code: str) -> None:
    assert refusal(house(), *fields) == (status, code)


def test_what_recurs_on_a_connection_is_the_same_each_time() -> None:
    lab = laboratory()
    client = lab.client()
    for size in (5, 6, 70, 8, 9):
        fields = (b"Authorization: Bearer " + KEY + b"~sk-theirs", b"Content-Length: %d" % size)
        client.send(request(b"POST /v1/files HTTP/1.1", *fields, body=b"x" * size, auth=None))
        (upstream,) = lab.upstreams
        head = upstream.take().partition(b"\r\n\r\n")[0].split(b"\r\n")[2:]
        assert head == [b"Authorization: Bearer sk-theirs", b"Content-Length: %d" % size]
        upstream.send(OK)
        assert answer(client).status == 200
    assert len(lab.rows) == 5
    lab.keys.keys.clear()
    lab.keys.generation += 1
    client.send(request(b"POST /v1/files HTTP/1.1", *fields, body=b"x" * size, auth=None))
    assert answer(client).status == 401


@pytest.mark.parametrize("auth", [AUTH, b"Authorization: Bearer " + KEY, b"x-api-key: " + KEY + b"~sk-theirs"])
def test_the_metadata_is_kept_whatever_field_the_key_is_in(auth: bytes) -> None:
    lab = laboratory()
    lab.relay.provider_keys = {"openai": OPERATORS}
    assert passed(lab, b"Flowstack-Attribute-Team: red", auth=auth) == [b"Authorization: Bearer " + OPERATORS]
    assert lab.row["attributes"] == {"team": "red"}


def test_a_page_of_an_allowed_origin_may_use_it() -> None:
    lab = laboratory(cors_origins=("https://app.example",))
    asked = (b"Origin: https://app.example", b"Access-Control-Request-Method: GET",
             b"Access-Control-Request-Headers: authorization")  # fmt: skip
    got = answer(lab.ask(b"OPTIONS /v1/models HTTP/1.1", *asked, auth=None))
    assert (got.status, got["access-control-allow-headers"]) == (204, b"authorization")
    client = lab.ask(LINE, asked[0], b"Authorization: Bearer " + KEY + b"~sk-theirs", auth=None)
    lab.upstreams[0].send(OK)
    got = answer(client)
    assert (got.status, got["access-control-allow-origin"]) == (200, b"https://app.example")
