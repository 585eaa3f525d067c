from __future__ import annotations

import gzip
import json
import re
from typing import Any

import brotli
import pytest
import zstandard

from tests.testing.wire import Client


def test_every_answer_has_openais_headers(client: Client) -> None:
    for answer in (
        client.chat(),
        client.chat(stream=True),
        client.ask("GET", "/v1/none"),
        client.chat("Stand-In: status=500"),
    ):
        assert re.fullmatch("req_[0-9a-f]{32}", answer.header("x-request-id") or "")
        assert (answer.header("openai-version"), answer.header("server")) == ("2020-10-01", "cloudflare")
        cookies = [value.split("=")[0] for name, value in answer.headers if name == "Set-Cookie"]
        assert cookies == ["__cf_bm", "_cfuvid"]
        for name in (
            "date", "content-type", "openai-processing-ms", "openai-organization", "x-ratelimit-limit-requests",
            "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "cf-ray", "alt-svc", "strict-transport-security",
            "x-content-type-options",
        ):  # fmt: skip
            assert answer.header(name), name


def test_no_two_answers_share_a_request_id_or_a_cookie(client: Client) -> None:
    answers = [client.ask("GET", "/v1/models") for _ in range(3)]
    for name in ("x-request-id", "set-cookie"):
        assert len({answer.header(name) for answer in answers}) == 3


@pytest.mark.parametrize(
    ("coding", "decode"),
    [
        ("gzip", gzip.decompress),
        ("br", brotli.decompress),
        ("zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ],
)
def test_json_is_coded_where_asked_for_and_nothing_else_is(client: Client, coding: str, decode: Any) -> None:
    asked = client.ask("GET", "/v1/models", f"Accept-Encoding: {coding}")
    plain = client.ask("GET", "/v1/models")
    assert (asked.header("content-encoding"), plain.header("content-encoding")) == (coding, None)
    assert decode(asked.rest) == plain.rest
    assert client.chat(f"Accept-Encoding: {coding}", stream=True).header("content-encoding") is None
    forced = client.chat(f"Stand-In: coding={coding}", stream=True)
    assert decode(forced.body) == client.chat(stream=True).body


def test_codings_refused_by_weight_are_not_used(client: Client) -> None:
    lines = {"gzip;q=0": None, "identity": None, "br;q=0.2, gzip;q=0.8": "gzip", "*": "zstd", "deflate": None}
    found = {
        line: client.ask("GET", "/v1/models", f"Accept-Encoding: {line}").header("content-encoding") for line in lines
    }
    assert found == lines


@pytest.mark.parametrize(
    "key", ["Authorization: Bearer sk-x", "authorization: bearer sk-x", "api-key: 0123", "x-api-key: sk-ant-x"]
)
def test_a_key_in_a_providers_place_is_good_enough(client: Client, key: str) -> None:
    assert client.ask("GET", "/v1/models", key=key).status == 200


@pytest.mark.parametrize(
    "key", ["", "Authorization: Bearer fsk-123", "Authorization: Basic sk-x", "Authorization: sk-x"]
)
def test_any_other_key_is_openais_401_and_not_shown(client: Client, key: str) -> None:
    answer = client.ask("GET", "/v1/models", key=key)
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert "fsk-123" not in answer.json["error"]["message"]
    assert answer.header("www-authenticate")


def test_an_unknown_path_is_openais_404_and_a_wrong_method_405(client: Client) -> None:
    assert client.ask("POST", "/v1/none/here").json == {
        "error": {
            "message": "Invalid URL (POST /v1/none/here)",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
    wrong = client.ask("DELETE", "/v1/models")
    assert (wrong.status, wrong.header("allow")) == (405, "GET")


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"\xff"])
def test_a_body_that_is_no_json_object_is_openais_400(client: Client, body: bytes) -> None:
    answer = client.ask("POST", "/v1/chat/completions", "Content-Type: application/json", body=body)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("We could not parse the JSON body of your request.")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "model", "missing_required_parameter"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": "hi"}, "messages", "invalid_type"),
        ({"model": "m", "messages": []}, "messages", "empty_array"),
        ({"model": "m", "messages": [{}], "n": 0.5}, "n", "invalid_value"),
    ],
)
def test_a_missing_or_wrong_parameter_is_named(client: Client, body: Any, param: str, code: str) -> None:
    error = client.post("/v1/chat/completions", body).json["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    head, get = (client.ask(method, "/v1/models") for method in ("HEAD", "GET"))
    assert (head.status, head.rest, head.header("content-length")) == (200, b"", get.header("content-length"))


def test_options_names_the_methods_without_a_key(client: Client) -> None:
    answer = client.ask("OPTIONS", "/v1/files", key="")
    assert (answer.status, answer.header("allow"), answer.rest) == (204, "GET, OPTIONS, POST", b"")


def test_azures_paths_are_served_with_its_key(client: Client) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    for path in ("/openai/deployments/mine/chat/completions?api-version=2024-10-21", "/openai/v1/chat/completions"):
        assert client.ask("POST", path, "api-key: 0123", body=body, key="").json["object"] == "chat.completion"
