"""Each error of the contract comes with exactly its status, code, shape and fields, and no key in it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.leaks import assert_kept, leaks, own_words
from tests.e2e.live import read_rows
from tests.e2e.processes import eventually
from tests.e2e.raw import assert_own_error
from tests.e2e.troubles import TROUBLES, Scene, drain, scene

pytestmark = pytest.mark.e2e

OPENAI_KEY = "sk-proj-" + secrets.token_urlsafe(40)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("errors"), OPENAI_KEY) as found:
        yield found
        assert_kept(found)
        log = found.proxy.log_text()
        assert "Traceback" not in log and "Unhandled" not in log, log


@pytest.mark.parametrize("name", TROUBLES)
def test_an_error_has_the_contracts_shape(stage: Scene, name: str) -> None:
    status, code, cause = TROUBLES[name]
    answer = cause(stage)
    assert_own_error(answer, status, code)
    assert (answer.one(b"retry-after") is not None) == (status == 503)
    assert leaks(stage, own_words(answer)) == []


def test_a_timeout_says_which_time_ran_out(stage: Scene) -> None:
    connect = TROUBLES["no connection in time"][2](stage).error["message"]
    head = TROUBLES["no answer in time"][2](stage).error["message"]
    assert "connection" in connect and "0.5 seconds" in connect
    assert "answer" in head and "1.5 seconds" in head


def test_a_misplaced_key_is_told_where_it_belongs(stage: Scene) -> None:
    for name, header in (
        ("a Flowstack key in Authorization", "authorization"),
        ("a Flowstack key in api-key", "api-key"),
        ("a Flowstack key in x-api-key", "x-api-key"),
        ("the provider's key as Flowstack's", "authorization"),
    ):
        message = TROUBLES[name][2](stage).error["message"]
        assert "Flowstack-Auth" in message and header in message.lower(), message


@pytest.mark.parametrize("name", ["no key", "nobody there", "another path", "no HTTP"])
def test_head_is_answered_by_the_same_fields_without_a_body(stage: Scene, name: str) -> None:
    status, code, _ = TROUBLES[name]
    stage.upstream.script = lambda seen: seen.link.offer(b"220 smtp.example ESMTP\r\n\r\n")
    raw = stage.request(
        b"HEAD /v2/x HTTP/1.1" if name == "another path" else b"HEAD /v1/x HTTP/1.1",
        host=b"nowhere.example" if name == "nobody there" else None,
    )
    if name == "no key":
        raw = raw.replace(b"Flowstack-Auth", b"X-Not-Auth")
    assert_own_error(stage.ask(raw, "HEAD"), status, code, head=True)


def test_a_refusal_with_a_valid_key_is_a_line_of_the_request_log_and_a_strangers_is_none(stage: Scene) -> None:
    path = stage.proxy.folder / "requests.jsonl"
    known = TROUBLES["another path"][2](stage).request_id
    strange = TROUBLES["an unknown key"][2](stage).request_id
    last = TROUBLES["half a WebSocket"][2](stage).request_id
    eventually(lambda: any(row["request_id"] == last for row in read_rows(path)), "the last request's line")
    rows = {row["request_id"]: row for row in read_rows(path)}
    assert (rows[known]["status"], rows[known]["error_code"], rows[known]["end"]) == (404, "unknown_path", "refused")
    assert strange not in rows


def test_while_it_drains_new_work_is_refused_and_old_work_finished(tmp_path: Path) -> None:
    with scene(tmp_path, OPENAI_KEY) as stage:
        refused, finished = drain(stage)
        assert_own_error(refused, 503, "draining")
        assert refused.one(b"retry-after") is not None
        assert refused.one(b"connection") == b"close"
        assert (finished.status, finished.body) == (200, b"{}")
        assert stage.proxy.wait() == 0
