"""Which fields pass, in both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.errors import MalformedRequest
from flowstack.http.headers import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    Pair,
    RawHeaders,
    ReceivedHeaders,
    RequestFields,
    append_forwarded,
    attributes,
    replace_credentials,
    response_pairs,
    with_host,
)

UP = b"upstream.example"


def sent_on(*pairs: Pair, forwarded: str = "remove") -> list[Pair]:
    return RequestFields(forwarded).split(ReceivedHeaders([(b"Host", b"a"), *pairs])).out[1:]


REMOVED = [
    b"Connection", b"connection", b"CONNECTION", b"Proxy-Connection", b"Keep-Alive", b"TE", b"Transfer-Encoding",
    b"Upgrade", b"Expect", b"Flowstack-Auth", b"flowstack-attribute-user", b"FLOWSTACK-ANYTHING", b"Forwarded", b"Via",
    b"X-Forwarded-For", b"x-forwarded-proto", b"X-Forwarded-Anything", b"Flowstack_Auth", b"X_Forwarded_For",
]  # fmt: skip
KEPT = [
    b"Authorization", b"authorization", b"api-key", b"x-api-key", b"Cookie", b"Content-Type", b"Content-Length",
    b"Accept-Encoding", b"OpenAI-Organization", b"User-Agent", b"X-Stainless-Lang", b"Idempotency-Key", b"Origin",
    b"Flowstack", b"X-Flowstack-Auth", b"Trailer", b"If-None-Match", b"Range",
]  # fmt: skip


@pytest.mark.parametrize("name", REMOVED)
def test_what_is_the_connections_or_flowstacks_own_does_not_reach_the_upstream(name: bytes) -> None:
    assert sent_on((b"A", b"1"), (name, b"x"), (b"B", b"2")) == [(b"A", b"1"), (b"B", b"2")]


TELLING = [
    b"CF-Connecting-IP", b"CF-Connecting-IPv6", b"CF-IPCountry", b"CF-Ray", b"cf-visitor", b"CF-Anything",
    b"Cf-Access-Jwt-Assertion", b"CDN-Loop", b"True-Client-IP", b"X-Real-IP", b"X_Real_IP", b"X-Client-IP",
    b"Client-IP", b"X-Cluster-Client-IP", b"Fastly-Client-IP", b"Fly-Client-IP", b"Fly-Region", b"X-Azure-ClientIP",
    b"X-Azure-SocketIP", b"X-Appengine-User-IP", b"X-AppEngine-Country", b"X-Forwarded", b"X-Original-Forwarded-For",
    b"X-Originating-IP", b"X-Remote-IP", b"X-Remote-Addr", b"Remote-User", b"X-Vercel-Forwarded-For",
    b"X-NF-Client-Connection-IP", b"DO-Connecting-IP", b"Incap-Client-IP", b"X-Sucuri-ClientIP", b"X-ProxyUser-Ip",
    b"WL-Proxy-Client-IP", b"CloudFront-Viewer-Address", b"X-Envoy-External-Address", b"X-Auth-Request-Email",
    b"Tailscale-User-Login", b"X-Goog-IAP-JWT-Assertion", b"X-SSL-Client-S-DN",
]  # fmt: skip


@pytest.mark.parametrize("name", TELLING)
def test_who_the_client_is_reaches_the_upstream_only_where_the_operator_says_so(name: bytes) -> None:
    assert sent_on((name, b"x")) == []
    assert sent_on((name, b"x"), forwarded="pass") == [(name, b"x")]
    assert sent_on((name, b"x"), forwarded="append") == [(name, b"x")]


@pytest.mark.parametrize(
    "name", [b"cf-aig-authorization", b"X-Client-Request-Id", b"x-ms-client-request-id", b"User-Agent", b"X-IP-Model",
             b"Via-X", b"X-Stainless-Runtime", b"traceparent", b"x-goog-api-client", b"OpenAI-User", b"X-Tip"]
)  # fmt: skip
def test_what_says_nothing_of_the_client_s_way_passes(name: bytes) -> None:
    assert sent_on((name, b"x")) == [(name, b"x")]


@pytest.mark.parametrize(
    ("remove", "gone", "kept"),
    [
        (("x-team",), [b"X-Team", b"x_team"], [b"X-Teams", b"X-Tea"]),
        (("x-team*",), [b"X-Team", b"X-TEAM-A", b"x_team_b"], [b"X-Tea"]),
        (("user-agent", "openai-*"), [b"User-Agent", b"OpenAI-Project"], [b"Open", b"Authorization"]),
    ],
)
def test_more_fields_are_taken_out_as_the_operator_names_them(
    remove: tuple[str, ...], gone: list[bytes], kept: list[bytes]
) -> None:
    pairs = [(name, b"x") for name in (*gone, *kept)]
    for forwarded in ("remove", "pass", "append"):
        out = RequestFields(forwarded, remove).split(ReceivedHeaders([(b"Host", b"a"), *pairs])).out
        assert [name for name, _ in out[1:]] == kept


REROUTING = [
    b"X-HTTP-Method-Override", b"x-http-method", b"X-Method-Override", b"X-Method", b"X_HTTP_Method_Override",
    b"X-Original-URL", b"X-Rewrite-URL", b"X-Original-URI", b"X-Original-Method", b"X-Envoy-Original-Path",
    b"X-Waws-Unencoded-Url", b"Request-URI", b"Script-Name", b"Destination", b"X-Amz-Target", b"X-Invoke-Path",
    b"azureml-model-deployment", b"azureml-model-group", b"X-Model", b"Model", b"mm-model-id", b"mm-vmodel-id",
    b"X-Deployment-Name", b"X-Amzn-SageMaker-Target-Variant", b"X-Amzn-SageMaker-Inference-Component", b"X-Engine",
    b"Helicone-Fallbacks", b"Helicone-Target-URL", b"Helicone-Model-Override", b"x-portkey-config",
    b"x-portkey-provider", b"x-portkey-virtual-key", b"x-litellm-tags", b"X-Upstream", b"X-Gateway-Model-Name",
    b"Content_Type", b"content_length", b"ModelId", b"X-ModelName", b"x-deploymentId", b"X-OriginalUrl", b"X-Endpoint",
]  # fmt: skip
FORWARDED_REROUTING = [b"X-Forwarded-Prefix", b"X-Forwarded-Path", b"X-Forwarded-Uri", b"X-Forwarded-Method"]
HARMLESS = [
    b"X-Stainless-Helper-Method", b"X-Stainless-Timeout", b"Content-Type", b"OpenAI-Beta", b"anthropic-version",
    b"anthropic-beta", b"Accept", b"X-Request-Id", b"Idempotency-Key", b"Origin", b"Referer", b"Range", b"Cookie",
    b"OpenAI-Organization", b"x-ms-client-request-id", b"X-Amz-Date", b"X-Team", b"Access-Control-Request-Method",
    b"Sec-Fetch-Mode", b"x-goog-api-client",
]  # fmt: skip


@pytest.mark.parametrize("name", REROUTING)
def test_what_may_reroute_a_request_goes_on_and_is_told(name: bytes) -> None:
    split = RequestFields().split(ReceivedHeaders([(b"Host", b"a"), (name, b"x")]))
    assert split.out[1:] == split.rerouting == [(name, b"x")]


@pytest.mark.parametrize("name", FORWARDED_REROUTING)
def test_what_a_proxy_says_of_the_path_reroutes_only_where_it_is_passed_on(name: bytes) -> None:
    headers = ReceivedHeaders([(b"Host", b"a"), (name, b"x")])
    assert RequestFields().split(headers) == ([(b"Host", b"a")], [], [])
    assert RequestFields("pass").split(headers).rerouting == [(name, b"x")]


@pytest.mark.parametrize("name", HARMLESS)
def test_the_fields_of_usual_clients_reroute_nothing(name: bytes) -> None:
    assert RequestFields().split(ReceivedHeaders([(b"Host", b"a"), (name, b"x")])).rerouting == []


@pytest.mark.parametrize("name", KEPT)
def test_everything_else_passes_untouched(name: bytes) -> None:
    assert sent_on((name, b"  x\xff,y ")) == [(name, b"  x\xff,y ")]


def test_order_case_and_repeats_are_kept() -> None:
    pairs = [(b"x-B", b"1"), (b"X-a", b"2"), (b"X-b", b"3"), (b"x-B", b"1"), (b"X-Empty", b"")]
    assert sent_on(*pairs) == pairs


def test_host_becomes_the_upstreams_in_its_place_and_spelling() -> None:
    out = RequestFields("remove", ["ho*"]).split(ReceivedHeaders([(b"A", b"1"), (b"hOst", b"a"), (b"B", b"2")])).out
    assert with_host(out, UP) == [(b"A", b"1"), (b"hOst", UP), (b"B", b"2")]


def test_a_request_without_host_gets_one() -> None:
    out = RequestFields().split(ReceivedHeaders([(b"A", b"1")])).out
    assert with_host(out, UP) == [(b"Host", UP), (b"A", b"1")]


def test_flowstacks_own_fields_are_set_apart() -> None:
    own = [(b"Flowstack-Auth", b"Bearer x"), (b"flowstack-attribute-a", b"b")]
    assert RequestFields().split(ReceivedHeaders([(b"Host", b"a"), *own])).own == own


@pytest.mark.parametrize(
    "value", [b"X-Drop", b"close, X-Drop", b"x-drop,keep-alive", b" \tX-DROP ,,", b"X-Other\t,\tX-Drop"]
)
def test_every_field_that_connection_names_goes(value: bytes) -> None:
    """RFC 9110 §7.6.1: an intermediary must remove the fields whose names are listed in Connection."""
    out = sent_on((b"X-Drop", b"1"), (b"Connection", value), (b"x-drop", b"2"), (b"X-Keep", b"3"))
    assert out == [(b"X-Keep", b"3")]


def test_every_connection_field_counts() -> None:
    out = sent_on((b"Connection", b"X-A"), (b"connection", b"X-B"), (b"X-A", b"1"), (b"X-B", b"2"), (b"X-C", b"3"))
    assert out == [(b"X-C", b"3")]


@pytest.mark.parametrize(
    "name",
    [b"Authorization", b"HOST", b"cookie", b"Content-Length", b"content-type", b"Content-Anything", b"Flowstack-Auth",
     b"flowstack-attribute-x", b"x-api-key", b"api-key", b"X_Api_Key", b"x-goog-api-key", b"Proxy-Authorization",
     b"Ocp-Apim-Subscription-Key", b"X-Auth-Token", b"Helicone-Auth", b"X-My-Secret", b"apikey", b"Accept",
     b"Accept-Encoding", b"OpenAI-Organization", b"OpenAI-Beta", b"anthropic-version", b"User-Agent", b"Origin",
     b"If-None-Match", b"Range", b"Idempotency-Key", b"X-Forwarded-For", b"Forwarded", b"Via", b"CF-Connecting-IP",
     b"Cache-Control", b"X-Stainless-Lang"],
)  # fmt: skip
@pytest.mark.parametrize("value", [b"%b", b"close, %b", b"keep-alive ,\t%b "])
def test_a_connection_that_names_what_the_request_means_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(MalformedRequest, match=name.decode().lower()):
        sent_on((b"Connection", value % name))


@pytest.mark.parametrize("name", [b"close", b"TE", b"Upgrade", b"HTTP2-Settings", b"Keep-Alive", b"Trailer", b"X-Hop"])
def test_a_connection_may_name_what_is_its_own(name: bytes) -> None:
    assert sent_on((b"Connection", name), (b"A", b"1")) == [(b"A", b"1")]


def test_forwarded_fields_pass_where_the_operator_says_so() -> None:
    pairs = [(b"X-Forwarded-For", b"1.2.3.4"), (b"Via", b"1.1 x"), (b"Forwarded", b"for=x")]
    assert sent_on(*pairs) == []
    assert sent_on(*pairs, forwarded="pass") == pairs
    assert sent_on(*pairs, forwarded="append") == pairs


def test_appending_says_who_came_how_and_to_where_once() -> None:
    assert append_forwarded([(b"A", b"1")], b"192.0.2.7", b"https", b"a") == [
        (b"A", b"1"), (b"X-Forwarded-For", b"192.0.2.7"), (b"X-Forwarded-Proto", b"https"), (b"X-Forwarded-Host", b"a")
    ]  # fmt: skip
    before = [
        (b"x-forwarded-for", b"1.1.1.1, 2.2.2.2"), (b"X-Forwarded-For", b"3.3.3.3"),
        (b"X-Forwarded-Proto", b"http"), (b"X-Forwarded-Host", b"b"),
    ]  # fmt: skip
    assert append_forwarded(before, b"192.0.2.7", b"https", b"a") == [
        (b"X-Forwarded-Proto", b"http"), (b"X-Forwarded-Host", b"b"),
        (b"X-Forwarded-For", b"1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7"),
    ]  # fmt: skip
    assert append_forwarded([], b"unix", b"http", None) == [
        (b"X-Forwarded-For", b"unix"), (b"X-Forwarded-Proto", b"http")
    ]


def test_back_go_all_fields_but_the_connections_own_and_flowstacks() -> None:
    pairs = [
        (b"Date", b"d"), (b"Set-Cookie", b"a=1"), (b"Connection", b"close, X-Drop"), (b"set-cookie", b"b=2"),
        (b"Keep-Alive", b"timeout=5"), (b"Transfer-Encoding", b"chunked"), (b"Upgrade", b"h2c"), (b"X-Drop", b"1"),
        (b"Flowstack-Request-Id", b"forged"), (b"flowstack-error", b"forged"), (b"x-request-id", b"req_1"),
        (b"x-ratelimit-limit-requests", b"1"), (b"Via", b"1.1 x"), (b"Server", b"cloudflare"), (b"Trailer", b"X"),
        (b"Expect", b"kept"), (b"Proxy-Connection", b"x"),
    ]  # fmt: skip
    assert response_pairs(ReceivedHeaders(pairs)) == [
        (b"Date", b"d"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-request-id", b"req_1"),
        (b"x-ratelimit-limit-requests", b"1"), (b"Via", b"1.1 x"), (b"Server", b"cloudflare"), (b"Trailer", b"X"),
        (b"Expect", b"kept"),
    ]  # fmt: skip


def test_an_answers_length_stays_whatever_its_connection_names() -> None:
    """Without it the client could not tell the answer's end, since its length was read already."""
    pairs = [(b"Content-Length", b"5"), (b"X", b"y")]
    assert response_pairs(ReceivedHeaders([*pairs, (b"Connection", b"Content-Length, X")])) == pairs[:1]


# The operator's provider key.


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        (b"Authorization", (b"Authorization", b"Bearer k")), (b"authorization", (b"authorization", b"Bearer k")),
        (b"api-key", (b"api-key", b"k")), (b"X-API-Key", (b"X-API-Key", b"k")), (b"X-Ours", (b"X-Ours", b"k")),
    ],
)  # fmt: skip
def test_the_operator_s_key_goes_in_its_field_and_the_client_s_credentials_go_out(header: bytes, sent: Pair) -> None:
    taken = [
        b"Authorization", b"api-key", b"X-Api-Key", b"x_api_key", b"x-goog-api-key", b"Proxy-Authorization",
        b"Ocp-Apim-Subscription-Key", b"OpenAI-Organization", b"openai-project", header.upper(),
    ]  # fmt: skip
    pairs = [(b"A", b"1"), *((name, b"client's") for name in taken), (b"B", b"2")]
    assert replace_credentials(pairs, b"k", header) == [(b"A", b"1"), (b"B", b"2"), sent]


# Attributes.


def attribute(name: str, value: bytes = b"v") -> Pair:
    return b"Flowstack-Attribute-" + name.encode(), value


def test_attributes_are_stored_under_their_lower_case_names() -> None:
    own = [(b"Flowstack-Auth", b"Bearer x"), attribute("Team"), (b"FLOWSTACK-ATTRIBUTE-USER", b"\xc3\xa4 b"),
           (b"Flowstack-Other", b"x")]  # fmt: skip
    assert attributes(own) == {"team": "v", "user": "ä b"}
    assert attributes(own[:1]) is None


def test_a_key_in_an_attribute_s_name_or_value_is_not_stored() -> None:
    key = "fsk-" + "a1" * 29
    stored = attributes([attribute(key, key.encode()), attribute("n", b"sk-proj-" + b"b" * 40)])
    assert stored is not None
    assert key not in repr(stored)
    assert "bbbb" not in repr(stored)
    assert len(stored) == 2


def test_at_most_16_attributes_are_taken() -> None:
    assert len(attributes([attribute(f"n{number}") for number in range(MAX_ATTRIBUTES)]) or ()) == 16
    with pytest.raises(MalformedRequest, match="17 attributes"):
        attributes([attribute(f"n{number}") for number in range(MAX_ATTRIBUTES + 1)])


def test_at_most_4_kib_of_attributes_are_taken_names_counted_in() -> None:
    assert attributes([attribute("n", b"x" * (MAX_ATTRIBUTE_BYTES - 1))])
    with pytest.raises(MalformedRequest, match="4097 bytes"):
        attributes([attribute("n", b"x" * MAX_ATTRIBUTE_BYTES)])


def test_an_attribute_that_came_twice_or_has_no_name_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="more than once"):
        attributes([attribute("a"), attribute("A")])
    with pytest.raises(MalformedRequest, match="no name"):
        attributes([attribute("")])


# The fields as Twisted's own class shows them.


names = st.sampled_from([b"A", b"a", b"X-B", b"x-b", b"Set-Cookie"])


@given(st.lists(st.tuples(names, st.binary(max_size=3))), names)
def test_look_ups_agree_with_the_pairs(pairs: list[Pair], name: bytes) -> None:
    headers = ReceivedHeaders(pairs)
    values = [value for other, value in pairs if other.lower() == name.lower()]
    assert headers.all(name.lower()) == values
    assert headers.by_name.get(name.lower()) == (values[-1] if values else None)
    assert headers.getRawHeaders(name, None) == (values or None)
    assert headers.hasHeader(name) == bool(values)
    assert headers.repeated == (len({other.lower() for other, _ in pairs}) != len(pairs))


def test_raw_headers_are_read_as_twisteds_without_case_folding_and_grouping() -> None:
    headers = RawHeaders([(b"x-B", b"1"), (b"A", b"2"), (b"X-b", b"3")])
    assert list(headers.getAllRawHeaders()) == [(b"x-B", [b"1"]), (b"A", [b"2"]), (b"X-b", [b"3"])]
    assert headers.getRawHeaders("x-b") == ["1", "3"]
    other = headers.copy()
    other.removeHeader("X-B")
    other.addRawHeader("c", "4")
    other.setRawHeaders(b"A", [b"5", b"6"])
    assert other.pairs == [(b"c", b"4"), (b"A", b"5"), (b"A", b"6")]
    assert len(headers.pairs) == 3


def test_a_repr_shows_names_only() -> None:
    assert "secret" not in repr(RawHeaders([(b"Authorization", b"Bearer secret")]))
