"""What is asked for and answered on a WebSocket: rights, limits, rows."""

from __future__ import annotations

import gc
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

import orjson
import pytest

from flowstack.config import Upstream
from flowstack.errors import RateLimitExceeded
from flowstack.http.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, close_payload, frame
from flowstack.keys import Budget, Key
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from tests.relay.lab import KEY, Lab, Limiter, SlowLimiter
from tests.relay.sockets import MASK, REALTIME, RESPONSES, Duet

USAGE = {
    "total_tokens": 253, "input_tokens": 132, "output_tokens": 121,
    "input_token_details": {"text_tokens": 119, "audio_tokens": 13, "image_tokens": 0, "cached_tokens": 64,
                            "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0}},
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}  # fmt: skip
CREATE = {"type": "response.create", "event_id": "event_1"}
ASK = {"type": "response.create", "model": "gpt-4o", "input": "hello", "max_output_tokens": 50}
COMPLETED = {"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-4o-2024-08-06",
             "service_tier": "default", "output": [],
             "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}  # fmt: skip


def created(identity: str = "resp_1", **more: Any) -> dict[str, Any]:
    return {"type": "response.created", "response": {"id": identity, "status": "in_progress"}, **more}


def done(identity: str = "resp_1", status: str = "completed", usage: Any = USAGE) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": identity, "status": status, "usage": usage, "output": []}}


def completed(identity: str = "resp_1", kind: str = "completed", **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {**COMPLETED, "id": identity, "status": kind}, **more}


def metered(upstreams: tuple[Upstream, ...] | None = None, **options: Any) -> Lab:
    """A lab whose key has limits that are counted as in earnest."""

    def real(lab: Lab) -> dict[str, Any]:
        wall, monotonic = lab.wall, lab.turns.clock.seconds
        return {"limiter": SharedLimiter(open_counters(None, 1, wall, monotonic), lab.settings, wall, monotonic)}

    lab = Lab(real=real) if upstreams is None else Lab(real=real, upstreams=upstreams)
    lab.keys.add(KEY, owner="alice@example.com", **options)
    return lab


def test_a_realtime_response_has_a_row_before_its_last_event_goes_on() -> None:
    lab = Lab()
    duet = Duet(lab)
    duet.client.say(CREATE)
    assert duet.upstream.events() == [CREATE]
    duet.upstream.say(created())
    assert lab.rows == []
    seen: list[bytes] = []
    lab.ledger.watch = lambda: seen.append(duet.client.transport.take())
    duet.upstream.say(done())
    assert len(seen) == 1 and b"response.done" not in seen[0]
    assert b"response.done" in duet.client.transport.take()
    (row,) = lab.rows
    assert lab.ledger.flushed == 1
    assert (row["status"], row["end"], row["stream"], row["model_requested"]) == (200, "complete", True, "gpt-realtime")
    assert (row["prompt_tokens"], row["cached_tokens"]) == (132, 64)
    assert (row["completion_tokens"], row["total_tokens"]) == (121, 253)
    assert row["cost_usd"] is not None and row["priced_by"] == "model_requested"
    assert row["usage_details"]["input_token_details"]["audio_tokens"] == 13
    duet.client.transport.hang_up()
    lab.turns.settle()
    connection = lab.rows[-1]
    assert row["parent_request_id"] == connection["request_id"] != row["request_id"]
    assert (connection["total_tokens"], connection["usage_source"]) == (None, "none")
    assert lab.limiter.open == set()


def test_a_response_of_the_responses_api_is_of_the_model_that_answered() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK)
    duet.upstream.say(created())
    duet.upstream.say(completed())
    (row,) = lab.rows
    assert (row["model_requested"], row["model"], row["service_tier"]) == ("gpt-4o", "gpt-4o-2024-08-06", "default")
    assert row["cost_usd"] == pytest.approx(10 * 2.5e-6 + 5 * 1e-5)


@pytest.mark.parametrize("kind", ["incomplete", "failed"])
def test_one_that_is_incomplete_or_failed_is_charged_by_what_it_used(kind: str) -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK)
    duet.upstream.say(created())
    duet.upstream.say(completed(kind=kind))
    assert (lab.rows[0]["total_tokens"], lab.limiter.settled[0]["total_tokens"]) == (15, 15)


def test_several_at_once_are_told_apart() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK | {"stream_id": "a", "model": "gpt-4o"})
    duet.client.say(ASK | {"stream_id": "b", "model": "gpt-4o-mini"})
    duet.upstream.say(created("r_b", stream_id="b"))
    duet.upstream.say(created("r_a", stream_id="a"))
    duet.upstream.say(completed("r_a", stream_id="a"))
    duet.upstream.say(completed("r_b", stream_id="b"))
    assert [row["model_requested"] for row in lab.rows] == ["gpt-4o", "gpt-4o-mini"]


@pytest.mark.parametrize(("asked", "told"), [("a", None), (None, "s_1"), ("a", "s_1"), ("a", 5)])
def test_a_stream_that_the_upstream_names_otherwise_is_counted_once(asked: str | None, told: Any) -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK if asked is None else ASK | {"stream_id": asked})
    name = {} if told is None else {"stream_id": told}
    duet.upstream.say(created(**name))
    duet.upstream.say(completed(**name))
    duet.client.close()
    duet.upstream.close()
    assert [row["total_tokens"] for row in lab.rows] == [15, None]
    assert [one["total_tokens"] for one in lab.limiter.settled] == [15, None]
    assert lab.limiter.open == set()


def test_of_several_streams_that_are_not_told_the_oldest_has_begun() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    for stream, model in (("a", "gpt-4o"), ("b", "gpt-4o-mini")):
        duet.client.say(ASK | {"stream_id": stream, "model": model})
    for number in range(2):
        duet.upstream.say(created(f"r_{number}"))
        duet.upstream.say(completed(f"r_{number}"))
    assert [row["model_requested"] for row in lab.rows] == ["gpt-4o", "gpt-4o-mini"]
    assert len(lab.limiter.open) == 1  # the connection


def test_an_error_of_another_event_or_stream_ends_nothing_that_was_asked_for() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK | {"stream_id": "a", "event_id": "event_1"})
    duet.upstream.say({"type": "error", "error": {"event_id": "event_9"}})
    duet.upstream.say({"type": "error", "stream_id": "b", "error": {}})
    assert lab.rows == [] and len(lab.limiter.open) == 2
    duet.upstream.say({"type": "error", "status": 429, "error": {"event_id": "event_1"}})
    assert [row["status"] for row in lab.rows] == [429]


# After the upstream's Close frame.


@pytest.mark.parametrize("limits", [{}, {"tpm": 100_000}])
@pytest.mark.parametrize("split", [None, 7])
def test_what_is_asked_for_after_the_upstream_has_closed_goes_nowhere_and_costs_nothing(
    limits: dict[str, int], split: int | None
) -> None:
    lab = metered(**limits)
    duet = Duet(lab, RESPONSES)
    duet.upstream.close(1001, "over")
    duet.client.say(ASK, split)
    duet.client.transport.send(frame(PING, b"still", MASK))
    duet.client.close(1001)
    assert [opcode for opcode, _ in duet.upstream.take()] == [PING, CLOSE]
    lab.turns.settle()
    (row,) = lab.rows
    assert (row["end"], row["close_code"], row["attempts"]) == ("complete", 1001, 1)


def test_a_message_whose_end_comes_after_the_upstreams_close_goes_nowhere() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    whole = frame(TEXT, orjson.dumps(ASK), MASK)
    duet.client.transport.send(whole[:20])
    duet.upstream.close()
    duet.client.transport.send(whole[20:])
    duet.client.close()
    assert [opcode for opcode, _ in duet.upstream.take()] == [CLOSE]
    assert len(lab.rows) == 1 and lab.limiter.open == set()


def test_what_the_limiter_was_asked_for_when_the_upstream_closed_is_given_back() -> None:
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter)
    duet = Duet(lab, RESPONSES, waits=limiter.answer)
    duet.client.say(ASK)
    duet.upstream.close()
    limiter.answer()
    duet.client.close()
    assert [opcode for opcode, _ in duet.upstream.take()] == [CLOSE]
    assert [(row["end"], row["attempts"]) for row in lab.rows] == [("upstream_lost", 0), ("complete", 1)]
    assert lab.limiter.open == set()


def test_each_response_takes_of_the_limits_and_gives_back_what_it_did_not_use() -> None:
    lab = metered(rpm=2, tpm=100_000, max_parallel=1)
    duet = Duet(lab, RESPONSES)
    for number in range(2):
        duet.client.say(ASK)
        assert len(duet.upstream.events()) == 1
        duet.upstream.say(created(f"r{number}"))
        duet.upstream.say(completed(f"r{number}"))
        duet.client.events()
    duet.client.say(ASK | {"event_id": "event_3"})
    assert duet.upstream.events() == []
    (told,) = duet.client.events()
    assert told["type"] == "error"
    assert (told["status"], told["error"]["code"], told["error"]["event_id"]) == (
        429, "flowstack_rate_limit_exceeded", "event_3",
    )  # fmt: skip
    refused = lab.rows[-1]
    assert (refused["end"], refused["attempts"]) == ("refused", 0)
    assert refused["error_code"] == "flowstack_rate_limit_exceeded"
    duet.client.say({"type": "session.update", "session": {}})
    assert len(duet.upstream.events()) == 1, "the connection lives on"
    second = Duet(lab, RESPONSES)
    assert b"flowstack_concurrency_exceeded" in second.head, "a connection is one in flight"
    duet.client.transport.hang_up()
    lab.turns.advance(61)
    assert Duet(lab, RESPONSES).head.startswith(b"HTTP/1.1 101")


def test_a_handshake_is_no_request() -> None:
    lab = metered(rpm=1)
    for _ in range(3):
        duet = Duet(lab, RESPONSES)
        assert duet.head.startswith(b"HTTP/1.1 101")
        duet.client.transport.hang_up()


def test_the_most_that_a_session_said_holds_until_the_client_asks_for_another() -> None:
    lab = Lab()
    lab.limiter.metered = True
    duet = Duet(lab)

    def reserves() -> int:
        duet.client.say(CREATE)
        return lab.limiter.given[-1].claimed[-1][0]

    told = {"type": "session.created", "session": {"model": "gpt-realtime", "max_output_tokens": 1}}
    duet.upstream.say(told)
    assert reserves() < 50
    for most in ("inf", 1):
        duet.client.say({"type": "session.update", "session": {"max_output_tokens": most}})
    assert reserves() > 4000
    duet.upstream.say({"type": "session.updated", "session": {"max_output_tokens": "inf"}})
    assert reserves() > 4000
    duet.upstream.say(told | {"type": "session.updated"})
    assert reserves() < 50


def test_money_is_reserved_for_each_response_and_one_that_does_not_fit_is_refused() -> None:
    lab = metered(budget=Budget(Decimal("0.01"), "day"))
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK | {"max_output_tokens": 100_000})
    assert duet.client.events()[0]["error"]["code"] == "flowstack_budget_exceeded"
    duet.client.say(ASK)
    assert len(duet.upstream.events()) == 1


def test_what_was_open_when_it_was_cut_keeps_its_estimate() -> None:
    lab = Lab()
    lab.limiter.metered = True
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK)
    duet.client.say(ASK)
    duet.upstream.say(created())
    duet.client.transport.hang_up()
    lab.turns.settle()
    rows = lab.rows
    assert [row["end"] for row in rows] == ["client_gone"] * 3
    assert [(row["usage_source"], row["attempts"], row["status"]) for row in rows[:2]] == [
        ("none", 1, 200), ("none", 1, None),
    ]  # fmt: skip
    assert lab.limiter.open == set()


def test_a_fault_of_what_counts_rows_costs_no_row_and_no_reservation() -> None:
    def fails(row: Any, operation: str) -> None:
        raise RuntimeError("it cannot count")

    lab = Lab(real=lambda lab: {"observers": (lab.ledger.record, fails)})
    duet = Duet(lab)
    for _ in range(3):
        duet.client.say(CREATE)
    lab.limiter.fault = RateLimitExceeded("too many")
    duet.client.say(CREATE)
    assert duet.client.events()[0]["error"]["code"] == "flowstack_rate_limit_exceeded"
    duet.client.transport.hang_up()
    lab.turns.settle()
    assert [row["end"] for row in lab.rows] == ["refused", *4 * ["client_gone"]]
    assert (lab.limiter.open, lab.sockets.current) == (set(), set())


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.create", "model": "gpt-4.1"},
        {"type": "session.update", "session": {"model": "gpt-4.1"}},
        {"type": "response.create", "model": "gpt-4o", "tools": [{"type": "image_generation", "model": "gpt-image-1"}]},
    ],
    ids=["response", "session", "of a tool"],
)
def test_a_model_that_the_key_may_not_use_is_refused_in_its_event(event: dict[str, Any]) -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o*",))
    duet = Duet(lab, RESPONSES)
    duet.client.say(event)
    assert duet.upstream.events() == []
    assert duet.client.events()[0]["error"]["code"] == "model_not_allowed"
    duet.client.say(ASK)
    assert duet.upstream.events() == [ASK]


def test_a_session_of_a_model_that_the_key_may_not_use_is_closed() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-realtime",))
    duet = Duet(lab)
    duet.upstream.say({"type": "session.created", "session": {"type": "realtime", "model": "gpt-other"}})
    closed = duet.client.closed()
    assert closed is not None and closed[0] == 1008
    assert lab.rows[-1]["error_code"] == "model_not_allowed"


def test_a_session_that_is_too_long_to_be_looked_through_is_closed_for_a_key_with_models() -> None:
    for models, closes in (("gpt-realtime",), True), ((), False):
        lab = Lab()
        lab.keys.add(KEY, models=models)
        duet = Duet(lab)
        audio = {"input": {"transcription": {"model": "gpt-4o-transcribe", "prompt": "p" * 17_000}}}
        session = {"model": "gpt-realtime", "instructions": "i" * 70_000, "audio": audio}
        duet.upstream.say({"type": "session.updated", "session": session})
        assert bool(lab.sockets.current) is not closes


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"response.create","type":"x","model":"gpt-4o"}', b'{"type":"x","type":"response.create"}',
        b'{"type":"response.create","model":"gpt-4o","model":"gpt-4.1"}', b"no json", b"[]",
        b'{"\\u0074ype":"response.create","model":"gpt-4.1"}', b'{"model":"gpt-4.1","type":"response.create"}',
    ],
)  # fmt: skip
def test_what_parsers_may_read_two_ways_never_goes_on_for_a_limited_key(text: bytes) -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o",))
    duet = Duet(lab, RESPONSES)
    duet.client.say(text)
    assert duet.upstream.transport.take() == b""
    assert duet.client.events()[0]["type"] == "error"


def test_what_seemed_harmless_never_gets_its_end_if_it_turns_out_otherwise() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-realtime",))
    duet = Duet(lab)
    text = b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 70_000 + b'","type":"response.create"}'
    duet.client.say(text, 4096)
    got = duet.upstream.transport.take()
    assert len(got) < len(text)
    assert (duet.client.closed() or (0, ""))[0] == 1008


def test_audio_goes_on_as_it_comes_for_a_limited_key_too() -> None:
    duet = Duet(Lab())
    data = frame(TEXT, b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 200_000 + b'"}', MASK)
    duet.client.transport.send(data[:100_000], 4096)
    assert len(duet.upstream.transport.take()) > 90_000
    duet.client.transport.send(data[100_000:])
    assert len(duet.upstream.transport.take()) > 90_000


def test_a_message_in_many_frames_is_judged_as_a_whole_and_goes_on_as_it_came() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o",))
    ping = frame(PING, b"p", MASK)
    for model, goes_on in ((b"gpt-4.1", False), (b"gpt-4o", True)):
        texts = b'{"type":"response.cr', b'eate" , "model":"%b"}' % model
        frames = [bytes((first, 0x80 | len(text))) + MASK + _masked(text)
                  for first, text in zip((TEXT, 0x80 | CONTINUATION), texts, strict=True)]  # fmt: skip
        duet = Duet(lab, RESPONSES)
        duet.client.transport.send(frames[0] + ping + frames[1], 1)
        assert duet.upstream.transport.take() == (frames[0] + ping + frames[1] if goes_on else ping)


def _masked(text: bytes) -> bytes:
    return bytes(byte ^ MASK[place % 4] for place, byte in enumerate(text))


def test_a_binary_message_is_judged_as_a_text_is() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-4o",))
    duet = Duet(lab, RESPONSES)
    duet.client.transport.send(frame(BINARY, b'{"type":"response.create","model":"gpt-4.1"}', MASK))
    assert duet.upstream.transport.take() == b""


def test_messages_wait_in_order_for_a_limiter_that_takes_its_time() -> None:
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter)
    duet = Duet(lab, RESPONSES, waits=limiter.answer)
    first, second, last = ASK, ASK | {"model": "gpt-4o-mini"}, {"type": "x"}
    duet.client.say(first)
    duet.client.say(second)
    duet.client.say(last)
    assert duet.upstream.events() == []
    assert not duet.client.transport.reading
    limiter.answer()
    assert duet.upstream.events() == [first]
    limiter.fault = RateLimitExceeded("Too many.")
    limiter.answer()
    assert duet.upstream.events() == [last]
    assert duet.client.events()[0]["error"]["message"] == "Too many."
    assert duet.client.transport.reading


def test_a_client_that_leaves_while_the_limiter_is_asked_owes_nothing() -> None:
    limiter = SlowLimiter()
    lab = Lab(limiter=limiter)
    duet = Duet(lab, RESPONSES, waits=limiter.answer)
    duet.client.say(ASK)
    duet.upstream.transport.fall_over()
    lab.turns.settle()
    limiter.answer()
    assert limiter.open == set()
    assert lab.rows[-1]["attempts"] == 0


def test_a_response_that_begins_by_itself_takes_of_the_limits_or_is_asked_to_end() -> None:
    lab = metered(rpm=1)
    duet = Duet(lab)
    duet.upstream.say(created("r1"))
    duet.upstream.say(done("r1"))
    assert len(duet.client.events()) == 2
    duet.upstream.say(created("r2"))
    assert duet.upstream.events() == [{"type": "response.cancel", "response_id": "r2"}]
    kinds = [event["type"] for event in duet.client.events()]
    assert kinds == ["response.created", "error"]
    duet.upstream.say(done("r2", "cancelled"))
    assert [row["total_tokens"] for row in lab.rows] == [253, 253]


def test_speech_that_was_written_down_has_a_row_of_its_own_at_its_models_price() -> None:
    lab = Lab()
    lab.limiter.metered = True
    duet = Duet(lab)
    duet.upstream.say({
        "type": "session.created",
        "session": {"type": "realtime", "model": "gpt-realtime",
                    "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}},
    })  # fmt: skip
    duet.upstream.say({
        "type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1", "content_index": 0,
        "transcript": "hello", "usage": {"type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9,
                                         "input_token_details": {"text_tokens": 0, "audio_tokens": 13}},
    })  # fmt: skip
    (row,) = lab.rows
    assert (row["model_requested"], row["total_tokens"]) == ("gpt-4o-transcribe", 22)
    assert row["cost_usd"] is not None
    assert lab.limiter.charged == [(22, row["cost_usd"])]


def test_an_error_event_that_answers_a_create_ends_it_and_costs_nothing() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK)
    error = {"code": "previous_response_not_found", "message": "x"}
    duet.upstream.say({"type": "error", "status": 400, "error": error})
    (row,) = lab.rows
    assert (row["status"], row["usage_source"], row["end"]) == (400, "none", "complete")
    assert len(lab.limiter.settled) == 1


def test_after_a_reload_the_key_is_held_to_its_new_line() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    lab.keys.add(KEY, models=("gpt-4o-mini",))
    lab.keys.generation += 1
    lab.turns.advance(1.3)
    duet.client.say(ASK)
    assert duet.client.events()[0]["error"]["code"] == "model_not_allowed"


@pytest.mark.parametrize("before", [{}, {"rpm": 100}])
def test_after_a_reload_what_nobody_asked_for_is_charged_to_the_new_limits(before: dict[str, Any]) -> None:
    lab = metered(**before)
    duet = Duet(lab)
    key = lab.keys.add(KEY, tpm=1000)
    lab.keys.generation += 1
    lab.turns.advance(2)
    usage = {"type": "tokens", "total_tokens": 300, "input_tokens": 200, "output_tokens": 100}
    duet.upstream.say({"type": "conversation.item.input_audio_transcription.completed", "usage": usage})
    (standing,) = lab.relay._services.limiter.standings(key)
    assert (standing.limit, standing.used) == ("tpm", 300)


def test_with_the_operators_key_only_a_response_of_this_very_connection_may_be_gone_on_from() -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK | {"previous_response_id": "resp_others"})
    assert duet.client.events()[0]["error"]["code"] == "endpoint_not_allowed"
    duet.client.say(ASK)
    duet.upstream.say(created())
    duet.upstream.say(completed())
    duet.upstream.events()
    again = ASK | {"previous_response_id": "resp_1"}
    duet.client.say(again)
    assert duet.upstream.events() == [again]
    steer = {"type": "response.steer", "previous_response_id": "resp_1", "input": "shorter"}
    duet.client.say(steer)
    assert duet.upstream.events() == [steer]
    duet.client.events()
    file = {"type": "input_file", "file_id": "file-others"}
    nested = {"response": {"previous_response_id": "resp_others"}}
    for refused in (steer | {"input": [{"role": "user", "content": [file]}]}, again | nested, steer | nested):
        duet.client.say(refused)
        assert duet.client.events()[0]["error"]["code"] == "endpoint_not_allowed"
        assert duet.upstream.events() == []


def test_a_message_for_which_there_is_no_room_is_refused_and_the_next_one_passes() -> None:
    lab = Lab(websocket_memory_bytes=100_000)
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK | {"input": "x" * 300_000}, 10_000)
    assert duet.client.events()[0]["error"]["code"] == "overloaded"
    duet.client.say(ASK)
    assert duet.upstream.events() == [ASK]
    assert lab.socket_room.held == 0


def test_a_key_without_limits_has_its_rows_and_nothing_of_its_messages_waits() -> None:
    class Unlimited(Limiter):
        def plan(self, key: Key, upstream: str) -> Any:
            return None

    lab = Lab(limiter=Unlimited())
    duet = Duet(lab, REALTIME)
    data = frame(TEXT, b'{"type":"response.create","x":"' + b"y" * 1000 + b'"}', MASK)
    duet.client.transport.send(data[:500])
    assert duet.upstream.transport.take() == data[:500]
    duet.client.transport.send(data[500:])
    duet.upstream.say(created())
    duet.upstream.say(done())
    assert lab.rows[0]["total_tokens"] == 253


# What a message costs that waits.


def _fragment(text: bytes, first: bool = False) -> bytes:
    """A frame of a message that goes on."""
    return bytes((TEXT if first else CONTINUATION, 0x80 | len(text))) + MASK + _masked(text)


def _limited(**options: Any) -> tuple[Lab, Duet]:
    lab = Lab(**options)
    lab.keys.add(KEY, models=("gpt-4o",))
    return lab, Duet(lab, RESPONSES)


@pytest.mark.parametrize("how", ["client", "upstream", "close", "drain", "violation"])
def test_the_room_of_a_message_that_never_ended_is_given_back_when_its_connection_ends(how: str) -> None:
    lab, duet = _limited()
    data = frame(TEXT, b'{"input":"' + b"x" * 200_000 + b'"}', MASK)
    duet.client.transport.send(data[:150_000], 4096)
    assert lab.socket_room.held > 0
    if how == "client":
        duet.client.transport.hang_up()
    elif how == "upstream":
        duet.upstream.transport.fall_over()
    elif how == "close":
        duet.upstream.close()
        lab.turns.advance(60)
    elif how == "drain":
        lab.listener.site.close()
    else:
        duet.upstream.transport.send(b"\xff\xff")
    lab.turns.settle()
    assert lab.socket_room.held == 0


@pytest.mark.parametrize("piece", [_fragment(b""), frame(PING, b"", MASK), frame(PING, b"p" * 125, MASK)])
def test_fragments_and_pings_without_a_byte_of_payload_take_of_the_room_too(piece: bytes) -> None:
    lab, duet = _limited(websocket_memory_bytes=100_000)
    duet.client.transport.send(_fragment(b'{"input":"', True))
    for _ in range(20):
        duet.client.transport.send(piece * 100)
    waiting = duet.lab.sockets.current.copy().pop().client
    assert len(waiting._held) < 800
    duet.client.transport.send(bytes((0x80 | CONTINUATION, 0x80)) + MASK)
    assert duet.client.events()[0]["error"]["code"] == "overloaded"
    assert lab.socket_room.held == 0


def bytes_held(thing: Any) -> int:
    """How many bytes are within reach of what reads messages, however it keeps them."""
    seen, left, found = set[int](), [thing], 0
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, bytes | bytearray):
            found += len(one)
        elif isinstance(one, list | tuple | set | dict) or type(one).__module__.startswith("flowstack.usage"):
            left += gc.get_referents(one)
    return found


def test_of_a_message_that_is_refused_for_its_size_nothing_is_held_on() -> None:
    lab, duet = _limited(websocket_memory_bytes=100_000)
    data = frame(TEXT, b'{"input":"' + b"x" * 2_000_000 + b'"}', MASK)
    duet.client.transport.send(data[:-1], 10_000)
    conversation = next(iter(lab.sockets.current)).conversation
    assert conversation is not None
    assert bytes_held(conversation.asks) < 200_000


def test_of_a_long_message_that_need_not_be_judged_only_what_matters_is_held() -> None:
    class Unlimited(Limiter):
        def plan(self, key: Key, upstream: str) -> Any:
            return None

    lab = Lab(limiter=Unlimited())
    duet = Duet(lab, RESPONSES)
    data = frame(TEXT, b'{"type":"response.create","model":"gpt-4o","input":"' + b"x" * 2_000_000 + b'"}', MASK)
    duet.client.transport.send(data[:-1], 10_000)
    conversation = next(iter(lab.sockets.current)).conversation
    assert conversation is not None
    assert bytes_held(conversation.asks) < 200_000
    duet.client.transport.send(data[-1:])
    duet.upstream.say(created())
    duet.upstream.say(completed())
    assert lab.rows[0]["model_requested"] == "gpt-4o"


@pytest.mark.parametrize("before", [True, False], ids=["limited before", "limited after"])
def test_a_reload_in_the_middle_of_a_message_holds_from_the_next_one_on(before: bool) -> None:
    class Unlimited(Limiter):
        def plan(self, key: Key, upstream: str) -> Any:
            return None

    lab = Lab(limiter=Unlimited())
    limited, free = dict(models=("gpt-4o",)), dict[str, Any]()
    lab.keys.add(KEY, **(limited if before else free))
    duet = Duet(lab, RESPONSES)
    data = frame(TEXT, b'{"input":"hello","type":"response.create","model":"gpt-4o"}', MASK)
    duet.client.transport.send(data[:20])
    lab.keys.add(KEY, **(free if before else limited))
    lab.keys.generation += 1
    lab.turns.advance(1.3)
    duet.client.transport.send(data[20:])
    assert duet.upstream.transport.take() == data
    duet.client.say({"type": "response.create", "model": "gpt-4.1"})
    assert bool(duet.upstream.events()) is before


# What Flowstack itself says.


def test_a_client_that_does_not_read_its_refusals_is_read_no_more_until_it_does() -> None:
    lab, duet = _limited()
    ours = duet.client.transport
    ours.peer_reads = False
    refused = frame(TEXT, b'{"type":"response.create","model":"gpt-4.1"}', MASK)
    for _ in range(1000):
        ours.send(refused)
    assert len(ours.unsent) < 128 * 1024
    held = ours.waiting_to_be_read
    assert held and (ours.reading, ours.peer_reads) == (False, False)
    ours.peer_reads = True
    for _ in range(100):
        ours.read()
    assert (ours.reading, ours.waiting_to_be_read) == (True, 0)
    assert len(duet.client.events()) == 1000
    assert len(lab.rows) == 1000


def test_refusals_do_not_pile_up_behind_a_message_of_the_upstream_that_never_ends() -> None:
    lab, duet = _limited()
    begun, rest = bytes((TEXT, 1)) + b"{", bytes((0x80 | CONTINUATION, 1)) + b"}"
    duet.upstream.transport.send(begun)
    for _ in range(1000):
        duet.client.say({"type": "response.create", "model": "gpt-4.1"})
    assert len(lab.rows) == 1
    assert duet.client.transport.take() == begun
    duet.upstream.transport.send(rest)
    lab.turns.settle()
    assert len(lab.rows) == 1000
    assert duet.client.transport.take().startswith(rest)


def test_a_client_whose_message_never_ends_gets_no_more_of_what_is_asked_to_end() -> None:
    lab = metered(rpm=1)
    duet = Duet(lab)
    half = frame(TEXT, b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 1000 + b'"}', MASK)
    duet.client.transport.send(half[:500])
    for number in range(5):
        duet.upstream.say(created(f"r{number}"))
        duet.upstream.say(done(f"r{number}", "cancelled"))
    kinds = [event["type"] for event in duet.client.events()]
    assert kinds == ["response.created", "response.done", "response.created", "error"]
    assert (duet.upstream.transport.reading, len(lab.rows)) == (False, 1)
    duet.client.transport.send(half[500:])
    lab.turns.settle()
    assert (duet.upstream.transport.reading, len(lab.rows)) == (True, 5)
    assert [event["type"] for event in duet.upstream.events()[:2]] == ["input_audio_buffer.append", "response.cancel"]


def test_a_client_that_keeps_back_the_end_of_a_response_is_closed_and_gets_nothing_of_it() -> None:
    lab = metered(tpm=100)
    duet = Duet(lab)
    half = frame(TEXT, b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 1000 + b'"}', MASK)
    for number in range(2):  # one that ends in time is none
        duet.client.transport.send(half[:500])
        duet.upstream.say(created(f"r{number}"))
        lab.turns.advance(1.5)
        assert lab.sockets.current
        if not number:
            duet.client.transport.send(half[500:])
            lab.turns.advance(5)
    duet.client.take()
    duet.upstream.say({"type": "response.output_text.delta", "delta": "hello"})
    lab.turns.advance(2)
    duet.client.transport.send(half[500:])
    assert duet.client.take() == [(CLOSE, close_payload(1008, "a message that does not end keeps back the end of a "
                                                              "response"))]  # fmt: skip
    assert not lab.sockets.current
    assert (lab.rows[-1]["end"], lab.rows[-1]["close_code"]) == ("timeout", 1008)


def test_two_messages_that_are_both_under_way_do_not_wait_for_each_other() -> None:
    lab = metered(rpm=1)
    duet = Duet(lab)
    sound = frame(TEXT, b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 1000 + b'"}', MASK)
    delta = frame(TEXT, b'{"type":"response.output_audio.delta","delta":"' + b"A" * 1000 + b'"}')
    refused = frame(TEXT, b'{"type":"response.create"}', MASK)
    duet.upstream.say(created("r1"))
    duet.upstream.transport.send(delta[:500])
    duet.client.transport.send(refused + sound[:500])  # the error waits behind the delta
    tunnel = next(iter(lab.sockets.current))
    tunnel.say_to_upstream(b"{}")  # and this behind the sound
    duet.client.transport.send(sound[500:])
    duet.upstream.transport.send(delta[500:])
    assert [event.get("type") for event in duet.upstream.events()] == ["input_audio_buffer.append", None]
    assert [event["type"] for event in duet.client.events()] == [
        "response.created", "response.output_audio.delta", "error",
    ]  # fmt: skip
    assert (duet.client.transport.reading, duet.upstream.transport.reading) == (True, True)


def test_what_was_taken_before_the_end_goes_on_and_nothing_that_came_behind_it() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-realtime",))
    duet = Duet(lab)
    lies = b'{"type":"input_audio_buffer.append","audio":"AAAA","type":"response.create"}'
    frames = [bytes((TEXT, 0x80 | 50)) + MASK + _masked(lies[:50]),
              bytes((0x80 | CONTINUATION, 0x80 | len(lies) - 50)) + MASK + _masked(lies[50:])]  # fmt: skip
    good, more = frame(TEXT, b'{"type":"x"}', MASK), frame(TEXT, b'{"type":"response.create"}', MASK)
    duet.client.transport.send(good + frames[0] + frames[1] + more + more)
    got = duet.upstream.transport.take()
    assert got.startswith(good + frames[0])
    assert got[len(good + frames[0]) :][:1] == b"\x88"
    assert len(got) < len(good + frames[0]) + 40
    assert lab.limiter.open == set()
    assert [row["end"] for row in lab.rows] == ["refused"] * 2, "what it asked for, and the connection"


def test_the_upstream_is_not_told_what_a_key_may_not_do() -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-realtime",))
    duet = Duet(lab)
    hello = {"type": "session.created", "session": {"type": "realtime", "model": "gpt-other"}}
    duet.upstream.say(hello)
    assert duet.upstream.closed() == (1001, "")
    first, last = duet.client.take()
    assert (first[0], last[0]) == (TEXT, 8), "the Close is the last that it gets"


# Upstreams that say things twice, or too often, and limiters that take their time.


def test_a_response_that_is_told_of_twice_has_one_row_and_one_reservation() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    for _ in range(2):
        duet.client.say(ASK)
    for _ in range(2):
        duet.upstream.say(created("r1"))
    for _ in range(2):
        duet.upstream.say(completed("r1"))
    duet.upstream.say(created("r1"))
    assert [row["total_tokens"] for row in lab.rows] == [15]
    assert len(lab.limiter.open) == 2, "the connection's and the second one's"
    duet.upstream.say(created("r2"))
    duet.upstream.say(completed("r2"))
    duet.client.transport.hang_up()
    assert [row["total_tokens"] for row in lab.rows] == [15, 15, None]
    assert lab.limiter.open == set()


@pytest.mark.parametrize("refused", [True, False])
def test_however_many_responses_an_upstream_begins_each_has_a_row_and_few_are_kept(refused: bool) -> None:
    lab = metered(rpm=1 if refused else 10_000)
    duet = Duet(lab)
    for number in range(400):
        duet.upstream.say(created(f"r{number}"))
    conversation = next(iter(lab.sockets.current)).conversation
    assert conversation is not None
    assert len(conversation._active) == 256
    duet.upstream.say(done("r399"))
    duet.client.transport.hang_up()
    assert len(lab.rows) == 401


@pytest.mark.parametrize("fault", [None, RateLimitExceeded("Too many.")], ids=["it may", "it may not"])
@pytest.mark.parametrize("when", ["before its end", "after its end", "after the connection's end"])
def test_a_slow_limiters_answer_about_a_response_that_began_by_itself_counts_once(fault: Any, when: str) -> None:
    limiter = SlowLimiter()
    limiter.metered = True
    lab = Lab(limiter=limiter)
    duet = Duet(lab, waits=limiter.answer)
    limiter.fault = fault
    duet.upstream.say(created())
    if when == "before its end":
        limiter.answer()
    if when != "after the connection's end":
        duet.upstream.say(done())
    if when == "after its end":
        limiter.answer()
    told = duet.upstream.events()
    assert told == ([{"type": "response.cancel", "response_id": "resp_1"}] if fault and when[0] == "b" else [])
    duet.client.transport.hang_up()
    if when == "after the connection's end":
        limiter.answer()
    assert limiter.open == set()
    assert len(lab.rows) == 2
    used = when != "after the connection's end"
    assert [one[0] for one in limiter.charged] == ([253] if fault and used else [])


def test_speech_written_down_by_a_model_without_a_price_is_charged_at_the_assumed_one() -> None:
    lab = Lab(default_price=1000.0)
    lab.limiter.metered = True
    duet = Duet(lab)
    usage = {"type": "tokens", "input_tokens": 13, "output_tokens": 9}
    duet.upstream.say({"type": "session.updated", "session": {"model": "gpt-realtime", "audio": {
        "input": {"transcription": {"model": "nobody-knows-it"}}}}})  # fmt: skip
    duet.upstream.say({"type": "conversation.item.input_audio_transcription.completed", "usage": usage})
    ((tokens, cost),) = lab.limiter.charged
    assert tokens == 22
    assert cost == pytest.approx(0.022)
    assert lab.rows[0]["cost_usd"] is None


def test_speech_written_down_in_an_event_of_any_size_is_charged() -> None:
    lab = Lab()
    lab.limiter.metered = True
    duet = Duet(lab)
    duet.upstream.say({
        "type": "conversation.item.input_audio_transcription.completed", "transcript": "x" * 100_000,
        "logprobs": [{"token": "x", "logprob": -0.1}] * 5000,
        "usage": {"type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9},
    })  # fmt: skip
    assert [charge[0] for charge in lab.limiter.charged] == [22]


def test_where_rows_cannot_be_written_and_requests_are_refused_for_it_so_are_responses() -> None:
    lab = Lab()
    duet = Duet(lab, RESPONSES)
    lab.ledger.accepting = False
    duet.client.say(ASK)
    assert duet.client.events()[0]["error"]["code"] == "ledger_unavailable"
    assert duet.upstream.events() == []


def test_sound_in_small_pieces_is_counted_as_it_is_in_large_ones() -> None:
    lab = Lab()
    lab.limiter.metered = True
    duet = Duet(lab)
    piece = {"type": "input_audio_buffer.append", "audio": "A" * 3200}
    for _ in range(1000):
        duet.client.say(piece)
    duet.client.say(CREATE | {"response": {"max_output_tokens": 1}})
    (claimed, _), *_ = lab.limiter.given[-1].claimed
    assert claimed > 500


@pytest.mark.parametrize(
    "changed",
    [dict(endpoints=("/v1/chat/completions",)), dict(upstreams=("azure",)),
     dict(allow_ip=(ip_network("10.0.0.0/8"),))],
    ids=["endpoints", "upstreams", "allow_ip"],
)  # fmt: skip
@pytest.mark.parametrize("target", [REALTIME, b"/v1/live/sounds"])
def test_a_connection_that_its_key_could_no_longer_open_is_closed(changed: dict[str, Any], target: bytes) -> None:
    lab = Lab()
    duet = Duet(lab, target)
    lab.keys.add(KEY, **changed)
    lab.keys.generation += 1
    lab.turns.advance(1.3)
    assert (duet.client.closed() or (0, ""))[0] == 1008
    assert lab.rows[-1]["end"] == "refused"


@pytest.mark.parametrize("target", [REALTIME, RESPONSES])
@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.create", "model": "gpt-other", "response": {}},
        {"type": "response.create", "response": {"service_tier": "priority"}},
        {"type": "session.update", "model": "gpt-other", "session": {"type": "realtime"}},
        {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "gpt-other"}}}}},
        {"type": "transcription_session.update", "session": {"input_audio_transcription": {"model": "gpt-other"}}},
    ],
)
def test_a_model_is_held_against_the_key_wherever_an_event_may_name_one(target: bytes, event: dict[str, Any]) -> None:
    lab = Lab()
    lab.keys.add(KEY, models=("gpt-realtime", "gpt-4o"))
    duet = Duet(lab, target)
    duet.client.say(event)
    passes = target is REALTIME and event.get("response") == {"service_tier": "priority"}
    assert bool(duet.upstream.events()) is passes


@pytest.mark.parametrize(
    ("content", "previous", "passes"),
    [
        ([{"type": "input_text", "text": "shorter, please"}], "resp_1", True),
        ([{"type": "input_file", "file_id": "file-of-others"}], "resp_1", False),
        ([{"type": "input_image", "file_id": "file-of-others"}], "resp_1", False),
        ([{"type": "input_text", "text": "x"}], "resp_of_others", False),
    ],
)
def test_with_the_operators_key_what_steers_a_response_refers_to_nothing_that_others_stored(
    content: Any, previous: str, passes: bool
) -> None:
    lab = Lab(provider_keys={"openai": (b"sk-operators",)})
    duet = Duet(lab, RESPONSES)
    duet.client.say(ASK)
    duet.upstream.say(created())
    duet.upstream.events()
    duet.client.events()
    steer = {"type": "response.steer", "previous_response_id": previous,
             "input": [{"type": "message", "role": "user", "content": content}]}  # fmt: skip
    duet.client.say(steer)
    assert duet.upstream.events() == ([steer] if passes else [])
    told = [event["error"]["code"] for event in duet.client.events()]
    assert told == ([] if passes else ["endpoint_not_allowed"])
