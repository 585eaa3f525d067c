"""Work whose usage is known late: the key that began it is charged, once, whoever sees it finished, and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowstack.errors import BudgetExceeded
from flowstack.ledger.late import WAIT_SECONDS
from flowstack.ledger.open_work import OpenWork, give_back
from tests.harness import Transport
from tests.relay.lab import AUTH, KEY, Lab
from tests.relay.test_accounting import NOTHING, STREAM_HEAD, ask, chunked, event, reply, tokens

OTHER = b"another-key-of-somebody-else-that-is-long"
OTHER_AUTH = b"Flowstack-Auth: Bearer " + OTHER

USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 400},
    "output_tokens": 200,
    "output_tokens_details": {"reasoning_tokens": 50},
    "total_tokens": 1200,
}
FIGURES = (1000, 400, 200, 50, 1200, "upstream")
ZEROS = (0, None, 0, None, 0, "upstream")
COST = (600 * 1.25 + 400 * 0.125 + 200 * 10) / 1e6  # gpt-5
MESSAGE_USAGE = {
    "input_tokens": 900,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 0,
    "output_tokens": 200,
    "service_tier": "batch",
}


NOW = 1_795_000_000.0
"""Since when the table has prices for batches."""


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.relay.lab.NOW", NOW)


def background(status: str, usage: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "background": True, "model": "gpt-5-2025-08-07", "status": status,
        "service_tier": "default", "output": [], "usage": usage, **more,
    }  # fmt: skip


def batch(status: str, usage: Any = None, name: str = "batch_1", **more: Any) -> dict[str, Any]:
    return {
        "id": name, "object": "batch", "model": "gpt-5-2025-08-07", "status": status, "usage": usage,
        "request_counts": {"total": 3, "completed": 3, "failed": 0}, **more,
    }  # fmt: skip


def message_batch(status: str = "ended", succeeded: int = 2, **more: Any) -> dict[str, Any]:
    counts = {"processing": 0, "succeeded": succeeded, "errored": 1, "canceled": 0, "expired": 0}
    return {
        "id": "msgbatch_1", "type": "message_batch", "processing_status": status, "request_counts": counts, **more,
    }  # fmt: skip


def result(usage: Any = MESSAGE_USAGE, model: str = "claude-opus-4-5-20251101", text: str = "hi") -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    message = {"id": "msg_1", "type": "message", "model": model, "content": content, "usage": usage}
    return {"custom_id": "a", "result": {"type": "succeeded", "message": message}}


BAD = {"custom_id": "b", "result": {"type": "errored", "error": {"type": "error"}}}


def lines(*results: dict[str, Any]) -> bytes:
    body = b"".join(json.dumps(one).encode() + b"\n" for one in results)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


BEGINNINGS = {
    "response": (b"responses", background("queued"), {"model": "gpt-5", "input": "hi", "background": True}),
    "batch": (b"batches", batch("validating"), {"input_file_id": "file-1", "endpoint": "/v1/responses"}),
    "message_batch": (b"messages/batches", message_batch("in_progress", 0), {"requests": []}),
}


def made(open_work: OpenWork | None = None) -> Lab:
    lab = Lab(open_work=open_work)
    lab.keys.add(OTHER, id="k2", owner="bob@example.com")
    return lab


def last(lab: Lab) -> Transport:
    """The connection on which the upstream was asked last."""
    return lab.upstreams[-1]


def begin(lab: Lab, kind: str) -> dict[str, Any]:
    """Have the first key begin work; give its row."""
    path, document, body = BEGINNINGS[kind]
    ask(lab, json.dumps(body).encode(), b"POST /v1/%b HTTP/1.1" % path, b"Flowstack-Attribute-Team: search")
    last(lab).send(reply(document))
    row = lab.rows[-1]
    assert tokens(row) == NOTHING
    assert row["cost_usd"] is None
    return row


def look(
    lab: Lab, path: bytes, answered: Any, method: bytes = b"GET", auth: bytes = OTHER_AUTH
) -> list[dict[str, Any]]:
    """Have the other key ask; give the rows that came of it, of which the last is its own, without figures."""
    before = len(lab.rows)
    lab.ask(b"%b /v1/%b HTTP/1.1" % (method, path), b"Content-Length: 0", auth=auth)
    last(lab).send(answered if type(answered) is bytes else reply(answered))
    *settled, own = lab.rows[before:]
    assert (tokens(own), own["cost_usd"]) == (NOTHING, None)
    assert own["path"] == "/v1/" + path.decode().partition("?")[0]
    return settled


WAYS = [
    ("response", b"responses/resp_1", b"GET", background("completed", USAGE)),
    ("response", b"responses/resp_1/cancel", b"POST", background("cancelled", USAGE)),
    ("batch", b"batches/batch_1", b"GET", batch("completed", USAGE)),
    ("batch", b"batches/batch_1/cancel", b"POST", batch("cancelled", USAGE)),
    ("batch", b"batches?limit=100", b"GET", {"object": "list", "data": [batch("completed", USAGE)], "has_more": False}),
    ("message_batch", b"messages/batches/msgbatch_1/results", b"GET", lines(result(), BAD)),
]


@pytest.mark.parametrize(("kind", "path", "method", "answered"), WAYS)
def test_who_began_it_is_charged_once_whoever_sees_it_finished_and_how(
    kind: str, path: bytes, method: bytes, answered: Any
) -> None:
    lab = made()
    begun = begin(lab, kind)
    assert lab.limiter.settled_later == []
    (row,) = look(lab, path, answered, method)
    assert tokens(row)[4:] == ((1200, "upstream") if kind != "message_batch" else (None, "upstream"))
    assert (row["prompt_tokens"], row["completion_tokens"]) == (1000, 200)
    for name in ("key_id", "owner", "attributes", "method", "path", "model_requested", "upstream"):
        assert row[name] == begun[name], name
    assert (row["key_id"], row["attributes"]) == ("k1", {"team": "search"})
    assert (row["parent_request_id"], row["requests"], row["end"]) == (begun["request_id"], 0, "complete")
    assert row["request_id"] not in {other["request_id"] for other in lab.rows if other is not row}
    assert row["cost_usd"] > 0
    assert lab.limiter.settled_later == [(1, row)]
    assert look(lab, path, answered, method) == []
    assert look(lab, path, answered, method, AUTH) == []
    assert len(lab.limiter.settled_later) == 1
    assert lab.limiter.open == set()


def test_the_row_is_written_before_the_looker_has_the_end_and_is_counted_once() -> None:
    lab = made()
    begin(lab, "response")
    client = lab.ask(b"GET /v1/responses/resp_1 HTTP/1.1", auth=OTHER_AUTH)
    seen: list[bytes] = []
    lab.ledger.watch = lambda: seen.append(bytes(client.got))
    last(lab).send(reply(background("completed", USAGE)))
    assert seen == [b"", b""]
    assert client.got
    _, row, own = lab.rows
    assert tokens(row) == FIGURES
    assert row["cost_usd"] == pytest.approx(COST)
    assert (row["model"], row["service_tier"]) == ("gpt-5-2025-08-07", "default")
    assert lab.observed[1:] == [(row["request_id"], "responses"), (own["request_id"], "responses.retrieve")]


def test_a_batch_costs_what_batches_cost() -> None:
    lab = made()
    begin(lab, "batch")
    (row,) = look(lab, b"batches/batch_1", batch("completed", USAGE))
    assert row["cost_usd"] == pytest.approx(COST / 2, rel=0.03)  # some cached rates are rounded up


ENDS: list[tuple[str, str, bytes, Any, Any]] = [
    ("completed", "response", b"responses/resp_1", background("completed", USAGE), FIGURES),
    ("incomplete", "response", b"responses/resp_1", background("incomplete", USAGE), FIGURES),
    ("failed after output", "response", b"responses/resp_1", background("failed", USAGE, output=[{}]), FIGURES),
    ("failed before output", "response", b"responses/resp_1", background("failed"), ZEROS),
    ("failed, unknown", "response", b"responses/resp_1", background("failed", output=[{"type": "message"}]), None),
    ("failed, long", "response", b"responses/resp_1", background("failed", instructions="i" * 20_000), ZEROS),
    ("cancelled with usage", "response", b"responses/resp_1", background("cancelled", USAGE), FIGURES),
    ("cancelled without", "response", b"responses/resp_1", background("cancelled"), None),
    ("under way", "response", b"responses/resp_1", background("in_progress", USAGE), None),
    ("no background", "response", b"responses/resp_1", background("completed", USAGE, background=False), None),
    ("another", "response", b"responses/resp_2", background("completed", USAGE, id="resp_2"), None),
    ("cut", "response", b"responses/resp_1", json.dumps(background("completed", USAGE)).encode()[:-30], None),
    ("long", "response", b"responses/resp_1", background("completed", USAGE, text="t" * 100_000), FIGURES),
    ("completed", "batch", b"batches/batch_1", batch("completed", USAGE), FIGURES),
    ("completed, of old", "batch", b"batches/batch_1", batch("completed"), None),
    ("expired", "batch", b"batches/batch_1", batch("expired", USAGE), FIGURES),
    ("expired, none done", "batch", b"batches/batch_1",
     batch("expired", request_counts={"total": 3, "completed": 0, "failed": 0}), ZEROS),
    ("cancelled, none done", "batch", b"batches/batch_1",
     batch("cancelled", request_counts={"total": 3, "completed": 0, "failed": 1}), ZEROS),
    ("failed", "batch", b"batches/batch_1", batch("failed"), ZEROS),
    ("finalizing", "batch", b"batches/batch_1", batch("finalizing", USAGE), None),
    ("cancelling", "batch", b"batches/batch_1", batch("cancelling", USAGE), None),
    ("ended", "message_batch", b"messages/batches/msgbatch_1", message_batch(), None),
    ("ended, none succeeded", "message_batch", b"messages/batches/msgbatch_1", message_batch("ended", 0), ZEROS),
    ("listed, none succeeded", "message_batch", b"messages/batches", {"data": [message_batch("ended", 0)]}, ZEROS),
    ("canceling", "message_batch", b"messages/batches/msgbatch_1", message_batch("canceling", 0), None),
    ("results of none", "message_batch", b"messages/batches/msgbatch_1/results", lines(BAD), ZEROS),
    ("results", "message_batch", b"messages/batches/msgbatch_1/results", lines(result(), BAD, result()),
     (2000, 200, 400, None, None, "upstream")),
    ("long results", "message_batch", b"messages/batches/msgbatch_1/results",
     lines(result(text='"{[\\' * 10_000), result()), (2000, 200, 400, None, None, "upstream")),
    ("results, one without usage", "message_batch", b"messages/batches/msgbatch_1/results",
     lines(result(), result(None)), None),
    ("no results", "message_batch", b"messages/batches/msgbatch_1/results", lines(), None),
    ("another's results", "message_batch", b"messages/batches/msgbatch_2/results", lines(result()), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path", "answered", "expected"), [case[1:] for case in ENDS], ids=[f"{c[1]}: {c[0]}" for c in ENDS]
)
def test_what_each_end_is_charged(kind: str, path: bytes, answered: Any, expected: Any) -> None:
    lab = made()
    begin(lab, kind)
    if type(answered) is bytes and not answered.startswith(b"HTTP"):
        answered = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(answered), answered,
        )  # fmt: skip
    rows = look(lab, path, answered)
    assert [tokens(row) for row in rows] == ([] if expected is None else [expected])
    assert len(lab.limiter.settled_later) == len(rows)
    assert len(lab.open_work.open()) == 1 - len(rows), "what is not known yet is still waited for"
    if expected == ZEROS:
        assert rows[0]["cost_usd"] == 0.0


def test_results_that_broke_off_settle_nothing_and_whole_ones_do() -> None:
    lab = made()
    begin(lab, "message_batch")
    whole = lines(result(), result())
    lab.ask(b"GET /v1/messages/batches/msgbatch_1/results HTTP/1.1")
    last(lab).send(whole[: -len(lines(result()).partition(b"\r\n\r\n")[2])])  # ends with a line
    last(lab).hang_up()
    assert lab.rows[-1]["end"] == "upstream_lost"
    assert lab.limiter.settled_later == []
    (row,) = look(lab, b"messages/batches/msgbatch_1/results", whole)
    assert row["prompt_tokens"] == 2000


def test_an_answer_that_broke_off_settles_nothing_as_its_usage_may_have_been_to_come() -> None:
    lab = made()
    begin(lab, "response")
    whole = reply(background("failed", USAGE))
    lab.ask(b"GET /v1/responses/resp_1 HTTP/1.1")
    last(lab).send(whole[: whole.index(b'"usage"')])
    last(lab).hang_up()
    assert lab.limiter.settled_later == []
    (row,) = look(lab, b"responses/resp_1", whole)
    assert tokens(row) == FIGURES


def test_who_leaves_a_stream_behind_its_last_event_has_it_settled() -> None:
    lab = made()
    begin(lab, "response")
    client = lab.ask(b"GET /v1/responses/resp_1?stream=true HTTP/1.1", auth=OTHER_AUTH)
    last(lab).send(STREAM_HEAD + chunked(stream_event("completed", status="completed", usage=USAGE)))
    client.hang_up()
    _, row, own = lab.rows
    assert (tokens(row), own["end"]) == (FIGURES, "client_gone")


def test_a_message_batch_of_several_models_has_a_row_for_each_and_one_settlement() -> None:
    lab = made()
    begin(lab, "message_batch")
    answered = lines(result(), result(model="claude-haiku-4-5-20251001"), result(), result({**MESSAGE_USAGE}))
    rows = look(lab, b"messages/batches/msgbatch_1/results", answered)
    assert [(row["model"], row["prompt_tokens"]) for row in rows] == [
        ("claude-haiku-4-5-20251001", 1000), ("claude-opus-4-5-20251101", 3000),
    ]  # fmt: skip
    # Half of 5 and 25, and of 1 and 5, dollars for a million; reads cost a tenth.
    assert [row["cost_usd"] for row in rows] == pytest.approx(
        [(900 * 0.5 + 100 * 0.05 + 200 * 2.5) / 1e6, 3 * (900 * 2.5 + 100 * 0.25 + 200 * 12.5) / 1e6]
    )
    ((_, charged),) = lab.limiter.settled_later
    assert charged["prompt_tokens"] == 4000
    assert charged["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in rows))
    assert len({row["request_id"] for row in rows}) == 2


def test_many_short_requests_of_a_batch_do_not_cost_what_one_long_one_does() -> None:
    lab = made()
    begin(lab, "message_batch")
    usage = {**MESSAGE_USAGE, "input_tokens": 150_000, "cache_read_input_tokens": 0}
    long = {**usage, "input_tokens": 250_000}
    model = "claude-sonnet-4-5-20250929"
    answered = lines(*(result(one, model) for one in (usage, long, usage)))
    rows = look(lab, b"messages/batches/msgbatch_1/results", answered)
    # Above 200,000 tokens of input a request costs 6 and 22.5 dollars for a million and not 3 and 15; batches half.
    assert sorted(row["cost_usd"] for row in rows) == pytest.approx(
        [2 * (150_000 * 1.5 + 200 * 7.5) / 1e6, (250_000 * 3 + 200 * 11.25) / 1e6]
    )


def test_a_list_settles_each_of_its_batches_and_only_those_that_were_begun_here() -> None:
    lab = made()
    for number in range(3):
        ask(lab, b"{}", b"POST /v1/batches HTTP/1.1")
        last(lab).send(reply(batch("validating", name=f"batch_{number}")))
    data = [batch("completed", USAGE, f"batch_{number}", metadata={"m": "x" * 9000}) for number in range(-20, 100)]
    data[21] = batch("in_progress", USAGE, "batch_1")
    rows = look(lab, b"batches", {"object": "list", "data": data, "has_more": True})
    assert [row["total_tokens"] for row in rows] == [1200, 1200]
    assert [one.id for one in lab.open_work.open()] == ["batch_1"]
    assert [number for number, _ in lab.limiter.settled_later] == [1, 3]


def stream_event(kind: str, **response: Any) -> bytes:
    return event({"type": f"response.{kind}", "response": background(**response)})


BACKGROUND_STREAM = json.dumps({"model": "gpt-5", "input": "hi", "background": True, "stream": True}).encode()


@pytest.mark.parametrize("left", ["client_gone", "upstream_lost"])
def test_a_background_stream_that_is_left_or_cut_is_settled_when_it_is_seen_completed(left: str) -> None:
    lab = made()
    client = ask(lab, BACKGROUND_STREAM, b"POST /v1/responses HTTP/1.1")
    last(lab).send(STREAM_HEAD + chunked(stream_event("created", status="queued")))
    if left == "client_gone":
        client.hang_up()
    else:
        last(lab).hang_up()
    assert (lab.row["end"], tokens(lab.row)) == (left, NOTHING)
    stream = STREAM_HEAD + chunked(stream_event("completed", status="completed", usage=USAGE)) + b"0\r\n\r\n"
    (row,) = look(lab, b"responses/resp_1?stream=true&starting_after=1", stream)
    assert tokens(row) == FIGURES
    assert (row["key_id"], row["parent_request_id"]) == ("k1", lab.rows[0]["request_id"])


def test_a_background_stream_that_came_to_its_end_is_its_own_request_s() -> None:
    lab = made()
    ask(lab, BACKGROUND_STREAM, b"POST /v1/responses HTTP/1.1")
    last(lab).send(STREAM_HEAD + chunked(stream_event("created", status="queued")))
    last(lab).send(chunked(stream_event("completed", status="completed", usage=USAGE)) + b"0\r\n\r\n")
    assert tokens(lab.row) == FIGURES
    assert lab.open_work.open() == []
    assert look(lab, b"responses/resp_1", background("completed", USAGE)) == []


def test_a_foreground_call_waits_for_nothing_and_a_look_at_it_is_charged_to_nobody() -> None:
    lab = made()
    body = json.dumps({"model": "gpt-5", "input": "hi"}).encode()
    ask(lab, body, b"POST /v1/responses HTTP/1.1")
    last(lab).send(reply(background("completed", USAGE, background=False)))
    assert tokens(lab.row) == FIGURES
    assert look(lab, b"responses/resp_1", background("completed", USAGE, background=False)) == []
    assert look(lab, b"responses/resp_9", background("completed", USAGE, id="resp_9")) == []
    assert lab.limiter.settled_later == []


@pytest.mark.parametrize("status", [b"404 Not Found", b"429 Too Many Requests", b"500 Internal Server Error"])
def test_an_error_is_no_end(status: bytes) -> None:
    lab = made()
    begin(lab, "response")
    assert look(lab, b"responses/resp_1", reply(background("completed", USAGE), status)) == []
    assert len(look(lab, b"responses/resp_1", background("completed", USAGE))) == 1


def test_a_beginning_that_failed_begins_nothing() -> None:
    lab = made()
    ask(lab, b"{}", b"POST /v1/batches HTTP/1.1")
    last(lab).send(reply(batch("validating"), b"400 Bad Request"))
    assert lab.open_work.open() == []


def test_a_batch_takes_the_least_that_there_is_until_its_usage_is_known() -> None:
    lab = made()
    lab.limiter.metered = True
    lab.keys.add(KEY, endpoints=("/v1/batches",))
    ask(lab, b"{}", b"POST /v1/batches HTTP/1.1")
    assert lab.limiter.given[0].claimed == [(0, 1e-9)]
    last(lab).send(reply(batch("validating")))
    assert [one.kept for one in lab.open_work.open()] == [{"number": 1}]


@pytest.mark.parametrize(("kind", "path", "method", "answered"), WAYS)
def test_who_has_used_up_a_limit_may_still_look_as_that_may_give_back_some(
    kind: str, path: bytes, method: bytes, answered: Any
) -> None:
    lab = made()
    begin(lab, kind)
    lab.limiter.fault = BudgetExceeded("used up")
    assert len(look(lab, path, answered, method, AUTH)) >= 1
    ask(lab, b"{}", b"POST /v1/%b HTTP/1.1" % BEGINNINGS[kind][0])
    assert lab.rows[-1]["error_code"] == "flowstack_budget_exceeded"


def test_after_its_time_the_estimate_stays_the_charge() -> None:
    lab = made()
    begin(lab, "response")
    (open_work,) = lab.open_work.open()
    assert open_work.begun == pytest.approx(NOW, abs=1)
    assert open_work.expires == open_work.begun + WAIT_SECONDS
    lab.turns.clock.advance(WAIT_SECONDS + 1)
    assert look(lab, b"responses/resp_1", background("completed", USAGE)) == []
    assert lab.open_work.open() == []


# Several workers, restarts, kills.


def worker(directory: Path, number: int) -> Lab:
    return made(OpenWork(directory, number, lambda: 0.0))


@pytest.mark.parametrize("kind", list(BEGINNINGS))
def test_another_worker_and_one_after_a_restart_settle_what_a_first_began(tmp_path: Path, kind: str) -> None:
    _, path, method, answered = next(way for way in WAYS if way[0] == kind)
    begun = begin(worker(tmp_path / "open", 0), kind)
    second, third = worker(tmp_path / "open", 1), worker(tmp_path / "open", 0)
    (row,) = look(second, path, answered, method)
    assert (row["key_id"], row["parent_request_id"]) == ("k1", begun["request_id"])
    assert second.limiter.settled_later == [(1, row)]
    assert look(third, path, answered, method) == []
    assert third.limiter.settled_later == []
    assert list((tmp_path / "open").iterdir()) == []


class KilledError(Exception):
    """What stands for SIGKILL: nothing is done after it."""


def test_work_is_forgotten_when_its_row_is_in_the_journal_and_settled_after_that(tmp_path: Path) -> None:
    lab = worker(tmp_path / "open", 0)
    begin(lab, "response")
    flushed: list[int] = []
    done = lab.open_work.done

    def forget(begun: Any) -> bool:
        flushed.append(lab.ledger.flushed)
        assert lab.limiter.settled_later == []
        return done(begun)

    lab.open_work.done = forget  # type: ignore[method-assign]
    look(lab, b"responses/resp_1", background("completed", USAGE))
    assert flushed == [2]
    assert len(lab.limiter.settled_later) == 1


def test_killed_before_its_row_was_written_it_is_settled_after_the_restart(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    begin(worker(directory, 0), "response")
    killed = OpenWork(directory, 1, lambda: 0.0)
    assert killed.claim("openai", "response", "resp_1") is not None  # and then nothing more
    survivor = worker(directory, 0)
    assert look(survivor, b"responses/resp_1", background("completed", USAGE)) == [], "somebody has it"
    assert give_back(directory, 1) == 1
    assert len(look(survivor, b"responses/resp_1", background("completed", USAGE))) == 1


def test_killed_after_its_row_was_written_it_has_the_same_row_again_and_one_settlement(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    first = worker(directory, 0)
    begin(first, "response")
    first.open_work.done = lambda begun: False  # type: ignore[method-assign]  # killed before
    (row,) = look(first, b"responses/resp_1", background("completed", USAGE))
    assert first.limiter.settled_later == []
    assert give_back(directory) == 1
    second = worker(directory, 0)
    (again,) = look(second, b"responses/resp_1", background("completed", USAGE))
    assert again["request_id"] == row["request_id"]
    assert len(second.limiter.settled_later) == 1


def test_where_nothing_can_be_written_down_requests_go_on_and_nothing_is_charged_twice(tmp_path: Path) -> None:
    lab = worker(tmp_path / "missing" / "open", 0)
    begin(lab, "response")
    assert lab.open_work.failures == 1
    assert look(lab, b"responses/resp_1", background("completed", USAGE)) == []


@pytest.mark.parametrize(
    ("kind", "path", "model", "price", "cost"),
    [
        ("batch", b"batches/batch_1", "nobody-knows-me", 10.0, 0.012),
        ("batch", b"batches/batch_1", "nobody-knows-me", None, None),
        ("batch", b"batches/batch_1", "gpt-4o-audio-preview", None, 0.0045),
        ("response", b"responses/resp_1", "nobody-knows-me", None, (1000 * 1.25 + 200 * 10) / 1e6),
        ("response", b"responses/resp_1", "nobody-knows-me", 10.0, 0.012),
    ],
)
def test_tokens_whose_price_is_unknown_are_charged_to_who_began_them_by_what_they_cost_at_most(
    kind: str, path: bytes, model: str, price: float | None, cost: float | None
) -> None:
    lab = Lab(default_price=price)
    begin(lab, kind)
    shown = (background if kind == "response" else batch)("completed", USAGE) | {"model": model}
    (row,) = look(lab, path, shown, auth=AUTH)
    ((_, charged),) = lab.limiter.settled_later
    assert charged["cost_usd"] == (None if cost is None else pytest.approx(cost))
    assert (row["cost_usd"], row["unpriced"] is None) == (None, False)
