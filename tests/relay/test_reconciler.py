"""What Flowstack asks upstreams by itself: about open work alone, not too often, with the operator's key."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail, succeed

from flowstack.ledger.late import Begun
from flowstack.relay.reconciler import A_DAY, AT_ONCE, LONGEST_WAIT, Asked, Reconciler
from tests.ledger.samples import told
from tests.relay.lab import Lab
from tests.relay.test_accounting import reply, tokens
from tests.relay.test_late import (
    FIGURES,
    NOW,
    USAGE,
    ZEROS,
    background,
    batch,
    begin,
    lines,
    made,
    message_batch,
    result,
)

EVERY = 60.0
SECRET = b"sk-operators-own-key"


class House:
    """A lab whose reconciler asks when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.relay.lab.NOW", NOW)
        self.lab = lab = made()
        client = HTTPClient(lab.providers["openai"].agent)
        self.fault: Exception | None = None
        self.reconciler = Reconciler(
            lab.turns.clock,
            EVERY,
            self._open,
            {"openai": Asked("http://upstream.example/v1", lambda: SECRET, b"Authorization", client)},
            lab.relay._services.late,
            lab.wall,
        )
        self.rounds: list[Any] = []

    def _open(self) -> Deferred[list[Begun]]:
        return fail(self.fault) if self.fault is not None else succeed(self.lab.open_work.open())

    def round(self) -> list[str]:
        """Begin a round; give what the upstream was asked for in it."""
        for peer in self.lab.upstreams:
            peer.take()
        self.reconciler.round().addBoth(self.rounds.append)
        self.lab.turns.settle()
        return [peer.got.split(b" ")[1].decode() for peer in self.lab.upstreams if peer.got]

    def answer(self, data: bytes) -> list[str]:
        """Answer each question that was asked; give what is asked then."""
        asked = [peer for peer in self.lab.upstreams if peer.got]
        for peer in asked:
            peer.take()
        for peer in asked:
            peer.send(data)
        self.lab.turns.settle()
        return [peer.got.split(b" ")[1].decode() for peer in self.lab.upstreams if peer.got]

    def go_on(self, seconds: float) -> None:
        self.lab.turns.clock.advance(seconds)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


@pytest.mark.parametrize(
    ("kind", "path", "answered", "expected"),
    [
        ("response", "/v1/responses/resp_1", background("completed", USAGE), FIGURES),
        ("response", "/v1/responses/resp_1", background("failed"), ZEROS),
        ("batch", "/v1/batches/batch_1", batch("completed", USAGE), FIGURES),
        ("message_batch", "/v1/messages/batches/msgbatch_1", message_batch("ended", 0), ZEROS),
    ],
)
def test_work_that_nobody_looks_at_is_settled_for_who_began_it(
    house: House, kind: str, path: str, answered: Any, expected: Any
) -> None:
    begun = begin(house.lab, kind)
    assert house.round() == [path]
    sent = bytes(house.lab.upstreams[0].got)
    assert sent.startswith(b"GET ")
    assert b"\r\nAuthorization: Bearer " + SECRET + b"\r\n" in sent
    assert (b"anthropic-version: 2023-06-01" in sent.lower()) is (kind == "message_batch")
    house.answer(reply(answered))
    row = house.lab.rows[-1]
    assert tokens(row) == expected
    assert (row["key_id"], row["parent_request_id"], row["requests"]) == ("k1", begun["request_id"], 0)
    assert house.lab.limiter.settled_later == [(1, row)]
    assert house.rounds == [None]
    house.go_on(10 * EVERY)
    assert house.round() == []


def test_a_message_batch_s_usage_is_taken_from_its_results(house: House) -> None:
    begin(house.lab, "message_batch")
    house.round()
    assert house.answer(reply(message_batch())) == ["/v1/messages/batches/msgbatch_1/results"]
    house.answer(lines(result(), result()))
    assert house.lab.rows[-1]["prompt_tokens"] == 2000
    assert len(house.lab.limiter.settled_later) == 1


def test_results_that_break_off_settle_nothing(house: House) -> None:
    begin(house.lab, "message_batch")
    house.round()
    house.answer(reply(message_batch()))
    (peer,) = [peer for peer in house.lab.upstreams if peer.got]
    whole = lines(result(), result())
    peer.send(whole[: -len(json.dumps(result())) - 1])
    with told() as texts:
        peer.hang_up()
        house.lab.turns.settle()
    assert house.lab.limiter.settled_later == []
    assert len(house.lab.open_work.open()) == 1
    assert len(texts) == 1


def test_work_that_goes_on_is_asked_about_the_more_seldom_the_older_it_is(house: House) -> None:
    begin(house.lab, "batch")
    asked_at: list[float] = []
    for _ in range(24 * 60):
        if house.round():
            asked_at.append(house.lab.wall() - NOW)
            house.answer(reply(batch("in_progress")))
        house.go_on(EVERY)
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert waits[:9] == [EVERY] * 9
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(LONGEST_WAIT, abs=EVERY)
    assert len(asked_at) < 70


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden", b"404 Not Found"])
def test_what_the_key_cannot_see_is_asked_for_at_ever_longer_times_and_stays_open(house: House, status: bytes) -> None:
    begin(house.lab, "response")
    waits = []
    for _ in range(14):
        waited = 0.0
        while not house.round():
            house.go_on(EVERY)
            waited += EVERY
        waits.append(waited)
        house.answer(reply({"error": {"message": "no"}}, status))
    assert waits[:5] == [0, EVERY, 2 * EVERY, 4 * EVERY, 8 * EVERY]
    assert waits[-1] == A_DAY
    assert len(house.lab.open_work.open()) == 1


def test_what_has_ended_without_saying_its_usage_stays_open_and_is_asked_for_more_seldom(house: House) -> None:
    begin(house.lab, "response")
    house.round()
    house.answer(reply(background("cancelled")))
    house.go_on(EVERY)
    assert house.round() != []
    house.answer(reply(background("cancelled")))
    house.go_on(EVERY)
    assert house.round() == []
    assert house.lab.limiter.settled_later == []


@pytest.mark.parametrize("fault", [b"429 Too Many Requests", b"500 Internal Server Error", None])
def test_an_upstream_with_faults_is_left_alone_for_a_time_that_doubles(house: House, fault: bytes | None) -> None:
    begin(house.lab, "response")
    with told() as texts:
        for wait in (1, 2, 4):
            assert house.round() == ["/v1/responses/resp_1"]
            if fault is None:
                for peer in house.lab.upstreams:
                    peer.hang_up()
                house.lab.turns.settle()
            else:
                house.answer(reply({"error": {"message": SECRET.decode()}}, fault))
            for _ in range(wait):
                assert house.round() == []
                house.go_on(EVERY)
    assert len(texts) == 3
    assert all("openai" in text and SECRET.decode() not in text for text in texts)
    assert house.round() == ["/v1/responses/resp_1"]
    house.answer(reply(background("completed", USAGE)))
    assert len(house.lab.limiter.settled_later) == 1


def test_few_questions_are_under_way_at_once_and_none_after_the_end(house: House) -> None:
    for number in range(3 * AT_ONCE):
        house.lab.open_work.begin(begun(house.lab, id=f"resp_{number}"))
    assert len(house.round()) == AT_ONCE
    assert len(house.answer(reply(background("in_progress")))) == AT_ONCE
    house.reconciler.stop()
    assert house.answer(reply(background("in_progress"))) == []


def test_an_upstream_without_the_operator_s_key_and_an_id_that_is_none_are_not_asked(house: House) -> None:
    house.lab.open_work.begin(begun(house.lab, upstream="azure"))
    for identity in ("../files", "a b", "r?x", ""):
        house.lab.open_work.begin(begun(house.lab, id=identity))
    assert house.round() == []
    assert house.rounds == [None]


def test_an_answer_about_another_work_settles_neither(house: House) -> None:
    begin(house.lab, "response")
    house.lab.open_work.begin(begun(house.lab, id="resp_2", upstream="azure"))
    house.round()
    house.answer(reply(background("completed", USAGE, id="resp_2")))
    assert house.lab.limiter.settled_later == []
    assert len(house.lab.open_work.open()) == 2


def test_a_redirect_is_not_followed_with_the_key(house: House) -> None:
    begin(house.lab, "response")
    house.round()
    moved = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://upstream.example/v1/x\r\nContent-Length: 0\r\n\r\n"
    assert house.answer(moved) == []


def test_open_work_that_cannot_be_read_is_told_of_and_ends_no_round(house: House) -> None:
    house.fault = PermissionError(13, "Permission denied")
    with told() as texts:
        assert house.round() == []
    assert house.rounds == [None]
    assert "Permission denied" in texts[0]


def test_rounds_begin_after_the_interval_and_end_with_the_service(house: House) -> None:
    begin(house.lab, "response")
    house.reconciler.start()
    for peer in house.lab.upstreams:
        peer.take()
    house.go_on(EVERY - 1)
    assert not any(peer.got for peer in house.lab.upstreams)
    house.go_on(1)
    house.lab.turns.settle()
    assert house.answer(reply(background("completed", USAGE))) == []
    assert len(house.lab.limiter.settled_later) == 1
    house.reconciler.stop()


def begun(lab: Lab, **more: Any) -> Begun:
    values = {
        "upstream": "openai", "kind": "response", "id": "resp_1", "key_id": "k1", "owner": None, "group": None,
        "attributes": None, "request_id": "r1", "method": "POST", "path": "/v1/responses", "model_requested": "gpt-5",
        "service_tier": None, "begun": lab.wall(), "expires": lab.wall() + 1e6, "kept": None,
    }  # fmt: skip
    return Begun(**values | more)  # type: ignore[arg-type]
