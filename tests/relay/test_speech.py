"""Speech on a Realtime WebSocket that is written down: it fits the key's tokens and money, whatever a client sends."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.errors import BudgetExceeded
from flowstack.http.frames import PONG, TEXT, frame
from flowstack.keys import Budget, digest
from flowstack.relay.speech import BLOCK, LASTS, Speech
from tests.relay.lab import KEY, Lab, SlowLimiter
from tests.relay.sockets import MASK, REALTIME, RESPONSES, Duet
from tests.relay.test_conversation import CREATE, created, done, metered
from tests.relay.test_sideband import HEARD, Sideband, begin, hangups

SECOND = 64_000
"""Bytes of sound in base64, as Realtime takes it unless told otherwise: 24,000 samples of two bytes."""

TRANSCRIBER = "gpt-4o-transcribe"
COMMIT = {"type": "input_audio_buffer.commit"}


def session(model: str | None = TRANSCRIBER, kind: str = "session.updated", **heard: Any) -> dict[str, Any]:
    hears = {} if model is None else {"transcription": {"model": model}}
    return {"type": kind, "session": {"type": "realtime", "model": "gpt-realtime", "audio": {"input": hears | heard}}}


def sound(seconds: float, rate: int = SECOND) -> bytes:
    return b'{"type":"input_audio_buffer.append","audio":"' + b"A" * round(seconds * rate) + b'"}'


def committed(item: str = "item_1") -> dict[str, Any]:
    return {"type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": None}


def written(seconds: float, item: str = "item_1", text: int | None = None) -> dict[str, Any]:
    heard, said = round(10 * seconds), round(4 * seconds) if text is None else text
    return {
        "type": "conversation.item.input_audio_transcription.completed", "item_id": item, "transcript": "hello",
        "usage": {"type": "tokens", "total_tokens": heard + said, "input_tokens": heard, "output_tokens": said,
                  "input_token_details": {"text_tokens": 0, "audio_tokens": heard}},
    }  # fmt: skip


def money(dollars: str) -> Lab:
    return metered(budget=Budget(Decimal(dollars), "day"))


def used(lab: Lab) -> int:
    """What counts of the key's limit now: tokens, or billionths of a dollar."""
    limiter: Any = lab.relay._services.limiter
    (standing,) = limiter.standings(lab.keys.keys[digest(KEY)])
    return int(standing.used)


def costs(lab: Lab) -> float:
    return sum(row["cost_usd"] or 0 for row in lab.rows)


def pass_time(duet: Duet, seconds: float) -> None:
    """Both sides live."""
    duet.lab.turns.advance(seconds)
    duet.upstream.transport.send(frame(PONG, b""))
    duet.client.transport.send(frame(PONG, b"", MASK))


def turn(duet: Duet, item: str, seconds: float = 6.0) -> bool:
    """Speak, and have it written down, if it passed."""
    for _ in range(round(10 * seconds)):
        duet.client.say(sound(0.1))
    passed = len(duet.upstream.events())
    if passed:
        duet.client.say(COMMIT)
        duet.upstream.events()
        duet.upstream.say(committed(item))
        duet.upstream.say(written(passed / 10, item))
    return passed == round(10 * seconds)


def test_turns_that_are_written_down_fit_the_budget() -> None:
    lab = money("0.01")
    duet = Duet(lab)
    duet.upstream.say(session())
    duet.client.events()
    passed = [turn(duet, f"item_{number}") for number in range(60)]
    assert passed[0] and not passed[-1]
    assert 0.01 - 2 * 0.0016 < costs(lab) <= 0.01  # and two blocks do not fit
    refused = [event for event in duet.client.events() if event["type"] == "error"]
    assert {event["error"]["code"] for event in refused} == {"flowstack_budget_exceeded"}
    assert all(row["model_requested"] == TRANSCRIBER for row in lab.rows)
    assert lab.sockets.current  # it lives on, for what costs nothing


def test_turns_that_are_written_down_fit_the_tokens_of_a_minute() -> None:
    lab = metered(tpm=1_000)
    duet = Duet(lab)
    duet.upstream.say(session())
    while turn(duet, "item"):
        assert used(lab) <= 1_000
    told = [event for event in duet.client.events() if event["type"] == "error"]
    assert told[-1]["error"]["code"] == "flowstack_rate_limit_exceeded"
    for _ in range(6):
        pass_time(duet, 20)
    duet.client.say(sound(0.1))
    assert len(duet.upstream.events()) == 1


def test_what_was_reserved_and_was_not_written_down_is_given_back_at_the_end() -> None:
    lab = money("1")
    duet = Duet(lab)
    duet.upstream.say(session())
    turn(duet, "item_1")
    duet.client.say(sound(3))
    assert used(lab) > 1e9 * costs(lab)
    duet.client.transport.hang_up()
    lab.turns.settle()
    assert used(lab) == pytest.approx(1e9 * costs(lab), abs=1)
    assert [row["end"] for row in lab.rows] == ["complete", "client_gone"]


def test_a_turn_that_is_being_written_down_at_the_end_keeps_its_estimate_and_has_a_row() -> None:
    lab = money("1")
    duet = Duet(lab)
    duet.upstream.say(session())
    duet.client.say(sound(20))
    duet.client.say(COMMIT)
    duet.upstream.say(committed())
    held = used(lab)
    assert held > 0
    duet.client.transport.hang_up()
    lab.turns.settle()
    assert used(lab) == held
    speech, connection = lab.rows
    assert (speech["end"], speech["usage_source"], speech["model_requested"]) == ("client_gone", "none", TRANSCRIBER)
    assert speech["parent_request_id"] == connection["request_id"]


def test_a_turn_that_could_not_be_written_down_is_neither_charged_nor_waited_for() -> None:
    lab = money("1")
    duet = Duet(lab)
    duet.upstream.say(session())
    duet.client.say(sound(5))
    duet.upstream.say(committed())
    failed = {"type": "conversation.item.input_audio_transcription.failed", "item_id": "item_1", "error": {"code": "x"}}
    duet.upstream.say(failed)
    duet.client.transport.hang_up()
    lab.turns.settle()
    assert used(lab) == 0
    assert len(lab.rows) == 1


def test_silence_is_given_back_after_a_while() -> None:
    lab = money("1")
    duet = Duet(lab)
    duet.upstream.say(session())
    held = []
    for _ in range(6):
        for _ in range(round(LASTS / 60)):
            duet.client.say(sound(20))
            pass_time(duet, 20)
        held.append(used(lab))
    assert max(held[3:]) <= 1.1 * held[2]
    assert not [event for event in duet.client.events() if event["type"] == "error"]


@pytest.mark.parametrize("form", [{"format": {"type": "audio/pcmu"}}, {"format": {"type": "audio/pcma"}}, "beta"])
@pytest.mark.parametrize("told", [True, False])
def test_sound_as_telephones_have_it_is_more_seconds_a_byte(told: bool, form: Any) -> None:
    lab = metered(tpm=100_000)
    duet = Duet(lab)
    hears = session()["session"]
    if form == "beta":
        hears = {"input_audio_format": "g711_ulaw", "input_audio_transcription": {"model": "whisper-1"}}
    else:
        hears["audio"]["input"] |= form
    if told:
        duet.upstream.say({"type": "session.created", "session": hears})
    else:
        duet.client.say({"type": "session.update", "session": hears})
    duet.client.say(sound(60, 10_667))
    assert 1_190 < used(lab) < 1_300  # 600 tokens of sound, and as many of text


def test_a_transcription_that_the_client_has_just_asked_for_counts() -> None:
    lab = metered(tpm=1_000)
    duet = Duet(lab)
    duet.client.say(session(kind="session.update"))
    duet.client.say(sound(60))
    assert duet.client.events()[0]["error"]["code"] == "flowstack_rate_limit_exceeded"
    assert len(duet.upstream.events()) == 1


def test_sound_that_was_sent_before_it_was_to_be_written_down_counts_with_what_follows() -> None:
    lab = metered(tpm=1_000)
    duet = Duet(lab)
    duet.upstream.say(session(None))
    duet.client.say(sound(60))
    assert used(lab) == 0
    duet.client.say(session(kind="session.update"))
    duet.client.say(COMMIT)
    assert duet.client.events()[-1]["error"]["code"] == "flowstack_rate_limit_exceeded"


def test_what_nobody_writes_down_reserves_nothing() -> None:
    lab = metered(tpm=1_000)
    duet = Duet(lab)
    duet.upstream.say(session(None))
    for number in range(10):
        duet.client.say(sound(60))
        duet.client.say(COMMIT)
        duet.upstream.say(committed(f"item_{number}"))
    duet.upstream.say(session())
    duet.client.say(sound(0.1))
    assert [event for event in duet.client.events() if event["type"] == "error"] == []
    assert used(lab) == 2 * BLOCK
    assert lab.rows == []


@pytest.mark.parametrize("exit", ["clear", "time", "committed"])
def test_silence_before_speech_is_to_be_written_down_does_not_shut_a_client_out(exit: str) -> None:
    lab = metered(tpm=2_000)
    duet = Duet(lab)
    duet.upstream.say(session(None))
    for _ in range(100):
        duet.client.say(sound(20))
    duet.upstream.say(session())
    duet.client.say(sound(0.1))
    assert duet.client.events()[-1]["error"]["code"] == "flowstack_rate_limit_exceeded"
    duet.upstream.events()
    if exit == "clear":
        duet.client.say({"type": "input_audio_buffer.clear"})
        duet.upstream.events()
    elif exit == "time":
        for _ in range(round(LASTS / 20)):
            pass_time(duet, 20)
    else:
        duet.upstream.say(session(None))
        duet.upstream.say(committed())
        duet.upstream.say(session())
    duet.client.say(sound(0.1))
    assert len(duet.upstream.events()) == 1


def test_speech_that_is_charged_by_the_second_gives_back_what_was_reserved() -> None:
    lab = money("1")
    duet = Duet(lab)
    duet.upstream.say(session("whisper-1"))
    for number in range(20):
        duet.client.say(sound(20))
        duet.client.say(COMMIT)
        duet.upstream.say(committed(f"item_{number}"))
        event = written(20, f"item_{number}")
        duet.upstream.say(event | {"usage": {"type": "duration", "seconds": 20}})
    assert [row["cost_usd"] for row in lab.rows] == [pytest.approx(0.002)] * 20
    assert used(lab) == pytest.approx(1e9 * costs(lab), abs=20)


def test_an_update_that_names_no_transcription_has_nothing_reserved_for_speech() -> None:
    lab = metered(tpm=1_000)
    duet = Duet(lab)
    update = {"type": "session.update", "session": {"type": "realtime", "model": "gpt-realtime", "voice": "none"}}
    duet.client.say(update)
    duet.upstream.say({"type": "error", "error": {"type": "invalid_request_error", "code": "invalid_value"}})
    for _ in range(10):
        duet.client.say(sound(60))
    assert [event["type"] for event in duet.client.events()] == ["error"]
    assert used(lab) == 0


class SlowLater(SlowLimiter):
    """At once, until it is slow."""

    slow = False

    def reserve(self, *asked: Any, **options: Any) -> Any:
        return super().reserve(*asked, **options) if self.slow else self.take(*asked, **options)


def test_a_call_asks_a_limiter_that_takes_its_time_once() -> None:
    limiter = SlowLater()
    limiter.metered = True
    lab = Lab(limiter=limiter, upstreams=(HEARD,))
    lab.keys.add(KEY, endpoints=("/v1/realtime*",))
    begin(lab)
    aside = Sideband(lab)
    limiter.slow = True
    for _ in range(3):
        aside.end.say(session())
    assert limiter.waiting == 1
    limiter.fault = BudgetExceeded("It is used up.")
    limiter.answer()
    assert (lab.rows[-1]["end"], lab.rows[-1]["error_code"]) == ("refused", "flowstack_budget_exceeded")


def test_a_microphone_of_a_key_without_limits_waits_for_nothing() -> None:
    lab = metered(rpm=10)
    duet = Duet(lab)
    duet.upstream.say(session())
    data = frame(TEXT, sound(1), MASK)
    duet.client.transport.send(data[:5000])
    assert duet.upstream.transport.take() == data[:5000]


def test_sound_waits_for_a_limiter_that_takes_its_time() -> None:
    limiter = SlowLimiter()
    limiter.metered = True
    lab = Lab(limiter=limiter)
    duet = Duet(lab, waits=limiter.answer)
    duet.upstream.say(session())
    duet.client.say(sound(1))
    duet.client.say(COMMIT)
    assert duet.upstream.events() == [] and limiter.waiting == 1
    limiter.answer()
    assert len(duet.upstream.events()) == 2
    duet.client.say(sound(60))
    duet.client.transport.hang_up()
    limiter.answer()
    lab.turns.settle()
    assert limiter.open == set()


@pytest.mark.parametrize("told", ["created", "update"])
def test_what_the_session_says_counts_with_each_response(told: str) -> None:
    lab = metered(tpm=20_000)
    duet = Duet(lab)
    long = {"type": "realtime", "instructions": "i" * 30_000, "max_output_tokens": 100,
            "tools": [{"type": "function", "name": "f", "description": "d" * 30_000}]}  # fmt: skip
    if told == "created":
        duet.upstream.say({"type": "session.created", "session": long})
    else:
        duet.client.say({"type": "session.update", "session": long})
    create = CREATE | {"response": {"max_output_tokens": 100}}
    duet.client.say(create)
    assert 15_000 < used(lab) < 15_300
    duet.client.say(create)
    assert duet.client.events()[-1]["error"]["code"] == "flowstack_rate_limit_exceeded"
    duet.upstream.say(created())
    duet.upstream.say(done())
    duet.upstream.say({"type": "session.updated", "session": {"type": "realtime", "instructions": "short"}})
    before = used(lab)
    duet.client.say(create)
    assert used(lab) - before < 600


def test_tools_that_bring_input_of_their_own_count_as_a_whole_context() -> None:
    lab = metered(tpm=500_000)
    duet = Duet(lab)
    tools = [{"type": "mcp", "server_label": "s", "server_url": "https://mcp.example/"}]
    duet.upstream.say({"type": "session.created", "session": {"type": "realtime", "tools": tools}})
    duet.client.say(CREATE)
    assert used(lab) > 128_000


def test_what_a_response_apart_used_says_nothing_of_the_conversation() -> None:
    lab = metered(tpm=1_000_000)
    duet = Duet(lab)
    usage = {"total_tokens": 30_000, "input_tokens": 29_000, "output_tokens": 1_000}
    duet.client.say(CREATE)
    duet.upstream.say(created("r1"))
    duet.upstream.say(done("r1", usage=usage))
    apart = {"type": "response.create", "response": {"conversation": "none", "input": []}}
    duet.client.say(apart)
    duet.upstream.say(created("r2"))
    duet.upstream.say(done("r2", usage={"total_tokens": 10, "input_tokens": 5, "output_tokens": 5}))
    before = used(lab)
    duet.client.say(CREATE)
    assert used(lab) - before > 30_000


def test_a_client_cannot_have_updates_of_its_session_pile_up() -> None:
    lab = metered(tpm=10_000_000)
    duet = Duet(lab)
    for _ in range(300):
        duet.client.say(session(kind="session.update"))
    assert duet.client.events()[-1]["error"]["code"] == "overloaded"
    assert len(duet.upstream.events()) == 256


@pytest.mark.parametrize("target", [REALTIME, RESPONSES])
def test_an_event_that_cannot_be_read_passes_and_the_log_tells_once(target: bytes, logged: list[str]) -> None:
    lab = Lab()
    duet = Duet(lab, target)
    text = b'{"type":"response.done","response":{"id":"r1","output":' + b"[" * 2_000
    for _ in range(3):
        duet.upstream.say(text)
    assert [payload for _, payload in duet.client.take()] == [text] * 3
    assert sum("could not be read" in line for line in logged) == 1


def test_beyond_as_many_responses_as_are_kept_their_usage_is_counted_all_the_same() -> None:
    lab = metered(tpm=100_000_000)
    duet = Duet(lab)
    for number in range(300):
        duet.upstream.say(created(f"r{number}"))
    stopped = [event for event in duet.upstream.events() if event["type"] == "response.cancel"]
    assert len(stopped) == 300 - 256
    for number in range(300):
        duet.upstream.say(done(f"r{number}"))
    assert [row["total_tokens"] for row in lab.rows] == [253] * 300
    assert used(lab) == 300 * 253


RATE = 10 * 6e-6 + 4 * 1e-5
"""Dollars of a second of speech, as :func:`written` has it."""


class Writer:
    """An upstream that writes down what it gets, one turn after the other, when it is told to."""

    def __init__(self, duet: Duet) -> None:
        self.duet = duet
        self.transcribes = False
        self.buffer = 0.0  # seconds
        self.turns: list[tuple[str, float]] = []
        self.count = 0
        self.before = 0.0  # seconds in the buffer that were sent before they were to be written down
        self.unseen = 0.0  # of those, what is written down all the same before anything else is sent

    def work(self) -> None:
        for event in self.duet.upstream.events():
            match event["type"]:
                case "input_audio_buffer.append":
                    self.buffer += len(event["audio"]) / SECOND
                    self.before = self.before if not self.transcribes else 0
                case "input_audio_buffer.clear":
                    self.buffer = self.before = 0
                case "input_audio_buffer.commit":
                    self.before = 0
                    self.commit()
                case "session.update":
                    transcribes = "transcription" in event["session"]["audio"]["input"]
                    self.before = self.before if self.transcribes else self.buffer
                    self.transcribes = transcribes
                    self.duet.upstream.say(session(TRANSCRIBER if self.transcribes else None))

    def commit(self) -> None:
        self.count += 1
        item = f"item_{self.count}"
        if self.transcribes:
            self.turns.append((item, self.buffer))
            self.unseen += self.before
        self.buffer = self.before = 0
        self.duet.upstream.say(committed(item))

    def write(self) -> None:
        if self.turns:
            item, seconds = self.turns.pop(0)
            self.duet.upstream.say(written(seconds, item))

    @property
    def owed(self) -> float:
        """Dollars of what is being written down."""
        return RATE * sum(seconds for _, seconds in self.turns)


ACTS = st.one_of(
    st.tuples(st.just("speak"), st.integers(1, 150)),
    st.tuples(st.sampled_from(("commit", "clear", "write", "wait", "on", "off", "voice")), st.integers(0, 60)),
)


@given(st.lists(ACTS, max_size=40), st.booleans())
def test_whatever_is_sent_the_budget_holds_and_nothing_stays_reserved(
    acts: list[tuple[str, int]], leaves: bool
) -> None:
    """Where the upstream ends turns by itself as where the client does."""
    lab = money("0.02")
    duet = Duet(lab)
    writer = Writer(duet)
    duet.client.say(session(kind="session.update"))
    writer.work()
    for act, amount in acts:
        if act == "speak":
            duet.client.say(sound(amount / 10))
        elif act == "commit":
            duet.client.say(COMMIT)
        elif act == "clear":
            duet.client.say({"type": "input_audio_buffer.clear"})
        elif act == "write":
            writer.write()
        elif act == "voice":
            if writer.buffer:
                writer.commit()
        elif act == "wait":
            pass_time(duet, amount / 3)
        else:
            duet.client.say(session(TRANSCRIBER if act == "on" else None, kind="session.update"))
        writer.work()
        assert costs(lab) + writer.owed <= 0.02 + RATE * writer.unseen + 1e-9
        assert used(lab) + 1 >= 1e9 * costs(lab)
    while writer.turns:
        writer.write()
    (duet.client if leaves else duet.upstream).transport.hang_up()
    lab.turns.settle()
    assert used(lab) == pytest.approx(1e9 * costs(lab), abs=100)


# A call, of which the sound goes another way.


def test_a_call_whose_transcriptions_use_up_the_budget_is_ended() -> None:
    lab = metered((HEARD,), budget=Budget(Decimal("0.05"), "day"), endpoints=("/v1/realtime*",))
    begin(lab)
    aside = Sideband(lab)
    aside.end.say(session())
    number = 0
    while lab.sockets.current:
        aside.end.say(written(20, f"item_{number}"))
        number += 1
    connection = lab.rows[-1]
    assert (connection["end"], connection["error_code"]) == ("refused", "flowstack_budget_exceeded")
    assert 0.03 < costs(lab) <= 0.05
    lab.turns.advance(0.01)
    assert len(hangups(lab)) == 1


# Blocks.


class Block:
    def __init__(self, size: int, came: float) -> None:
        self.size, self.came = size, came


@given(st.lists(st.tuples(st.sampled_from(("send", "write", "wait")), st.integers(0, 5_000)), max_size=200))
def test_what_passed_and_is_not_written_down_is_always_reserved_for(acts: list[tuple[str, int]]) -> None:
    """For whatever a client sends, and the upstream writes down of it. Both are counted here a second time."""
    speech, now = Speech(), 0.0
    sent: list[tuple[float, int]] = []
    held: set[Block] = set()
    wrote = 0
    for act, amount in acts:
        if act == "wait":
            now += amount / 10
        elif act == "write":
            amount = min(amount, sum(tokens for _, tokens in sent) - wrote)
            wrote += amount
            held -= set(speech.written(amount))
        else:
            held -= set(speech.expire(now))
            if missing := speech.missing(amount):
                held.add(block := Block(missing, now))
                speech.hold(block)
            speech.passes(amount, now)
            sent.append((now, amount))
        fresh = sum(tokens for at, tokens in sent if at + LASTS > now)
        if act == "send":
            assert sum(block.size for block in held) >= min(fresh, sum(tokens for _, tokens in sent) - wrote)
    assert set(speech.end()) == held
    assert not speech


def test_however_much_is_sent_at_once_there_are_few_blocks() -> None:
    speech, blocks = Speech(), 0
    for _ in range(200_000):
        if missing := speech.missing(100):
            speech.hold(Block(missing, 0.0))
            blocks += 1
        speech.passes(100, 0.0)
    assert blocks < 800
