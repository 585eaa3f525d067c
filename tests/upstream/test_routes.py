"""From target and Host to the upstream and its target: nothing decoded, nothing normalised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config import Prefix, Upstream
from flowstack.errors import MalformedRequest, UnknownPath
from flowstack.upstream.routes import Origin, Routes

OPENAI = Upstream(name="openai", base_url="https://api.openai.com/v1", hosts=("openai.flowstack.example",))
ANTHROPIC = Upstream(
    name="anthropic",
    base_url="http://127.0.0.1:8001",
    hosts=("anthropic.flowstack.example", "[::2]", "10.0.0.2"),
    default=False,
)
ROUTES = Routes.of(
    (Prefix("/v1/"), Prefix("/v1/deep/", "/other/"), Prefix("/root/", "/")), (OPENAI, ANTHROPIC)
)


def target(path: bytes, host: bytes | None = b"a") -> tuple[str, bytes]:
    route = ROUTES.resolve(path, host)
    return route.origin.name, route.target


@pytest.mark.parametrize(
    ("path", "becomes"),
    [
        (b"/v1/models", b"/v1/models"),
        (b"/v1/", b"/v1/"),
        (b"/v1/a/b/?x=1&y[]=%20#".rstrip(b"#"), b"/v1/a/b/?x=1&y[]=%20"),
        (b"/v1/x?", b"/v1/x?"),
        (b"/v1/x??a", b"/v1/x??a"),
        (b"/v1/?", b"/v1/?"),
        (b"/v1/a%2Fb%41", b"/v1/a%2Fb%41"),
        (b"/v1//a//b", b"/v1//a//b"),
        (b"/v1/v1/x", b"/v1/v1/x"),
        (b"/v1/a;b=c", b"/v1/a;b=c"),
        (b"/v1/x?next=/v1/../y", b"/v1/x?next=/v1/../y"),
        (b"/v1/x?%2e%2e/", b"/v1/x?%2e%2e/"),
        (b"/v1/.well-known", b"/v1/.well-known"),
        (b"/v1/a..b/...", b"/v1/a..b/..."),
        (b"/v1/..a/a..", b"/v1/..a/a.."),
        (b"/v1/files/a.b%2ejson", b"/v1/files/a.b%2ejson"),
        (b"/v1/deep/x", b"/other/x"),
        (b"/v1/deepx", b"/v1/deepx"),
        (b"/root/x", b"/x"),
    ],
)
def test_the_prefix_is_replaced_and_the_rest_goes_on_byte_for_byte(path: bytes, becomes: bytes) -> None:
    assert target(path) == ("openai", becomes)


@given(st.binary(max_size=30).map(lambda data: data.translate(None, b"./\\%?")), st.binary(max_size=20))
def test_whatever_follows_the_prefix_is_kept(rest: bytes, query: bytes) -> None:
    assert target(b"/v1/" + rest + b"?" + query)[1] == (
        b"/other/" + rest[5:] if rest.startswith(b"deep/") else b"/v1/" + rest
    ) + b"?" + query


@pytest.mark.parametrize(
    "path",
    [b"/v1/.", b"/v1/..", b"/v1/./x", b"/v1/../x", b"/v1/x/..", b"/../v1/x", b"/./v1/x", b"/v1/%2e", b"/v1/%2E%2e/x",
     b"/v1/.%2e/x", b"/v1/%2e./x", b"/v1/..%2fx", b"/v1/x%2F..%2Fy", b"/v1%2f../x", b"/v1/..;a/x", b"/v1/..;/x",
     b"/v1/..%3Bx", b"/v1/%2e%2e?x", b"/v1/..?x", b"/v1/..%5cx", b"/v1/x%5C..", b"/v1/..\\x", b"/%2e%2e/v1/x",
     b"//..", b"/v1/..%00/x", b"/v1/models/..%00/files", b"/v1/..%20/x", b"/v1/..%09", b"/v1/.%0d%0a/x", b"/v1/..%3f/x",
     b"/v1/..%23/x", b"/v1/..%7F/x", b"/v1/%252e%252e/x", b"/v1/%25252e./x", b"/v1/..%252fx", b"/v1/%c0%ae%c0%ae/x",
     b"/v1/%C0%AE./x", b"/v1/%e0%80%ae%e0%80%ae/x", b"/v1/..%c0%afx", b"/v1/x%c1%9c..", b"/v1/..%2500/x"],
)  # fmt: skip
def test_dot_segments_are_refused_however_they_are_written(path: bytes) -> None:
    with pytest.raises(MalformedRequest, match="dot segment"):
        target(path)


@pytest.mark.parametrize(
    "path", [b"/", b"/v1", b"/v1?x", b"/v2/x", b"//v1/x", b"//host/v1/x", b"/V1/x", b"/%761/x", b"/v1%2fx", b"*",
             b"host:443", b"/x/v1/"]
)  # fmt: skip
def test_what_is_outside_the_served_prefixes_is_unknown(path: bytes) -> None:
    with pytest.raises(UnknownPath):
        target(path)


def test_an_unknown_path_is_told_which_are_served() -> None:
    with pytest.raises(UnknownPath, match="/v1/deep/"):
        target(b"/")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"openai.flowstack.example", "openai"), (b"anthropic.flowstack.example", "anthropic"),
        (b"ANTHROPIC.flowstack.example:8080", "anthropic"), (b"anthropic.flowstack.example:", "anthropic"),
        (b"anthropic.flowstack.example.", "anthropic"), (b"Anthropic.Flowstack.EXAMPLE.:80", "anthropic"),
        (b"anthropic.flowstack.example:443", "anthropic"), (b"[0:0:0:0:0:0:0:2]", "anthropic"),
        (b"[::2]:8080", "anthropic"), (b"[0::0002]", "anthropic"), (b"10.0.0.2:1", "anthropic"),
        (b"other", "openai"), (b"[::1]:80", "openai"), (None, "openai"), (b"xanthropic.flowstack.example", "openai"),
    ],
)  # fmt: skip
def test_the_host_selects_the_upstream(host: bytes | None, name: str) -> None:
    assert target(b"/v1/x", host)[0] == name


@pytest.mark.parametrize(
    "host",
    [b"anthropic.flowstack.example..", b"anthropic%2eflowstack.example", b"%61nthropic.flowstack.example", b".", b"..",
     b".anthropic.flowstack.example", b"anthropic..flowstack.example", b"anthropic.flowstack.example;x", b"[::2",
     b"anthropic.flowstack.example,x", b"[::ffff:1.2.3]", b"-a.example", b"a:b:80", b"anthropic.flowstack.example!"],
)  # fmt: skip
def test_a_host_that_is_no_name_selects_nothing_where_hosts_select(host: bytes) -> None:
    with pytest.raises(MalformedRequest, match="Host"):
        target(b"/v1/x", host)
    alone = Routes.of((Prefix("/v1/"),), (Upstream(name="one", base_url="http://a.example"),))
    assert alone.resolve(b"/v1/x", host).origin.name == "one"


def test_an_upstream_without_a_path_gets_the_rest_at_its_root() -> None:
    assert target(b"/v1/x", b"anthropic.flowstack.example") == ("anthropic", b"/x")


def test_absolute_form_to_a_configured_host_is_taken_as_origin_form() -> None:
    for scheme in (b"http", b"https", b"HTTP"):
        url = scheme + b"://anthropic.flowstack.example/v1/x?y"
        assert target(url, b"anthropic.flowstack.example") == ("anthropic", b"/x?y")
        assert target(url, None) == ("anthropic", b"/x?y")
    assert target(b"http://anthropic.flowstack.example./v1/x", b"anthropic.flowstack.example:80")[0] == "anthropic"
    assert target(b"https://[0::2]/v1/x", b"[::2]:443")[0] == "anthropic"
    assert target(b"http://anthropic.flowstack.example:80/v1/x", b"Anthropic.flowstack.example:80")[0] == "anthropic"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (b"http://evil.example/v1/x", b"evil.example"),
        (b"http://evil.example/v1/x", b"openai.flowstack.example"),
        (b"http://openai.flowstack.example@evil.example/v1/x", b"openai.flowstack.example"),
        (b"http://user@openai.flowstack.example/v1/x", b"openai.flowstack.example"),
        (b"http://openai.flowstack.example/v1/x", b"anthropic.flowstack.example"),
        (b"http://openai.flowstack.example:80/v1/x", b"openai.flowstack.example:81"),
        (b"http:///v1/x", b"openai.flowstack.example"),
        (b"http://openai.flowstack.example/v1/../x", b"openai.flowstack.example"),
    ],
)
def test_absolute_form_to_any_other_host_is_refused(url: bytes, host: bytes) -> None:
    with pytest.raises(MalformedRequest):
        target(url, host)


def test_other_schemes_are_no_paths() -> None:
    with pytest.raises(UnknownPath):
        target(b"ftp://openai.flowstack.example/v1/x", b"openai.flowstack.example")


@pytest.mark.parametrize(
    ("base_url", "tls", "host", "port", "authority", "path"),
    [
        ("https://api.openai.com/v1", True, "api.openai.com", 443, b"api.openai.com", b"/v1/"),
        ("https://api.openai.com:443/v1/", True, "api.openai.com", 443, b"api.openai.com", b"/v1/"),
        ("http://127.0.0.1:8001", False, "127.0.0.1", 8001, b"127.0.0.1:8001", b"/"),
        ("http://[::1]:80/a/b", False, "::1", 80, b"[::1]", b"/a/b/"),
        ("https://[::1]:8443/", True, "::1", 8443, b"[::1]:8443", b"/"),
    ],
)
def test_an_origin_is_read_from_its_base_url(
    base_url: str, tls: bool, host: str, port: int, authority: bytes, path: bytes
) -> None:
    origin = Origin.of(Upstream(base_url=base_url))
    assert (origin.tls, origin.host, origin.port) == (tls, host, port)
    assert (origin.authority, origin.path) == (authority, path)
    assert origin.url == (b"https://" if tls else b"http://") + authority


# Back: the upstream's own address.

HERE = b"https://flow.example:8443"


def located(value: bytes, path: bytes = b"/v1/x", upstream: Upstream = OPENAI, host: bytes | None = None) -> bytes:
    routes = Routes.of((Prefix("/v1/"), Prefix("/v1/deep/", "/other/"), Prefix("/openai/v1/")), (upstream,))
    route = routes.resolve(path, None)
    return routes.location(route, value, b"https", b"flow.example:8443" if host is None else host)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (b"https://api.openai.com/v1/files/", HERE + b"/v1/files/"),
        (b"https://api.openai.com/v1/files/a%2Fb?x=/v1/&y#z", HERE + b"/v1/files/a%2Fb?x=/v1/&y#z"),
        (b"HTTPS://API.OpenAI.com:443/v1/files", HERE + b"/v1/files"),
        (b"https://api.openai.com:/v1/x", HERE + b"/v1/x"),
        (b"https://api.openai.com./v1/x", HERE + b"/v1/x"),
        (b"https://api.openai.com/v1", HERE + b"/v1"),
        (b"https://api.openai.com/v1?x", HERE + b"/v1?x"),
        (b"https://api.openai.com/v1#x", HERE + b"/v1#x"),
        (b"https://api.openai.com/v1/", HERE + b"/v1/"),
        (b"https://api.openai.com/other/x", HERE + b"/v1/deep/x"),
        (b"//api.openai.com/v1/x", b"//flow.example:8443/v1/x"),
        (b"/v1/x/", b"/v1/x/"),
        (b"/other/x", b"/v1/deep/x"),
    ],
)
def test_the_upstream_s_own_address_becomes_flowstack_s(value: bytes, becomes: bytes) -> None:
    assert located(value) == becomes


@pytest.mark.parametrize(
    "value",
    [
        b"https://api.openai.com/v10/x", b"https://api.openai.com/v1x", b"https://api.openai.com/", b"/", b"",
        b"https://api.openai.com", b"https://api.openai.com:8443/v1/x", b"http://api.openai.com/v1/x",
        b"https://api.openai.com.evil.example/v1/x", b"https://evil.example/https://api.openai.com/v1/x",
        b"https://user@api.openai.com/v1/x", b"https://api.openai.com@evil.example/v1/x", b"https:/v1/x", b"x/y",
        b"../v1/x", b"/v1/../x", b"https://api.openai.com/v1/../x", b"https://api.openai.com/v1/%2e%2e/x",
        b"https://api.openai.com/V1/x", b"ftp://api.openai.com/v1/x", b"https:api.openai.com/v1/x", b"?x", b"#x",
        b"https://api.openai.com\\/v1/x", b" https://api.openai.com/v1/x", b"///v1/x", b"//evil.example/v1/x",
    ],
)  # fmt: skip
def test_any_other_location_stays_byte_for_byte(value: bytes) -> None:
    assert located(value) == value


def test_a_location_comes_back_by_the_prefix_by_which_the_client_came() -> None:
    assert located(b"https://api.openai.com/v1/x", b"/openai/v1/y") == HERE + b"/openai/v1/x"
    assert located(b"/v1/x", b"/openai/v1/y") == b"/openai/v1/x"
    assert located(b"https://api.openai.com/other/x", b"/v1/deep/y") == HERE + b"/v1/deep/x"


def test_of_a_client_that_names_no_host_only_the_path_is_told() -> None:
    routes = Routes.of((Prefix("/v1/"),), (OPENAI,))
    route = routes.resolve(b"/v1/x", None)
    assert routes.location(route, b"https://api.openai.com/v1/y", b"http", None) == b"/v1/y"


def test_an_upstream_at_its_root_owns_every_path() -> None:
    assert located(b"http://127.0.0.1:8001/a", upstream=ANTHROPIC) == HERE + b"/v1/a"
    assert located(b"http://127.0.0.1:8001", upstream=ANTHROPIC) == HERE + b"/v1/"
    assert located(b"http://127.0.0.1/a", upstream=ANTHROPIC) == b"http://127.0.0.1/a"
    assert located(b"/a", upstream=ANTHROPIC) == b"/v1/a"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (b"/openai/deployments/d/chat/completions", "AzureOpenAI"), (b"/deployments/d/embeddings", "AzureOpenAI"),
        (b"/chat/completions", "usually ends in /v1"), (b"/", "usually ends in /v1"),
    ],
)  # fmt: skip
def test_the_hint_to_an_unknown_path_fits_it(path: bytes, says: str) -> None:
    with pytest.raises(UnknownPath, match=says):
        target(path)
