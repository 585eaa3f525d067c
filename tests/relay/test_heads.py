"""What stands in a request's head: what it may not hold, what may not be added to it, and what comes back."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.address import IPv6Address

from flowstack.config import Prefix, Upstream
from flowstack.keys import make_token
from tests.harness import Transport
from tests.relay.lab import AUTH, KEY, Answer, Lab, answer, request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WHOLE = make_token(lambda size: bytes(range(size)))[1].encode()
"""A key in Flowstack's own form that no keystore here holds: it is known by its checksum."""

ENCODED = b"".join(b"%%%02x" % byte for byte in WHOLE)
TWICE = ENCODED.replace(b"%", b"%25")

POST = b"POST /v1/chat/completions HTTP/1.1"
CHAT = (b"Content-Type: application/json", b"Content-Length: 31")
BODY = b'{"model":"gpt-4o","messages":1}'


def refused(lab: Lab, client: Any) -> tuple[int, str]:
    got = answer(client)
    return got.status, got.error["code"]


# A Flowstack key where none belongs.

CREDENTIAL_VALUES = {
    "Basic, as the user": b"Basic " + b64encode(WHOLE + b":"),
    "Basic, as the password": b"Basic " + b64encode(b"u:" + WHOLE),
    "Basic without padding": b"Basic " + b64encode(b"user:" + WHOLE).rstrip(b"="),
    "Basic in another case and spacing": b"bASIC \t " + b64encode(b":" + WHOLE),
    "Basic with another's key as the password": b"Basic " + b64encode(b"u:" + KEY),
    "Basic with another's key as the user": b"Basic " + b64encode(KEY + b":x"),
    "Base64 alone": b64encode(WHOLE),
    "Base64 of URLs": b"Bearer " + urlsafe_b64encode(b"??>" + WHOLE),
    "another's key in Base64": b"Bearer " + b64encode(KEY),
    "percent-encoded": b"Bearer " + ENCODED,
    "its beginning percent-encoded": b"Bearer %66sk-" + WHOLE[4:],
    "percent-encoded twice": b"Bearer " + TWICE,
    "another's key percent-encoded": b"Bearer " + KEY.replace(b"-", b"%2D"),
    "in quotes": b'Bearer "' + WHOLE + b'"',
    "another's key in quotes": b'Bearer "' + KEY + b'"',
    "another scheme": b"Token " + KEY,
    "a parameter": b"Digest username=x, response=" + KEY,
    "a quoted parameter": b'Key id="1", key="' + KEY + b'"',
    "behind a comma": b"Bearer sk-1,Bearer " + KEY,
    "behind a provider's key": b"Bearer sk-1 " + KEY,
    "before a provider's key": b"Bearer " + KEY + b" sk-1",
    "joined to a provider's key": b"Bearer sk-1:" + WHOLE,
    "inside a word": b"Bearer sk-x" + WHOLE,
    "user and key": b"Bearer user:" + KEY,
    "what begins like one": b"Bearer fsk-1",
}
FIELDS = ["Authorization", "api-key", "X-Api-Key", "x-goog-api-key", "Proxy-Authorization", "Ocp-Apim-Subscription-Key",
          "Api_Key", "x_api_key", "X-Api_Key"]  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("how", CREDENTIAL_VALUES)
def test_no_credential_field_takes_a_flowstack_key_to_a_provider(name: str, how: str) -> None:
    lab = Lab()
    client = lab.ask(b"GET /v1/models HTTP/1.1", name.encode() + b": " + CREDENTIAL_VALUES[how])
    data = bytes(client.got)
    assert refused(lab, client) == (401, "misplaced_key")
    assert lab.upstreams == []
    assert KEY not in data and WHOLE not in data


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer sk-proj-" + b"a-_B" * 40, b"Basic dXNlcjpwYXNzd29yZA==", b"Bearer " + b"0123456789abcdef" * 2,
        b"Bearer eyJhbGciOiJSUzI1NiJ9." + b64encode(b'{"sub":"a","scp":"b c d"}' * 40) + b"." + b"x" * 342,
        b"AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request, SignedHeaders=host;x-amz-date, "
        b"Signature=" + b"f" * 64,
        b'Digest username="a", realm="b", nonce="c", uri="/v1/x", response="d", qop=auth, nc=00000001', b"", b"%",
        b"%zz", b"Bearer x%20y", b"Bearer task-1234567890", b"Bearer desk-" + b"a" * 58, b"====", b"Basic =",
        b"Basic \xff\xfe",
    ],
)  # fmt: skip
def test_a_provider_s_credential_passes_byte_for_byte(value: bytes) -> None:
    lab = Lab()
    lab.ask(b"GET /v1/models HTTP/1.1", b"Authorization: " + value)
    assert b"\r\nAuthorization: " + value + b"\r\n" in lab.upstreams[0].take() + b"\r\n"


def test_a_credential_of_more_words_than_can_be_looked_up_is_refused() -> None:
    lab = Lab()
    client = lab.ask(b"GET /v1/models HTTP/1.1", b"Authorization: " + b"a " * 300)
    assert refused(lab, client) == (401, "misplaced_key")


@pytest.mark.parametrize("value", [b"%41" * 1400, b"." + b"abcdefgh." * 300, b"a,b;c=d " * 100])
def test_a_credential_that_takes_long_to_look_through_is_refused(value: bytes) -> None:
    lab = Lab()
    assert refused(lab, lab.ask(b"GET /v1/models HTTP/1.1", b"Authorization: " + value)) == (401, "misplaced_key")


@pytest.mark.parametrize("query", [b"a&" * 256, b"a;" * 256, b"a=" + b"%41" * 4097])
def test_a_query_that_takes_long_to_look_through_is_refused_to_a_restricted_key(query: bytes) -> None:
    lab = restricted("models")
    client = lab.ask(b"POST /v1/chat/completions?" + query + b" HTTP/1.1", *CHAT, body=BODY)
    assert refused(lab, client) == (403, "endpoint_not_allowed")


def test_a_connection_of_many_names_is_refused() -> None:
    lab = Lab()
    names = b",".join(b"x%d" % number for number in range(33))
    assert refused(lab, lab.ask(b"GET /v1/x HTTP/1.1", b"Connection: " + names)) == (400, "malformed_request")


@pytest.mark.parametrize(
    "line",
    [
        b"Cookie: a=b; key=" + WHOLE, b"Cookie: key=" + ENCODED, b"X-Anything: " + WHOLE, b"User-Agent: x " + WHOLE,
        b"Referer: https://a.example/?key=" + WHOLE, b"Referer: https://a.example/?key=" + TWICE,
        b"X-Custom: " + b"x" * 50 + WHOLE + b"y" * 50, b"Flowstack: " + WHOLE, b"Sec-WebSocket-Protocol: " + WHOLE,
    ],
)  # fmt: skip
def test_no_other_field_takes_a_whole_flowstack_key_to_a_provider(line: bytes) -> None:
    for auth in (AUTH, b"Flowstack-Auth: Bearer " + WHOLE):
        lab = Lab()
        lab.keys.add(WHOLE, id="k2")
        assert refused(lab, lab.ask(b"GET /v1/models HTTP/1.1", line, auth=auth)) == (401, "misplaced_key")
        assert lab.upstreams == []
        assert (lab.row["end"], lab.row["error_code"]) == ("refused", "misplaced_key")
        assert WHOLE.decode() not in repr(lab.row)


@pytest.mark.parametrize(
    "line", [b"X-Task: task-1 fsk-1", b"User-Agent: fsk-cli/1.0 100%", b"Cookie: a=%zz%20", b"X: fsk-"]
)
def test_what_only_resembles_a_key_passes_in_other_fields(line: bytes) -> None:
    lab = Lab()
    lab.ask(b"GET /v1/models HTTP/1.1", line)
    assert line in lab.upstreams[0].take()


def test_an_attribute_may_hold_what_looks_like_a_key_since_it_goes_nowhere() -> None:
    lab = Lab()
    lab.ask(b"GET /v1/models HTTP/1.1", b"Flowstack-Attribute-A: " + WHOLE)
    assert WHOLE not in lab.upstreams[0].take()


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/models?api_key=" + WHOLE, b"/v1/models?api_key=" + ENCODED, b"/v1/models?key=" + TWICE,
        b"/v1/models?api_key=%66sk-" + WHOLE[4:], b"/v1/" + WHOLE + b"/models", b"/v1/%66sk-" + WHOLE[4:],
        b"/v1/models?api_key=" + KEY, b"/v1/models?a=b&key=" + KEY.replace(b"-", b"%2d"), b"/v1/models?" + KEY,
        b"/v1/models?a=1;token=" + KEY, b"/v1/models?fsk-1", b"/v1/models?a=x" + WHOLE,
    ],
)  # fmt: skip
def test_no_url_takes_a_flowstack_key_to_a_provider(target: bytes) -> None:
    lab = Lab()
    assert refused(lab, lab.ask(b"GET " + target + b" HTTP/1.1")) == (401, "misplaced_key")
    assert lab.upstreams == []


def test_the_advice_for_a_key_in_the_wrong_field_fits_who_holds_the_provider_s_key() -> None:
    def told(lab: Lab, *fields: bytes) -> str:
        got = answer(lab.ask(b"GET /v1/models HTTP/1.1", *fields, auth=None))
        assert got.status == 401
        message: str = got.error["message"]
        return message

    both = Lab()
    assert "the provider's own key" in told(both, b"api-key: " + WHOLE)
    assert "next to the provider's key" in told(both)
    one = Lab()
    one.relay.provider_keys = {"openai": b"sk-operator"}
    for field in (b"api-key: ", b"x-api-key: "):
        message = told(one, field + WHOLE)
        assert "'Authorization: Bearer fsk-...'" in message and "one key is enough" in message
    assert "'Authorization: Bearer fsk-...'" in told(one)
    assert "beside" not in told(one)
    assert "The operator holds that one" in told(one, b"Flowstack-Auth: Bearer sk-1")
    some = Lab(upstreams=UPSTREAMS)
    some.relay.provider_keys = {"one": b"sk-operator"}
    message = told(some, b"api-key: " + WHOLE)
    assert "Where the operator holds the provider's key" in message and "also send the provider's own key" in message


# What could make a server take another request than the one that was judged.

UPSTREAMS = (
    Upstream(name="one", base_url="http://upstream.example/v1"),
    Upstream(name="two", base_url="http://two.example/v1", hosts=("two.test",), default=False),
)
RESTRICTED: dict[str, dict[str, Any]] = {
    "models": {"models": ("gpt-4o*",)},
    "endpoints": {"endpoints": ("/v1/*",)},
    "tokens": {},
    "the operator's key": {},
}
OVERRIDES = [
    b"X-HTTP-Method-Override: DELETE", b"X-HTTP-Method: PUT", b"X-Method-Override: GET", b"X_Http_Method_Override: GET",
    b"X-Original-URL: /v1/files", b"X-Rewrite-URL: /v1/files", b"azureml-model-deployment: gpt-5", b"X-Model: gpt-5",
    b"Content_Type: text/plain",
]  # fmt: skip


def restricted(kind: str | None, **server: Any) -> Lab:
    lab = Lab(**server)
    lab.keys.add(KEY, **({} if kind is None else RESTRICTED[kind]))
    lab.limiter.metered = kind == "tokens"
    if kind == "the operator's key":
        lab.relay.provider_keys = {"openai": b"sk-operator"}
    return lab


@pytest.mark.parametrize("kind", RESTRICTED)
@pytest.mark.parametrize("line", OVERRIDES)
def test_a_field_that_may_reroute_a_request_is_refused_to_a_restricted_key(kind: str, line: bytes) -> None:
    lab = restricted(kind)
    got = answer(lab.ask(POST, *CHAT, line, body=BODY))
    assert (got.status, got.error["code"]) == (403, "endpoint_not_allowed")
    assert line.partition(b":")[0].decode() in got.error["message"]
    assert lab.upstreams == []
    assert lab.row["error_code"] == "endpoint_not_allowed"


@pytest.mark.parametrize("line", OVERRIDES)
def test_such_a_field_passes_untouched_with_an_unlimited_key(line: bytes) -> None:
    lab = restricted(None)
    lab.ask(POST, *CHAT, line, body=BODY)
    assert b"\r\n" + line + b"\r\n" in lab.upstreams[0].take()


@pytest.mark.parametrize("name", [b"X-Forwarded-Prefix", b"X-Forwarded-Path", b"X-Forwarded-Uri"])
def test_a_forwarded_path_is_refused_only_where_it_would_be_passed_on(name: bytes) -> None:
    lab = restricted("models", forwarded="pass")
    assert refused(lab, lab.ask(POST, *CHAT, name + b": /x", body=BODY)) == (403, "endpoint_not_allowed")
    lab = restricted("models")
    lab.ask(POST, *CHAT, name + b": /x", body=BODY)
    assert name not in lab.upstreams[0].take()


@pytest.mark.parametrize("kind", RESTRICTED)
@pytest.mark.parametrize(
    "query",
    [b"_method=DELETE", b"a=1&_METHOD=PUT", b"model=gpt-5", b"deployment=x", b"deployment_id=x", b"engine=x", b"url=/x",
     b"%6dodel=gpt-5", b"%5fmethod=GET", b"a;model=gpt-5", b"model", b"model[]=gpt-5", b"model%5B%5D=gpt-5",
     b"%256dodel=gpt-5", b"x%26model=gpt-5", b"X-HTTP-Method-Override=GET", b"path=/v1/files", b"fallbacks=gpt-5",
     b"n=100", b"max_tokens=9", b"Service_Tier=priority", b"stream=true"],
)  # fmt: skip
def test_a_parameter_that_may_reroute_a_request_is_refused_to_a_restricted_key(kind: str, query: bytes) -> None:
    lab = restricted(kind)
    client = lab.ask(b"POST /v1/chat/completions?" + query + b" HTTP/1.1", *CHAT, body=BODY)
    assert refused(lab, client) == (403, "endpoint_not_allowed")
    assert lab.upstreams == []


@pytest.mark.parametrize("kind", RESTRICTED)
@pytest.mark.parametrize("query", [b"api-version=2026-01-01", b"beta=true", b"include[]=usage", b"", b"timeout=600"])
def test_the_parameters_of_usual_clients_pass_with_any_key(kind: str, query: bytes) -> None:
    lab = restricted(kind)
    lab.ask(b"POST /v1/chat/completions?" + query + b" HTTP/1.1", *CHAT, body=BODY)
    assert lab.upstreams[0].take().startswith(b"POST /v1/chat/completions?" + query + b" HTTP/1.1\r\n")


def test_any_parameter_passes_with_an_unlimited_key() -> None:
    lab = restricted(None)
    lab.ask(b"POST /v1/chat/completions?_method=PUT&model=x HTTP/1.1", *CHAT, body=BODY)
    assert lab.upstreams[0].take().startswith(b"POST /v1/chat/completions?_method=PUT&model=x HTTP/1.1\r\n")


def test_a_model_in_the_query_of_a_look_is_held_against_the_key() -> None:
    lab = restricted("models")
    lab.ask(b"GET /v1/chat/completions?model=gpt-4o-mini&limit=1 HTTP/1.1")
    assert len(lab.upstreams) == 1
    for query in (b"model=gpt-5", b"m%6fdel=gpt-5", b"model=gpt-4o&model=gpt-5"):
        client = lab.ask(b"GET /v1/chat/completions?" + query + b" HTTP/1.1")
        assert refused(lab, client) == (403, "model_not_allowed")
    client = lab.ask(b"GET /v1/chat/completions?_method=POST HTTP/1.1")
    assert refused(lab, client) == (403, "endpoint_not_allowed")
    assert len(lab.upstreams) == 1


# Paths.


@pytest.mark.parametrize("kind", ["models", "tokens"])
@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/chat/completions/x", b"POST /v1/chat/completions/chatcmpl-1", b"POST /v1/chat/completions;x=1",
        b"POST /v1/chat/completions%00", b"POST /v1/chat/completions%2500", b"POST /v1/Chat/Completions",
        b"POST /v1/chat/completions.json", b"POST /v1/embeddings/x", b"POST /v1/responses/resp_1",
        b"POST /v1/responses/resp_1/cancel", b"POST /v1/chat%5ccompletions", b"POST /v1/chat/completions%3f",
        b"GET /v1/chat/completions", b"DELETE /v1/chat/completions/x", b"OPTIONS /v1/chat/completions",
        b"GET /v1/unknown", b"PUT /v1/chat/completions", b"PATCH /v1/chat/completions",
    ],
)  # fmt: skip
def test_a_limited_key_s_body_goes_to_no_path_that_is_not_exactly_known(kind: str, line: bytes) -> None:
    lab = restricted(kind)
    assert refused(lab, lab.ask(line + b" HTTP/1.1", *CHAT, body=BODY)) == (403, "endpoint_not_allowed")
    assert lab.upstreams == []


@pytest.mark.parametrize(
    "line",
    [b"POST /v1/chat/completions/x", b"POST /v1/Chat/Completions", b"PUT /v1/chat/completions",
     b"GET /v1/chat/completions", b"POST /v1/chat/completions.json"],
)  # fmt: skip
def test_a_wide_list_of_endpoints_opens_no_way_around_models_and_tokens(line: bytes) -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o*",), endpoints=("/v1/*",))
    lab.limiter.metered = True
    other = BODY.replace(b"gpt-4o", b"gpt-55")
    assert refused(lab, lab.ask(line + b" HTTP/1.1", *CHAT, body=other)) == (403, "model_not_allowed")
    assert lab.upstreams == []
    lab.ask(line + b" HTTP/1.1", *CHAT, body=BODY)
    assert len(lab.upstreams) == 1
    assert lab.limiter.given[-1].claimed, "what it may use was claimed"


def test_nor_does_it_where_the_path_names_the_model() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o*",), endpoints=("/v1/*",))
    line = b"POST /v1/deployments/gpt-55/chat/completions/x HTTP/1.1"
    assert refused(lab, lab.ask(line, *CHAT, body=BODY)) == (403, "model_not_allowed")
    lab.ask(line.replace(b"gpt-55", b"gpt-4o"), *CHAT, body=BODY)
    assert len(lab.upstreams) == 1


@pytest.mark.parametrize(
    "path",
    [b"chat/completions/", b"chat//completions", b"%63hat/completions", b"chat%2fcompletions", b"/chat/completions",
     b"chat/completions%2F", b"v1/chat/completions", b"chat/completions?", b"%63%68%61%74/%63ompletions"],
)  # fmt: skip
def test_another_way_of_writing_a_generating_path_is_judged_like_the_plain_one(path: bytes) -> None:
    lab = restricted("models")
    lab.ask(b"POST /v1/" + path + b" HTTP/1.1", *CHAT, body=BODY)
    assert len(lab.upstreams) == 1
    other = BODY.replace(b"gpt-4o", b"gpt-55")
    assert refused(lab, lab.ask(b"POST /v1/" + path + b" HTTP/1.1", *CHAT, body=other)) == (403, "model_not_allowed")


def test_a_call_that_needs_no_body_passes_without_one() -> None:
    lab = restricted("models")
    for line in (b"POST /v1/responses/resp_1/cancel HTTP/1.1", b"GET /v1/chat/completions HTTP/1.1"):
        lab.ask(line, b"Content-Length: 0")
    assert len(lab.upstreams) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/models/..%00/files", b"GET /v1/models/x%00", b"GET /v1/models/x%2f..%00", b"GET /v1/models/%0d%0ax",
        b"GET /v1/models/%c0%ae%c0%ae/files", b"GET /v1/models/%252e%252e/files", b"GET /v1/models/x;/files",
        b"GET /v1/models/x%5c..%5cfiles", b"GET /v1/models/x%3f", b"GET /v1/models/%E2%80%A4%E2%80%A4/files",
        b"GET /v1/models/..%20/files", b"DELETE /v1/models/ft:gpt-4o:a::b", b"POST /v1/models", b"PUT /v1/models/x",
        b"PATCH /v1/models/x", b"OPTIONS /v1/models", b"GET /v1/Models", b"GET /v1/models/x%25",
        b"GET /v1/models?path=/v1/files", b"GET /v1/models?include=files", b"GET /v1/models?_method=DELETE",
        b"GET /v1/models/x?expand[]=permission", b"GET /v1/models?limit=1&x=2", b"HEAD /v1/files",
    ],
)  # fmt: skip
def test_with_the_operator_s_key_nothing_but_inference_and_models_is_open(line: bytes) -> None:
    lab = restricted("the operator's key")
    got = Answer(lab.ask(line + b" HTTP/1.1").take())
    assert got.status in (400, 403)
    assert got["flowstack-error"] in (b"endpoint_not_allowed", b"malformed_request")
    assert lab.upstreams == []


@pytest.mark.parametrize(
    "line",
    [b"GET /v1/models", b"HEAD /v1/models", b"GET /v1/models/gpt-4o", b"GET /v1/models/ft:gpt-4o:acme::x",
     b"GET /v1/models/meta-llama%2FLlama-3", b"GET /v1/models?limit=20&after_id=x", b"GET /v1/models?api-version=1",
     b"GET /v1/models?client_version=0.98.0"],
)  # fmt: skip
def test_with_the_operator_s_key_models_can_be_listed(line: bytes) -> None:
    lab = restricted("the operator's key")
    lab.ask(line + b" HTTP/1.1")
    assert lab.upstreams[0].take().startswith(line + b" HTTP/1.1\r\n")


def test_with_the_operator_s_key_a_look_brings_no_body() -> None:
    lab = restricted("the operator's key")
    assert refused(lab, lab.ask(b"GET /v1/models HTTP/1.1", *CHAT, body=BODY)) == (403, "endpoint_not_allowed")


@pytest.mark.parametrize(
    ("header", "sent"),
    [("Authorization", b"Authorization: Bearer sk-operator"), ("api-key", b"api-key: sk-operator"),
     ("X-Api-Key", b"X-Api-Key: sk-operator")],
)  # fmt: skip
def test_the_operator_s_key_goes_out_in_the_upstream_s_own_field(header: str, sent: bytes) -> None:
    lab = Lab(upstreams=(Upstream(base_url="http://upstream.example/v1", api_key_header=header),))
    lab.relay.provider_keys = {"openai": b"sk-operator"}
    theirs = (b"Authorization: Bearer x", b"api-key: y", b"x-api-key: z", b"x-goog-api-key: w")
    lab.ask(b"GET /v1/models HTTP/1.1", *theirs)
    head = lab.upstreams[0].take()
    assert head == b"GET /v1/models HTTP/1.1\r\nHost: upstream.example\r\n" + sent + b"\r\n\r\n"


# Upgrades.


@pytest.mark.parametrize("operators_key", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"endpoints": ("/v1/embeddings",)}, {"models": ("x",)}, {"upstreams": ("other",)}],
    ids=["unlimited", "endpoints", "models", "upstreams"],
)
def test_where_websockets_are_off_that_is_said_before_any_right_is_looked_at(
    options: dict[str, Any], operators_key: bool
) -> None:
    lab = Lab(websockets=False)
    lab.keys.add(KEY, **options)
    if operators_key:
        lab.relay.provider_keys = {"openai": b"sk-operator"}
    fields = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
    got = answer(lab.ask(b"GET /v1/realtime?model=gpt-realtime HTTP/1.1", *fields))
    assert (got.status, got.error["code"]) == (426, "websocket_disabled")
    assert (got["upgrade"], got["connection"]) == (b"HTTP/1.1", b"Upgrade")  # RFC 9110 §15.5.22 and §7.8
    assert (lab.row["end"], lab.row["error_code"]) == ("refused", "websocket_disabled")
    assert lab.upstreams == []


@pytest.mark.parametrize("value", [b"WebSocket", b"websocket/13", b"h2c , WEBSOCKET", b"\twebsocket,"])
def test_websocket_is_known_among_other_protocols(value: bytes) -> None:
    lab = Lab(websockets=False)
    assert refused(lab, lab.ask(b"GET /v1/x HTTP/1.1", b"Upgrade: " + value)) == (426, "websocket_disabled")


@pytest.mark.parametrize("value", [b"h2c", b"not-websocket", b"websockets", b"TLS/1.0", b"HTTP/2.0"])
def test_any_other_upgrade_is_dropped_and_ignored(value: bytes) -> None:
    lab = Lab()
    lab.ask(b"GET /v1/x HTTP/1.1", b"Connection: upgrade", b"Upgrade: " + value)
    assert lab.upstreams[0].take() == b"GET /v1/x HTTP/1.1\r\nHost: upstream.example\r\n\r\n"


# Hosts.


@pytest.mark.parametrize(
    ("host", "name"),
    [(b"two.test", "two"), (b"two.test.", "two"), (b"TWO.Test:80", "two"), (b"two.test.:8080", "two"),
     (b"x.test", "one")],
)  # fmt: skip
def test_a_host_selects_its_upstream_however_it_is_written(host: bytes, name: str) -> None:
    lab = Lab(upstreams=UPSTREAMS)
    client = lab.client()
    client.send(request().replace(b"flowstack.example", host))
    assert [bool(lab.providers[one].peers) for one in ("one", "two")] == [name == "one", name == "two"]


def test_a_host_that_is_no_name_is_refused_where_hosts_select() -> None:
    lab = Lab(upstreams=UPSTREAMS)
    client = lab.client()
    client.send(request().replace(b"flowstack.example", b"%74wo.test"))
    assert refused(lab, client) == (400, "malformed_request")


# Where an answer says that something is.


def redirected(lab: Lab, value: bytes, *fields: bytes, name: bytes = b"Location", status: bytes = b"307 X") -> Any:
    client = lab.ask(b"GET /v1/x HTTP/1.1", *fields)
    lab.upstreams[-1].send(b"HTTP/1.1 " + status + b"\r\n" + name + b": " + value + b"\r\nContent-Length: 0\r\n\r\n")
    return answer(client)[name.decode()]


@pytest.mark.parametrize("name", [b"Location", b"content-location"])
@pytest.mark.parametrize("status", [b"200 OK", b"201 Created", b"301 Moved", b"308 X"])
def test_a_redirect_of_the_upstream_to_itself_comes_back_through_flowstack(name: bytes, status: bytes) -> None:
    for _ in range(5):  # of a connection's answers the later ones are read in another way
        lab = Lab()
        value = b"http://UPSTREAM.example:80/v1/x/?a=b"
        assert redirected(lab, value, name=name, status=status) == b"http://flowstack.example/v1/x/?a=b"
        assert lab.row["status"] == int(status[:3])


def test_answers_of_one_shape_have_their_location_changed_each_time() -> None:
    lab = Lab()
    client = lab.client()
    for number in range(6):
        client.send(request())
        (upstream,) = lab.upstreams
        head = b"HTTP/1.1 201 Created\r\nLocation: http://upstream.example/v1/%d\r\nContent-Length: 0\r\n\r\n"
        upstream.send(head % number)
        assert answer(client)["location"] == b"http://flowstack.example/v1/%d" % number


@pytest.mark.parametrize("value", [b"https://elsewhere.example/v1/x", b"http://upstream.example/v10", b"y", b"/z"])
def test_another_redirect_passes_byte_for_byte(value: bytes) -> None:
    assert redirected(Lab(), value) == value


@pytest.mark.parametrize(
    ("server", "fields", "begins"),
    [
        ({}, [b"X-Forwarded-Proto: https"], b"http:"),
        ({"trusted_proxies": ("192.0.2.0/24",)}, [b"X-Forwarded-Proto: https"], b"https:"),
        ({"trusted_proxies": ("192.0.2.0/24",)}, [b"X-Forwarded-Proto: HTTPS, http"], b"https:"),
        ({"trusted_proxies": ("192.0.2.0/24",)}, [b"X-Forwarded-Proto: gopher"], b"http:"),
        ({"trusted_proxies": ("192.0.2.0/24",)}, [], b"http:"),
    ],
)
def test_the_scheme_is_the_listener_s_or_what_a_trusted_proxy_says(
    server: dict[str, Any], fields: list[bytes], begins: bytes
) -> None:
    found = redirected(Lab(**server), b"http://upstream.example/v1/y", *fields)
    assert found == begins + b"//flowstack.example/v1/y"


def test_over_tls_the_client_is_sent_back_by_https() -> None:
    lab = Lab(prefixes=(Prefix("/v1/"), Prefix("/openai/v1/")))
    client = lab.listener.connect(secure=True)
    client.send(request(b"GET /openai/v1/x HTTP/1.1"))
    lab.upstreams[0].send(b"HTTP/1.1 307 X\r\nLocation: http://upstream.example/v1/y\r\nContent-Length: 0\r\n\r\n")
    assert answer(client)["location"] == b"https://flowstack.example/openai/v1/y"


# Browsers.


def test_a_preflight_of_a_page_that_may_not_ask_is_told_which_setting_to_look_at() -> None:
    for origins in ((), ("https://other.example",)):
        lab = Lab(cors_origins=origins)
        fields = (b"Origin: https://app.example", b"Access-Control-Request-Method: POST")
        got = answer(lab.ask(b"OPTIONS /v1/chat/completions HTTP/1.1", *fields, auth=None))
        assert (got.status, got.error["code"]) == (401, "missing_flowstack_key")
        assert "[server] cors_origins" in got.error["message"]


# The client's address.


@pytest.mark.parametrize(
    ("peer", "told"),
    [("::ffff:203.0.113.7", "203.0.113.7"), ("203.0.113.7", "203.0.113.7"), ("2001:DB8::7", "2001:db8::7")],
)
def test_rows_rights_and_proxies_see_one_form_of_an_address(peer: str, told: str) -> None:
    lab = Lab(forwarded="append")
    lab.keys.add(KEY, allow_ip=(ip_network(told),))
    channel = lab.listener.site.buildProtocol(None)
    client = Transport(lab.turns, channel)
    client.getPeer = lambda: IPv6Address("TCP", peer, 1)  # type: ignore[method-assign]
    channel.makeConnection(client)
    client.send(request())
    (upstream,) = lab.upstreams
    assert b"\r\nX-Forwarded-For: " + told.encode() + b"\r\n" in upstream.take()
    upstream.send(OK)
    assert lab.row["client_addr"] == told
