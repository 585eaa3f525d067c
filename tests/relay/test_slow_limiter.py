"""A limiter that answers later: what a client does meanwhile, and a reservation or a claim that comes too late."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from flowstack.config.settings import Settings
from flowstack.errors import BudgetExceeded, Overloaded, RateLimitExceeded
from flowstack.keys import Budget
from flowstack.limits.counters import Counters
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from flowstack.server.request_body import WINDOW
from tests.harness import Transport
from tests.relay.lab import KEY, NOW, Lab, SlowClaims, SlowLimiter, answer, request

CHAT = b"POST /v1/chat/completions HTTP/1.1"
JSON = b"Content-Type: application/json"
BODY = b'{"model":"gpt-4o","messages":[],"max_tokens":100}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Slow(SlowLimiter):
    """The true limiter, asked over a slow network."""

    def __init__(self, limiter: SharedLimiter) -> None:
        super().__init__()
        self.plan, self.fields, self.standings = limiter.plan, limiter.fields, limiter.standings  # type: ignore[assignment, method-assign]
        self.settle, self._take = limiter.settle, limiter.reserve  # type: ignore[assignment, method-assign]

    def take(self, *asked: Any, **options: Any) -> Any:
        return self._take(*asked, **options)


class Claiming:
    """A reservation of the true limiter's, which claims over a slow network."""

    def __init__(self, limiter: SlowLimiter, true: Any) -> None:
        self._limiter, self.true = limiter, true
        self.lines, self.kept = true.lines, true.kept

    def claim(self, *asked: Any) -> Any:
        return self._limiter.wait_for(partial(self.true.claim, *asked))


class SlowToClaim(Slow):
    """The true limiter, which answers at once, and claims over a slow network."""

    def __init__(self, limiter: SharedLimiter) -> None:
        super().__init__(limiter)
        self.settle = lambda reservation, *owed: limiter.settle(reservation.true, *owed)  # type: ignore[assignment, method-assign]

    def reserve(self, *asked: Any, **options: Any) -> Any:
        return Claiming(self, self.take(*asked, **options))


def asked(body: bytes = BODY, length: int | None = None, **options: Any) -> tuple[Lab, SlowLimiter, Transport]:
    """A client whose request waits for the limiter."""
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter, **options)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % (len(body) if length is None else length), body=body)
    assert (limiter.waiting, lab.upstreams, client.got) == (1, [], b"")
    return lab, limiter, client


def test_a_request_goes_on_when_the_limiter_has_answered() -> None:
    lab, limiter, client = asked()
    limiter.figures = ((b"Flowstack-RateLimit-Limit-Requests", b"5"),)
    limiter.answer()
    lab.turns.settle()
    lab.upstreams[0].send(OK)
    got = answer(client)
    assert (got.status, got.body, got["flowstack-ratelimit-limit-requests"]) == (200, b"ok", b"5")
    assert (lab.row["end"], lab.row["attempts"], limiter.reserved) == ("complete", 1, 1)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (RateLimitExceeded("Wait.", ((b"Retry-After", b"7"),)), 429, "flowstack_rate_limit_exceeded"),
        (Overloaded("The limiter did not answer in time."), 503, "overloaded"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
def test_a_limiter_that_says_no_or_cannot_tell_refuses(fault: Exception, status: int, code: str) -> None:
    lab, limiter, client = asked()
    limiter.fault = fault
    limiter.answer()
    got = answer(client)
    assert (got.status, got.error["code"], b"secret" in got.body) == (status, code, False)
    assert (lab.row["end"], lab.row["error_code"], lab.row["attempts"], lab.upstreams) == ("refused", code, 0, [])
    client.send(request())  # the connection serves on
    assert limiter.waiting == 1


def test_a_long_upload_is_held_back_while_the_limiter_is_asked() -> None:
    body = b'{"model":"gpt-4o","user":"' + b"u" * 4 * WINDOW + b'"}'
    lab, limiter, client = asked(body[:1000], len(body))
    client.send(body[1000:], 16 * 1024)
    lab.turns.settle()
    assert not client.reading
    assert client.waiting_to_be_read > 0
    limiter.answer()
    lab.turns.settle()
    assert client.reading
    assert bytes(lab.upstreams[0].got).endswith(body)
    lab.upstreams[0].send(OK)
    assert (answer(client).status, lab.row["bytes_in"]) == (200, len(body))


def test_a_client_that_waits_for_a_100_gets_none_before_the_limiter_has_answered() -> None:
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter)
    client = lab.ask(CHAT, JSON, b"Expect: 100-continue", b"Content-Length: %d" % len(BODY))
    assert client.got == b""
    limiter.answer()
    lab.turns.settle()
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("event", "end", "code"),
    [
        ("the client leaves", "client_gone", None),
        ("the upload stalls", "timeout", "malformed_request"),
        ("the body is too large", "refused", "request_too_large"),
        ("the drain ends", "drain", None),
    ],
)
def test_a_reservation_that_comes_after_the_end_is_given_back(event: str, end: str, code: str | None) -> None:
    chunked = event == "the body is too large"
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter, max_request_bytes=1000)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 500"
    client = lab.ask(CHAT, JSON, framing, body=b"1\r\n{\r\n" if chunked else b"{")
    assert limiter.waiting == 1
    if event == "the client leaves":
        client.hang_up()
    elif event == "the upload stalls":
        lab.turns.fires(60, lambda: client.got)
    elif event == "the body is too large":
        client.send(b"800\r\n" + b" " * 0x800 + b"\r\n")
    else:
        lab.listener.site.close()
        lab.turns.settle()
    (row,) = lab.rows
    assert (row["end"], row["error_code"], row["attempts"], limiter.settled) == (end, code, 0, [])
    limiter.answer()
    lab.turns.advance(3000)
    assert (len(lab.rows), lab.upstreams, limiter.open, limiter.owed) == (1, [], set(), [(None, None)])


def test_a_refusal_that_comes_after_the_client_left_does_nothing() -> None:
    lab, limiter, client = asked()
    client.hang_up()
    limiter.fault = RateLimitExceeded("Wait.")
    limiter.answer()
    assert (lab.row["end"], limiter.settled, lab.upstreams) == ("client_gone", [], [])


def test_while_draining_a_request_that_waits_goes_on() -> None:
    lab, limiter, client = asked()
    lab.relay.draining = True
    limiter.answer()
    lab.turns.settle()
    lab.upstreams[0].send(OK)
    assert (answer(client).status, lab.row["end"]) == (200, "complete")


def test_the_next_request_of_a_connection_waits_for_the_first() -> None:
    lab, limiter, client = asked()
    client.send(request(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY))
    assert limiter.waiting == 1
    limiter.answer()
    lab.turns.settle()
    lab.upstreams[0].send(OK)
    assert limiter.waiting == 1
    limiter.answer()
    lab.turns.settle()
    lab.upstreams[0].send(OK)
    assert [row["end"] for row in lab.rows] == ["complete", "complete"]


def test_the_true_limiter_has_everything_back_of_a_client_that_left() -> None:
    counters = open_counters(None, 1)
    lab = Lab()
    true = SharedLimiter(Counters.attach(counters.fileno(), 0), Settings(), lambda: NOW, lab.turns.clock.seconds)
    lab = Lab(limiter=Slow(true))
    limits: dict[str, Any] = {"tpm": 1000, "max_parallel": 1, "budget": Budget(Decimal(5), "month")}
    lab.key = lab.keys.add(KEY, owner="alice@example.com", **limits)
    before = [(one.name, one.used) for one in true.standings(lab.key)]
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY)
    client.hang_up()
    assert isinstance(lab.limiter, Slow)
    lab.limiter.answer()
    assert [(one.name, one.used) for one in true.standings(lab.key)] == before
    counters.close()


# A claim that is answered later: of a body that was read on its way, or gathered, after it was reserved for.

ON_ITS_WAY, GATHERED = pytest.param(False, id="on its way"), pytest.param(True, id="gathered")
CUT = 20
ESTIMATE = -(-len(BODY) // 4) + 100, (len(BODY) * 2.5 + 100 * 10) / 1e6
"""Tokens, and dollars at most."""


def claimed(gathered: bool, limiter: SlowClaims | None = None) -> tuple[Lab, SlowClaims, Transport]:
    """A client whose body has come, and whose claim waits for the limiter."""
    limiter = limiter or SlowClaims()
    limiter.metered = True
    lab = Lab(limiter=limiter)
    lab.keys.add(KEY, tpm=100_000, inject_usage=gathered)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY[:CUT])
    client.send(BODY[CUT:])
    lab.turns.settle()
    assert (limiter.waiting, limiter.reserved, limiter.settled, client.got) == (1, 1, [], b"")
    assert went(lab) == (b"" if gathered else BODY[:-1]), "the end of it waits for the limiter"
    return lab, limiter, client


def went(lab: Lab) -> bytes:
    return bytes(lab.upstreams[0].got).partition(b"\r\n\r\n")[2] if lab.upstreams else b""


@pytest.mark.parametrize("gathered", [ON_ITS_WAY, GATHERED])
def test_a_body_ends_for_the_upstream_when_its_claim_was_answered(gathered: bool) -> None:
    lab, limiter, client = claimed(gathered)
    limiter.answer()
    lab.turns.settle()
    assert went(lab).strip() == BODY
    lab.upstreams[0].send(OK)
    assert (answer(client).status, lab.row["end"], limiter.owed) == (200, "complete", [(None, None)])
    client.send(request())  # the connection serves on
    assert limiter.reserved == 2


@pytest.mark.parametrize("gathered", [ON_ITS_WAY, GATHERED])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (BudgetExceeded("The budget is used up."), 429, "flowstack_budget_exceeded"),
        (Overloaded("The limiter did not answer in time."), 503, "overloaded"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
def test_a_claim_that_is_refused_later_refuses_and_charges_nothing(
    gathered: bool, fault: Exception, status: int, code: str
) -> None:
    lab, limiter, client = claimed(gathered)
    limiter.claim_fault = fault
    limiter.answer()
    lab.turns.settle()
    got = answer(client)
    if isinstance(fault, RuntimeError) and not gathered:
        status, code = 502, "upstream_closed"  # as with whatever fails while a body is sent
    assert (got.status, got.error["code"], b"secret" in got.body) == (status, code, False)
    assert went(lab) == (b"" if gathered else BODY[:-1])
    assert all(upstream.peer_saw == "reset" for upstream in lab.upstreams)
    assert (lab.row["attempts"], limiter.owed) == (0 if gathered else 1, [(None, None)])


@pytest.mark.parametrize("gathered", [ON_ITS_WAY, GATHERED])
@pytest.mark.parametrize("refused", [False, True], ids=["granted", "refused"])
@pytest.mark.parametrize("end", ["client_gone", "drain", "upstream_lost"])
def test_what_ends_while_a_claim_waits_is_settled_once_when_it_was_answered(
    gathered: bool, refused: bool, end: str
) -> None:
    lab, limiter, client = claimed(gathered)
    if end == "client_gone":
        client.hang_up()
    elif end == "drain":
        lab.listener.site.close()
    elif gathered:
        return  # no upstream has heard of it
    else:
        lab.upstreams[0].fall_over()
    lab.turns.settle()
    (row,) = lab.rows
    assert (row["end"], row["attempts"], limiter.settled) == (end, 0 if gathered else 1, [])
    limiter.claim_fault = BudgetExceeded("The budget is used up.") if refused else None
    limiter.answer()
    lab.turns.advance(3000)
    assert (len(lab.rows), len(limiter.settled), limiter.open) == (1, 1, set())
    assert went(lab) == (b"" if gathered else BODY[:-1])
    assert limiter.owed == [(None, None) if gathered else ESTIMATE]


@pytest.mark.parametrize("status", [b"200 OK", b"500 Oops"])
def test_an_answer_that_comes_before_the_claim_s_is_too_early(status: bytes) -> None:
    """An error passes, and ends the upload; what looks like work done does not."""
    lab, limiter, client = claimed(False)
    lab.upstreams[0].send(OK.replace(b"200 OK", status))
    lab.turns.settle()
    assert answer(client).status == (502 if status == b"200 OK" else 500)
    limiter.answer()
    lab.turns.settle()
    assert went(lab) == BODY[:-1]
    assert (lab.row["attempts"], len(limiter.settled)) == (1, 1)


def test_what_a_client_sends_on_while_a_claim_waits_is_left_in_its_socket() -> None:
    lab, limiter, client = claimed(False)
    client.send(request() + b"x" * 4 * WINDOW, 16 * 1024)
    lab.turns.settle()
    assert not client.reading
    assert client.waiting_to_be_read > 0
    limiter.answer()
    lab.turns.settle()
    lab.upstreams[0].send(OK)
    assert answer(client).status == 200


@pytest.mark.parametrize(("gathered", "left"), [(False, ESTIMATE[0]), (True, 0)], ids=["on its way", "gathered"])
def test_the_true_limiter_charges_a_client_that_left_during_its_claim_what_was_attempted(
    gathered: bool, left: int
) -> None:
    counters = open_counters(None, 1)
    true = SharedLimiter(Counters.attach(counters.fileno(), 0), Settings(), lambda: NOW, lambda: 0.0)
    claims = SlowToClaim(true)
    lab = Lab(limiter=claims)
    limited = lab.keys.add(KEY, tpm=1000, max_parallel=1, inject_usage=gathered)
    client = lab.ask(CHAT, JSON, b"Content-Length: %d" % len(BODY), body=BODY[:CUT])
    client.send(BODY[CUT:])
    client.hang_up()
    lab.turns.settle()
    assert {one.limit: one.used for one in true.standings(limited)} == {"tpm": 0, "max_parallel": 1}
    claims.answer()
    assert {one.limit: one.used for one in true.standings(limited)} == {"tpm": left, "max_parallel": 0}
    counters.close()
