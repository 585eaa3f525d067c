"""The responses that Flowstack itself gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flowstack.errors import BudgetExceeded, FlowstackError, InvalidKey, Overloaded
from flowstack.http.headers import Pair, ReceivedHeaders
from flowstack.http.replies import METHODS, REASONS, Cors, error_reply
from flowstack.limits.answers import refusal_fields, retry_fields

CONTRACT = {
    400: {"malformed_request"},
    401: {"missing_flowstack_key", "invalid_flowstack_key", "flowstack_key_expired", "flowstack_key_disabled",
          "misplaced_key"},
    403: {"model_not_allowed", "endpoint_not_allowed", "address_not_allowed", "upstream_not_allowed"},
    404: {"unknown_path"},
    405: {"method_not_allowed"},
    413: {"request_too_large"},
    426: {"websocket_disabled"},
    429: {"flowstack_rate_limit_exceeded", "flowstack_concurrency_exceeded", "flowstack_budget_exceeded"},
    500: {"internal_error"},
    502: {"upstream_unreachable", "upstream_closed", "upstream_malformed"},
    503: {"draining", "overloaded", "ledger_unavailable", "limits_unavailable"},
    504: {"upstream_timeout"},
}  # fmt: skip


def kinds_of(kind: type[FlowstackError]) -> list[type[FlowstackError]]:
    """The errors that are given; one that others derive from is only what these have in common."""
    further = [each for below in kind.__subclasses__() for each in kinds_of(below)]
    return further if further and kind is not FlowstackError else [kind, *further]


# The page's API has errors of its own, on another listener.
ALL = [kind for kind in kinds_of(FlowstackError) if kind.__module__ == "flowstack.errors"]


def test_the_errors_are_those_of_the_contract() -> None:
    found: dict[int, set[str]] = {}
    for kind in ALL:
        found.setdefault(kind.status, set()).add(kind.code)
    assert found == CONTRACT


@pytest.mark.parametrize("kind", ALL)
def test_an_error_has_openais_shape_and_says_that_it_is_flowstacks(kind: type[FlowstackError]) -> None:
    reply = error_reply(kind("what to do — ü"), ((b"X-Extra", b"1"),))
    assert json.loads(reply.body) == {
        "error": {"message": "what to do — ü", "type": kind.type, "param": None, "code": kind.code}
    }
    fields = dict(reply.pairs)
    assert fields[b"Flowstack-Error"] == kind.code.encode()
    assert fields[b"Content-Type"] == b"application/json"
    assert fields[b"Content-Length"] == b"%d" % len(reply.body)
    assert fields[b"X-Extra"] == b"1"
    assert reply.status == kind.status in REASONS


@pytest.mark.parametrize("kind", ALL)
def test_a_message_ends_with_a_link_to_its_code_where_the_manual_is(kind: type[FlowstackError]) -> None:
    reply = error_reply(kind("what to do."), docs_url="https://docs.example/flowstack")
    message = json.loads(reply.body)["error"]["message"]
    link = f"https://docs.example/flowstack/reference/errors.html#{kind.code.replace('_', '-')}"
    assert message == f"what to do. See {link}"
    assert dict(reply.pairs)[b"Content-Length"] == b"%d" % len(reply.body)


def test_an_errors_own_fields_go_with_it() -> None:
    assert (b"Retry-After", b"1") in error_reply(Overloaded("x", ((b"Retry-After", b"1"),))).pairs


def test_sdks_are_told_not_to_retry_a_used_up_budget_and_nothing_otherwise() -> None:
    assert (b"x-should-retry", b"false") in error_reply(BudgetExceeded("x")).pairs
    assert not [name for name, _ in error_reply(InvalidKey("x")).pairs if name == b"x-should-retry"]


# Browsers (Fetch standard, CORS protocol).


def request(*pairs: Pair) -> ReceivedHeaders:
    return ReceivedHeaders([(b"Host", b"a"), *pairs])


PREFLIGHT = request(
    (b"Origin", b"https://app.example"), (b"Access-Control-Request-Method", b"POST"),
    (b"Access-Control-Request-Headers", b"authorization,flowstack-auth"),
)  # fmt: skip
APP = Cors.of(("https://app.example", "https://other.example"))
ANY = Cors.of(("*",))


def test_a_preflight_of_an_allowed_origin_is_answered() -> None:
    reply = APP.preflight(b"OPTIONS", PREFLIGHT)
    assert reply is not None
    fields = dict(reply.pairs)
    assert (reply.status, reply.body) == (204, b"")
    assert fields[b"Access-Control-Allow-Origin"] == b"https://app.example"
    assert fields[b"Access-Control-Allow-Headers"] == b"authorization,flowstack-auth"
    assert fields[b"Access-Control-Allow-Methods"] == b", ".join(METHODS)
    assert b"Origin" in fields[b"Vary"]
    assert b"Access-Control-Allow-Credentials" not in fields
    assert dict(ANY.preflight(b"OPTIONS", PREFLIGHT).pairs)[b"Access-Control-Allow-Origin"] == b"*"  # type: ignore[union-attr]


def test_what_is_no_preflight_of_an_allowed_origin_is_not_answered() -> None:
    assert APP.preflight(b"POST", PREFLIGHT) is None
    assert APP.preflight(b"OPTIONS", request((b"Origin", b"https://app.example"))) is None
    assert APP.preflight(b"OPTIONS", request((b"Access-Control-Request-Method", b"POST"))) is None
    for origin in (b"https://evil.example", b"https://app.example.evil", b"http://app.example", b"null", b""):
        pairs = [pair for pair in PREFLIGHT.pairs if pair[0] != b"Origin"]
        assert APP.preflight(b"OPTIONS", ReceivedHeaders([*pairs, (b"Origin", origin)])) is None
    assert Cors.of(()).preflight(b"OPTIONS", PREFLIGHT) is None


def test_a_preflight_that_asks_for_no_headers_allows_none() -> None:
    plain = request((b"Origin", b"https://app.example"), (b"Access-Control-Request-Method", b"GET"))
    reply = APP.preflight(b"OPTIONS", plain)
    assert reply is not None
    assert b"Access-Control-Allow-Headers" not in dict(reply.pairs)


def test_an_answer_to_an_allowed_origin_can_be_read_with_the_fields_that_matter() -> None:
    fields = dict(APP.fields(PREFLIGHT))
    assert fields[b"Access-Control-Allow-Origin"] == b"https://app.example"
    assert fields[b"Vary"] == b"Origin"
    exposed = fields[b"Access-Control-Expose-Headers"].lower().split(b", ")
    for name in (b"flowstack-request-id", b"flowstack-error", b"flowstack-ratelimit-remaining-tokens", b"x-request-id",
                 b"retry-after", b"retry-after-ms"):  # fmt: skip
        assert name in exposed


def test_every_field_of_an_error_of_flowstack_may_be_read_by_a_page() -> None:
    """The fields that the source names itself, and those that each error of a limit carries."""
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "flowstack").rglob("*.py"))
    ours = r'b"(?:\\r\\n)?((?:Flowstack-|x-should|[Rr]etry-)[A-Za-z-]+)(?::[^"]*)?"'
    named = {name.lower() for name in re.findall(ours, source)}
    fields = refusal_fields(b"Requests", 1, 1, 1, True) + refusal_fields(b"Tokens", 1, 1, 1, True) + retry_fields(1.0)
    named |= {name.decode().lower() for name, _ in fields}
    exposed = dict(APP.fields(PREFLIGHT))[b"Access-Control-Expose-Headers"].decode().lower().split(", ")
    assert len(named) > 15
    assert named <= {*exposed, "flowstack-attribute-"}
    assert {"x-should-retry", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests"} <= {*exposed}
    assert len(exposed) == len({*exposed})


def test_a_wildcard_needs_no_vary() -> None:
    assert [name for name, _ in ANY.fields(PREFLIGHT)] == [
        b"Access-Control-Allow-Origin", b"Access-Control-Expose-Headers"
    ]  # fmt: skip


def test_no_second_origin_is_allowed_beside_the_upstreams() -> None:
    assert [name for name, _ in APP.fields(PREFLIGHT, has_origin=True)] == [b"Access-Control-Expose-Headers"]


def test_strangers_and_requests_that_are_no_browsers_get_nothing() -> None:
    assert APP.fields(request()) == APP.fields(request((b"Origin", b"https://evil.example"))) == ()
    assert Cors.of(()).fields(PREFLIGHT) == ()
    assert not Cors.of(())
    assert APP
