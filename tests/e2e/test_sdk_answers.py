"""What an SDK returns through Flowstack is what it returns straight from the upstream, call by call.

The stand-in answers equal requests with equal bytes, so that the two can be compared whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

import pytest

from tests.e2e.processes import Proxy, StandIn
from tests.e2e.sdk_runs import OPENAI_KEY, Outcome, Sdks, once

pytestmark = pytest.mark.e2e

CASES = {
    "python-openai": """chat chat_async chat_stream chat_stream_with_usage chat_stream_async chat_streams_at_once
        chat_with_a_large_prompt completion response response_stream embedding models files speech transcription
        moderation image batch upstream_headers first_piece_early""",
    "python-openai-0.28": """chat chat_async chat_stream chat_stream_async completion embedding models_by_session
        files_by_session moderation_by_session first_piece_early""",
    "langchain": "invoke stream stream_async embed",
    "llamaindex": "complete chat stream_chat stream_chat_async",
    "node-openai": """chat chat_stream chat_stream_with_usage chat_streams_at_once response response_stream embedding
        models files speech transcription upstream_headers first_piece_early""",
    "node-openai-4": """chat chat_stream chat_stream_with_usage chat_streams_at_once response response_stream embedding
        models files speech transcription upstream_headers first_piece_early""",
    "node-ai-sdk": "generate_by_chat generate_by_responses stream_by_chat stream_by_responses embed",
}

OWN_TO_EACH_ANSWER = {"date", "x-request-id", "cf-ray", "set-cookie", "flowstack-request-id"}
OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}
"""RFC 9110 §7.6.1: these concern one connection and are not relayed."""


def tagged(sdk: str, proxy: Proxy | None) -> dict[str, str]:
    """The header by which the stand-in tells the requests of one run from all others."""
    return {"X-Client-Tag": f"{sdk}-{proxy.port if proxy else 'direct'}"}


class Answers(Protocol):
    """Gives what an SDK's cases returned, straight from the stand-in or through the proxy."""

    def __call__(self, sdk: str, proxy: Proxy | None) -> dict[str, Outcome]: ...


@pytest.fixture(scope="session")
def answers(sdks: Sdks, stand_in: StandIn) -> Answers:
    """Runs each SDK's script once for each way, however many tests look at its outcome."""

    @once
    def run(sdk: str, proxy: Proxy | None) -> dict[str, Outcome]:
        if proxy is None:
            return sdks.answers(sdk, f"{stand_in.url}/v1", tagged(sdk, proxy))
        return sdks.answers(sdk, proxy.base_url, proxy.headers | tagged(sdk, proxy))

    return run


def cases(sdks: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("sdk", "case"), [(sdk, case) for sdk in sdks for case in CASES[sdk].split()])


@cases(CASES)
def test_an_answer_through_flowstack_equals_the_upstreams(sdk: str, case: str, answers: Answers, proxy: Proxy) -> None:
    assert_equal(case, answers(sdk, None)[case], answers(sdk, proxy)[case])


def assert_equal(case: str, direct: Outcome, through: Outcome) -> None:
    assert direct.raised is None, direct.raised
    assert through.raised is None, through.raised
    if case == "upstream_headers":
        assert_headers_pass(direct.value, through.value)
    elif case == "first_piece_early":
        assert direct.value is True and through.value is True
    else:
        assert direct.value not in (None, [], {}, "")
        assert through.value == direct.value


def assert_headers_pass(direct: dict[str, Any], through: dict[str, Any]) -> None:
    """Every response field as the upstream sent it, and Flowstack's own request id beside the upstream's."""

    def comparable(answer: dict[str, Any]) -> dict[str, str]:
        fields = {name.lower(): value for name, value in answer["headers"].items()}
        return {
            name: "any" if name in OWN_TO_EACH_ANSWER else value
            for name, value in fields.items()
            if name not in OF_ONE_CONNECTION
        }

    assert comparable(through) == comparable(direct) | {"flowstack-request-id": "any"}
    assert set(direct["headers"]) >= {"x-request-id", "openai-processing-ms", "x-ratelimit-limit-requests"}
    headers = through["headers"]
    assert headers["flowstack-request-id"]
    assert headers["x-request-id"] == through["request_id"]
    assert headers["x-request-id"] != headers["flowstack-request-id"]
    assert through["answer"]["choices"] == direct["answer"]["choices"]


@pytest.mark.parametrize("sdk", CASES)
def test_no_case_of_an_sdks_script_goes_unasserted(sdk: str, answers: Answers, proxy: Proxy) -> None:
    assert set(answers(sdk, proxy)) == set(CASES[sdk].split())


@pytest.mark.parametrize("sdk", CASES)
def test_the_upstream_sees_an_sdks_requests_as_if_they_came_straight_from_it(
    sdk: str, answers: Answers, proxy: Proxy, stand_in: StandIn
) -> None:
    answers(sdk, None), answers(sdk, proxy)
    direct, through = (
        sorted(as_sent(record) for record in stand_in.seen(tagged(sdk, way)["X-Client-Tag"])) for way in (None, proxy)
    )
    assert len(direct) >= len(CASES[sdk].split())
    assert through == direct


def as_sent(record: dict[str, Any]) -> tuple[str, ...]:
    """What one request was, but for what differs between any two runs of a program."""
    # Ids that the stand-in gives are counted up, and the boundary of a form is random.
    target = re.sub(r"(file-|batch_)[0-9a-f]+", r"\1…", record["target"])
    counted = any(name in target for name in ("/files", "/batches", "/transcriptions"))
    fields = [
        f"{name}: {'…' if name.lower() == 'x-client-tag' else re.sub('boundary=.*', 'boundary=…', value)}"
        for name, value in record["headers"]
        if name.lower() not in {"host", "connection", "keep-alive", "te", "transfer-encoding"}
        and not (counted and name.lower() == "content-length")
    ]
    return record["method"], target, "" if counted else record["body_sha256"], *fields


def test_no_key_that_an_sdk_sent_is_in_the_proxys_log(answers: Answers, proxy: Proxy) -> None:
    answers("python-openai", proxy)
    assert "flowstack listening" in proxy.log_text()
    proxy.assert_no_secrets([OPENAI_KEY])
