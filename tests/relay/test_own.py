"""What a key's holder may ask of the proxy itself: ``/flowstack/v1/key``."""

from __future__ import annotations

import json
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from flowstack.config import Prefix, Upstream
from flowstack.config.settings import Limits, Settings
from flowstack.errors import FlowstackError, Overloaded
from flowstack.interfaces import Answered
from flowstack.keys import Budget
from flowstack.limits.books import Standing
from flowstack.relay.own import instant, key_reply
from tests.limits.lab import Lab as Limiters
from tests.limits.lab import group, key, member, reserve, row, usd
from tests.relay.lab import AUTH, DATE, KEY, NOW, Lab, answer, request

ASK = b"GET /flowstack/v1/key HTTP/1.1"
PROVIDER = b"Authorization: Bearer sk-provider"


def told(lab: Lab, *fields: bytes, line: bytes = ASK, auth: bytes | None = AUTH) -> dict[str, Any]:
    got = answer(lab.ask(line, *fields, auth=auth))
    assert got.status == 200, got.body
    value: dict[str, Any] = json.loads(got.body)
    return value


def test_a_key_s_holder_is_told_what_it_may_do_and_nothing_is_asked_of_an_upstream() -> None:
    lab = Lab()
    lab.keys.add(
        KEY, owner="alice@example.com", group="search", models=("gpt-4o*",), endpoints=("/v1/models*",),
        upstreams=("openai",), allow_ip=(ip_network("0.0.0.0/0"), ip_network("::/0")), expires_at=NOW + 86_400,
    )  # fmt: skip
    got = answer(lab.ask(ASK))
    assert got.status == 200
    assert json.loads(got.body) == {
        "object": "flowstack.key", "id": "k1", "owner": "alice@example.com", "group": "search", "disabled": False,
        "expires_at": "2023-11-15T22:13:20Z", "models": ["gpt-4o*"], "endpoints": ["/v1/models*"],
        "upstreams": ["openai"], "allow_ip": ["0.0.0.0/0", "::/0"], "limits": [], "budgets": [],
    }  # fmt: skip
    assert got["content-type"] == b"application/json"
    assert got["content-length"] == b"%d" % len(got.body)
    assert got["cache-control"] == b"no-store"
    assert got["date"] == DATE
    assert got["flowstack-request-id"] is not None
    assert got["flowstack-error"] is None
    assert lab.upstreams == []
    assert lab.limiter.reserved == 0
    assert lab.unauthenticated == []


def test_what_is_not_restricted_is_null() -> None:
    value = told(Lab())
    assert {name for name, held in value.items() if held is None} == {
        "group", "expires_at", "models", "endpoints", "upstreams", "allow_ip",
    }  # fmt: skip


def test_it_ends_in_one_row_without_an_upstream_or_any_cost() -> None:
    lab = Lab()
    lab.keys.add(KEY, owner="alice", group="search")
    told(lab, b"Flowstack-Attribute-Team: a", line=b"GET /flowstack/v1/key?x=1 HTTP/1.1")
    found = lab.row
    assert (found["key_id"], found["owner"], found["group"], found["attributes"]) == (
        "k1", "alice", "search", {"team": "a"},
    )  # fmt: skip
    assert (found["method"], found["path"], found["status"], found["error_code"], found["end"]) == (
        "GET", "/flowstack/v1/key", 200, None, "complete",
    )  # fmt: skip
    assert (found["upstream"], found["attempts"], found["cost_usd"], found["usage_source"]) == (None, 0, None, "none")


def test_each_row_names_its_key_s_group() -> None:
    lab = Lab()
    lab.keys.add(KEY, group="search")
    client = lab.ask()
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert answer(client).status == 200
    assert lab.row["group"] == "search"


def test_head_has_the_same_fields_and_no_body() -> None:
    lab = Lab()
    got, head = answer(lab.ask(ASK)), answer(lab.ask(b"HEAD /flowstack/v1/key HTTP/1.1"))
    assert (head.status, head.body) == (200, b"")
    assert head["content-length"] == got["content-length"]
    assert lab.rows[1]["bytes_out"] == 0


@pytest.mark.parametrize("fields", [[], [PROVIDER], [b"api-key: sk-x"]])
def test_it_is_told_with_a_provider_s_key_beside_it_or_without(fields: list[bytes]) -> None:
    assert told(Lab(), *fields)["id"] == "k1"


def test_where_the_operator_holds_the_provider_s_key_the_one_key_may_stand_in_authorization() -> None:
    lab = Lab()
    lab.relay.provider_keys = {"openai": b"sk-of-the-operator"}
    assert told(lab, b"Authorization: Bearer " + KEY, auth=None)["id"] == "k1"


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ([], 401, "missing_flowstack_key"),
        ([b"Flowstack-Auth: Bearer nobody"], 401, "invalid_flowstack_key"),
        ([b"Authorization: Bearer " + KEY], 401, "misplaced_key"),
        ([AUTH, b"Authorization: Bearer " + KEY], 401, "misplaced_key"),
        ([AUTH, AUTH], 400, "malformed_request"),
        ([b"Flowstack-Auth: Bearer gone"], 401, "flowstack_key_expired"),
        ([b"Flowstack-Auth: Bearer off"], 401, "flowstack_key_disabled"),
    ],
)
@pytest.mark.parametrize("path", [b"/flowstack/v1/key", b"/flowstack/nothing"])
def test_who_shows_no_good_key_is_told_as_everywhere_and_no_more(
    fields: list[bytes], status: int, code: str, path: bytes
) -> None:
    lab = Lab()
    lab.keys.add(b"gone", expires_at=NOW - 1)
    lab.keys.add(b"off", disabled=True)
    got = answer(lab.ask(b"GET " + path + b" HTTP/1.1", *fields, auth=None))
    assert (got.status, got.error["code"]) == (status, code)
    assert (lab.rows, lab.unauthenticated) == ([], [code])


@pytest.mark.parametrize(
    ("line", "status", "code", "allow"),
    [
        (b"POST /flowstack/v1/key HTTP/1.1", 405, "method_not_allowed", b"GET, HEAD"),
        (b"DELETE /flowstack/v1/key HTTP/1.1", 405, "method_not_allowed", b"GET, HEAD"),
        (b"OPTIONS /flowstack/v1/key HTTP/1.1", 405, "method_not_allowed", b"GET, HEAD"),
        (b"GET /flowstack/v1/key/ HTTP/1.1", 404, "unknown_path", None),
        (b"GET /flowstack/v1/keys HTTP/1.1", 404, "unknown_path", None),
        (b"GET /flowstack/ HTTP/1.1", 404, "unknown_path", None),
        (b"GET /flowstack/../v1/models HTTP/1.1", 404, "unknown_path", None),
        (b"POST /flowstack/v1/chat/completions HTTP/1.1", 404, "unknown_path", None),
    ],
)
@pytest.mark.parametrize("prefix", ["/v1/", "/"])
def test_all_else_below_flowstack_is_refused_and_never_relayed_whatever_is_served(
    line: bytes, status: int, code: str, allow: bytes | None, prefix: str
) -> None:
    lab = Lab(prefixes=(Prefix(path=prefix),))
    got = answer(lab.ask(line))
    assert (got.status, got.error["code"], got["allow"]) == (status, code, allow)
    assert lab.upstreams == []
    assert (lab.row["status"], lab.row["end"]) == (status, "refused")


def test_where_every_path_is_served_flowstack_s_own_wins() -> None:
    lab = Lab(prefixes=(Prefix(path="/"),))
    assert told(lab)["id"] == "k1"
    lab.ask(b"GET /flowstack HTTP/1.1")
    lab.ask(b"GET /v1/models HTTP/1.1")
    assert len(lab.upstreams) == 2


def test_a_client_that_writes_the_whole_url_is_told_too() -> None:
    lab = Lab(upstreams=(Upstream(base_url="http://upstream.example/v1", hosts=("flowstack.example",)),))
    assert told(lab, line=b"GET http://flowstack.example/flowstack/v1/key HTTP/1.1")["id"] == "k1"
    got = answer(lab.ask(b"GET http://another.example/flowstack/v1/key HTTP/1.1"))
    assert got.error["code"] == "malformed_request"


def test_a_key_is_told_from_where_it_may_be_used_only() -> None:
    lab = Lab()
    lab.keys.add(KEY, allow_ip=(ip_network("198.51.100.0/24"),))
    got = answer(lab.ask(ASK))
    assert (got.status, got.error["code"]) == (403, "address_not_allowed")


def test_a_key_s_endpoints_models_and_upstreams_do_not_close_it() -> None:
    lab = Lab()
    lab.keys.add(KEY, endpoints=("/v1/chat/completions",), models=("a",), upstreams=("none",))
    assert told(lab)["endpoints"] == ["/v1/chat/completions"]


def test_a_page_of_an_allowed_origin_may_ask() -> None:
    lab = Lab(cors_origins=("https://app.example",))
    preflight = answer(
        lab.ask(
            b"OPTIONS /flowstack/v1/key HTTP/1.1", b"Origin: https://app.example",
            b"Access-Control-Request-Method: GET", b"Access-Control-Request-Headers: flowstack-auth", auth=None,
        )
    )  # fmt: skip
    assert preflight.status == 204
    got = answer(lab.ask(ASK, b"Origin: https://app.example"))
    assert (got.status, got["access-control-allow-origin"]) == (200, b"https://app.example")


def test_the_answer_has_the_figures_that_others_have() -> None:
    lab = Lab()
    lab.limiter.figures = ((b"Flowstack-RateLimit-Limit-Requests", b"5"),)
    assert answer(lab.ask(ASK))["flowstack-ratelimit-limit-requests"] == b"5"


def test_requests_of_both_kinds_pass_over_one_connection() -> None:
    lab = Lab()
    client = lab.client()
    for _ in range(2):
        client.send(request(ASK))
        assert answer(client).status == 200
        client.send(request())
        lab.upstreams[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert answer(client).body == b"ok"
    assert [found["path"] for found in lab.rows] == ["/flowstack/v1/key", "/v1/models"] * 2


def test_a_body_that_nobody_asked_for_does_no_harm() -> None:
    lab = Lab()
    client = lab.client()
    client.send(request(ASK, b"Content-Length: 2", body=b"hi"))
    assert answer(client).status == 200
    client.send(request())
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert answer(client).body == b"ok"
    slow = lab.ask(ASK, b"Transfer-Encoding: chunked")  # none of which has come
    assert answer(slow).status == 200
    assert [found["path"] for found in lab.rows] == ["/flowstack/v1/key", "/v1/models", "/flowstack/v1/key"]


def shown(limiters: Limiters, of: Any, worker: int = 0) -> dict[str, Any]:
    standings = limiters.limiters[worker].standings(of)
    value: dict[str, Any] = json.loads(key_reply(of, standings, limiters.wall.now).body)
    return value


def test_each_limit_is_told_with_what_is_used_and_left_and_when_it_resets() -> None:
    limiters = Limiters(2)
    shared = group("search", budget=usd("500"), rpm=6000)
    asks = member("k1", shared, rpm=600, tpm=1000, max_parallel=4, budget=usd("50", "day"))
    reserve(limiters.limiters[0], member("another", shared, rpm=9), tokens=5, cost=2.5)
    reserve(limiters.limiters[1], asks, tokens=100, cost=0.125)
    value = shown(limiters, asks)
    assert value["limits"] == [
        {"name": "rpm", "of": "key", "upstream": None, "limit": 600, "used": 1, "remaining": 599,
         "reset_at": "2026-05-28T20:27:42Z"},
        {"name": "tpm", "of": "key", "upstream": None, "limit": 1000, "used": 100, "remaining": 900,
         "reset_at": "2026-05-28T20:27:42Z"},
        {"name": "max_parallel", "of": "key", "upstream": None, "limit": 4, "used": 1, "remaining": 3,
         "reset_at": None},
        {"name": "rpm", "of": "group", "upstream": None, "limit": 6000, "used": 2, "remaining": 5998,
         "reset_at": "2026-05-28T20:27:42Z"},
    ]  # fmt: skip
    assert value["budgets"] == [
        {"of": "key", "upstream": None, "period": "day", "limit_usd": 50.0, "spent_usd": 0.125, "left_usd": 49.875,
         "reset_at": "2026-05-29T00:00:00Z"},
        {"of": "group", "upstream": None, "period": "month", "limit_usd": 500.0, "spent_usd": 2.625,
         "left_usd": 497.375, "reset_at": "2026-06-01T00:00:00Z"},
    ]  # fmt: skip
    assert "another" not in json.dumps(value)


def test_a_key_whose_limits_are_used_up_is_told_so_and_asking_takes_nothing() -> None:
    limiters = Limiters(2)
    asks = member("k1", group(rpm=1, budget=usd("1", "total")), max_parallel=1)
    reserve(limiters.limiters[0], asks, tokens=1, cost=1.0)
    for worker in (0, 1, 0, 1):
        value = shown(limiters, asks, worker)
        assert [limit["remaining"] for limit in value["limits"]] == [0, 0]
        assert [(budget["left_usd"], budget["reset_at"]) for budget in value["budgets"]] == [(0.0, None)]
    limiters.go_on(63)
    assert [limit["used"] for limit in shown(limiters, asks)["limits"]] == [1, 0]  # under way, and begun lately


def test_a_key_that_never_asked_for_anything_is_told_its_limits_and_no_place_is_made_for_it() -> None:
    limiters = Limiters(2)
    value = shown(limiters, member("k1", group(rpm=5), budget=usd("1")))
    assert [(limit["used"], limit["reset_at"]) for limit in value["limits"]] == [(0, None)]
    assert limiters.counters.count == 0


def test_limits_of_the_configuration_are_told_and_those_of_upstreams_that_the_key_may_reach() -> None:
    upstreams = (
        Upstream("a", "https://a.example/v1", default=True, limits=Limits(rpm=3)),
        Upstream("b", "https://b.example/v1", limits=Limits(rpm=4)),
    )
    limiters = Limiters(1, Settings(upstreams=upstreams, limits=Limits(tpm=100)))
    reserve(limiters.limiters[0], key("k1"), "b")
    told_of = shown(limiters, key("k1"))["limits"]
    assert [(one["name"], one["upstream"], one["limit"], one["used"]) for one in told_of] == [
        ("rpm", "a", 3, 0), ("tpm", None, 100, 0), ("rpm", "b", 4, 1),
    ]  # fmt: skip
    reaches = shown(limiters, key("k1", upstreams=("b",)))["limits"]
    assert [one["upstream"] for one in reaches] == [None, "b"]


def test_a_group_that_is_at_its_end_is_told_while_its_keys_are_refused() -> None:
    limiters = Limiters(1)
    asks = member("k1", group(budget=usd("1")))
    held = reserve(limiters.limiters[0], asks, tokens=1, cost=1.0)
    with pytest.raises(FlowstackError):
        reserve(limiters.limiters[0], asks, tokens=1, cost=0.5)
    limiters.limiters[0].settle(held, row(usage_source="upstream", total_tokens=1, cost_usd=1.75))
    (budget,) = shown(limiters, asks)["budgets"]
    assert (budget["spent_usd"], budget["left_usd"]) == (1.75, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (1_798_761_600.0, "2027-01-01T00:00:00Z"),
        (1_798_761_599.2, "2027-01-01T00:00:00Z"),
        (1_798_761_600.0000001, "2027-01-01T00:00:00Z"),
        (253_402_300_800.0, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_whole_seconds_of_utc(seconds: float, text: str) -> None:
    assert instant(seconds) == text


def test_a_standing_of_a_budget_has_its_period() -> None:
    standing = Standing("budget", "@g", "", 10**9, 0, None, Budget(Decimal(1), "total"), None)
    value = json.loads(key_reply(key("k1"), [standing], NOW).body)
    assert value["budgets"] == [
        {"of": "group", "upstream": None, "period": "total", "limit_usd": 1.0, "spent_usd": 0.0, "left_usd": 1.0,
         "reset_at": None}
    ]  # fmt: skip


class Holder:
    """What stands behind the page of a key's holder."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answer: Deferred[Answered] = Deferred()

    def page(self, path: bytes, accepted: Any) -> Any:
        if path not in (b"/flowstack/", b"/flowstack/static/h/a.js"):
            return None
        return [(b"Content-Type", b"text/html"), (b"Content-Length", b"4"), (b"X-Coding", b",".join(accepted))], b"page"

    def usage(self, key_id: str, query: bytes) -> Deferred[Answered]:
        self.asked.append((key_id, query))
        if query == b"refuse":
            raise Overloaded("Try again.")
        return self.answer


USAGE = b"GET /flowstack/v1/usage?since=7d&by=day HTTP/1.1"


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def lab(holder: Holder) -> Lab:
    return Lab(real=lambda lab: {"holder": holder})


def test_a_key_s_holder_is_told_what_it_used_once_that_is_known(lab: Lab, holder: Holder) -> None:
    client = lab.ask(USAGE)
    assert holder.asked == [("k1", b"since=7d&by=day")]
    assert not client.got
    holder.answer.callback(Answered(b'{"total":{}}\n'))
    lab.turns.settle()
    got = answer(client)
    assert (got.status, got.body, got["content-type"]) == (200, b'{"total":{}}\n', b"application/json")
    assert (got["cache-control"], got["date"]) == (b"no-store", DATE)
    assert (lab.row["path"], lab.row["status"], lab.row["end"], lab.row["upstream"]) == (
        "/flowstack/v1/usage", 200, "complete", None,
    )  # fmt: skip


def test_one_whose_figures_are_not_told_is_told_why_and_one_who_left_nothing(lab: Lab, holder: Holder) -> None:
    got = answer(lab.ask(b"GET /flowstack/v1/usage?refuse HTTP/1.1"))
    assert (got.status, got.error["code"]) == (503, "overloaded")
    client = lab.ask(USAGE)
    holder.answer.errback(Overloaded("Try again."))
    lab.turns.settle()
    assert answer(client).error["code"] == "overloaded"
    holder.answer = Deferred()
    client = lab.ask(USAGE)
    client.hang_up()
    lab.turns.settle()
    holder.answer.callback(Answered(b"{}"))
    lab.turns.settle()
    assert lab.rows[-1]["end"] == "client_gone"
    assert len(lab.rows) == 3


@pytest.mark.parametrize("auth", [AUTH, None])
@pytest.mark.parametrize("path", [b"/flowstack/", b"/flowstack/?x=1", b"/flowstack/static/h/a.js"])
def test_the_page_needs_no_key_and_is_not_counted_without_one(lab: Lab, path: bytes, auth: bytes | None) -> None:
    got = answer(lab.ask(b"GET " + path + b" HTTP/1.1", b"Accept-Encoding: br", auth=auth))
    assert (got.status, got.body, got["x-coding"]) == (200, b"page", b"br")
    head = answer(lab.ask(b"HEAD " + path + b" HTTP/1.1", auth=auth))
    assert (head.status, head.body) == (200, b"")
    assert lab.unauthenticated == []
    assert len(lab.rows) == (0 if auth is None else 2)
    assert lab.upstreams == []


@pytest.mark.parametrize(
    ("line", "fields", "code"),
    [
        (b"POST /flowstack/ HTTP/1.1", [], "missing_flowstack_key"),
        (b"GET /flowstack/nothing HTTP/1.1", [], "missing_flowstack_key"),
        (b"GET /v1/models HTTP/1.1", [], "missing_flowstack_key"),
        (USAGE, [], "missing_flowstack_key"),
        (b"GET /flowstack/ HTTP/1.1", [b"Flowstack-Auth: Bearer nobody"], "invalid_flowstack_key"),
    ],
)
def test_nothing_else_is_shown_without_a_key(
    lab: Lab, holder: Holder, line: bytes, fields: list[bytes], code: str
) -> None:
    got = answer(lab.ask(line, *fields, auth=None))
    assert (got.status, got.error["code"]) == (401, code)
    assert holder.asked == []
