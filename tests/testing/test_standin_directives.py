from __future__ import annotations

import time
from typing import Any

import pytest

from flowstack.testing.standin.faults import HELP, BadDirective, Directives, merge, parse
from flowstack.testing.standin.pattern import pattern
from tests.testing.wire import Client, Process, read, reset, until


def test_directives_are_read_from_a_list_separated_by_semicolons() -> None:
    assert parse(" status=429 ;delay=0.5; drop;;100 ") == Directives(
        status=429, delay=0.5, drop=True, continue_100=True
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nope", "nope"),
        ("status=42", "status"),
        ("status=", "status"),
        ("delay=-1", "delay"),
        ("delay=nan", "delay"),
        ("delay=3601", "delay"),
        ("drop=1", "drop"),
        ("drip=0", "drip"),
        ("chunks=1000001", "chunks"),
        ("coding=deflate", "coding"),
        ("cut=1;cut=2", "cut"),
        ("size=²", "size"),
        ("field=no colon", "field"),
        ("ws-close=70000", "ws-close"),
        ("ws-close=1000 " + "x" * 124, "ws-close"),
        ("ws-protocol=two words", "ws-protocol"),
    ],
)
def test_a_bad_directive_is_named(text: str, named: str) -> None:
    with pytest.raises(BadDirective, match=f"directive '{named}'"):
        parse(text)


def test_directives_in_metadata_complete_those_of_the_header() -> None:
    body = {"metadata": {"stand-in": "status=500; delay=1"}}
    assert merge(parse("delay=2"), body) == Directives(status=500, delay=2)
    header = parse("ws-close=1012 later; field=X-One: 1")
    assert merge(header, body) == Directives(status=500, delay=1, ws_close=(1012, "later"), field=(b"X-One", b"1"))


@pytest.mark.parametrize("body", [None, [], {}, {"metadata": None}, {"metadata": {"stand-in": 3}}])
def test_a_body_without_directives_changes_nothing(body: Any) -> None:
    assert merge(Directives(status=500), body) == Directives(status=500)


@pytest.mark.parametrize("name", ["early", "slow-read=5", "sink", "100", "times=1", "ws-accept"])
def test_a_directive_that_must_come_before_the_body_is_refused_in_metadata(name: str) -> None:
    with pytest.raises(BadDirective, match="header only"):
        merge(Directives(), {"metadata": {"stand-in": name}})


def test_an_unknown_directive_is_answered_with_400_naming_it_and_all_there_are(client: Client) -> None:
    answer = client.chat("Stand-In: frobnicate=3")
    assert answer.status == 400
    message = answer.json["error"]["message"]
    assert "'frobnicate'" in message
    assert all(name in message for name in HELP)


def test_directives_in_the_metadata_of_a_body_are_obeyed(client: Client) -> None:
    assert client.chat(metadata={"stand-in": "status=503"}).status == 503


@pytest.mark.parametrize(
    ("status", "type_", "code"),
    [
        (400, "invalid_request_error", "invalid_value"),
        (401, "invalid_request_error", "invalid_api_key"),
        (403, "request_forbidden", "unsupported_country_region_territory"),
        (404, "invalid_request_error", "model_not_found"),
        (409, "invalid_request_error", "conflict"),
        (422, "invalid_request_error", "unprocessable_entity"),
        (429, "requests", "rate_limit_exceeded"),
        (500, "server_error", None),
        (503, "service_unavailable_error", None),
        (418, "invalid_request_error", None),
        (599, "server_error", None),
    ],
)
def test_a_status_is_answered_with_openais_error_body(client: Client, status: int, type_: str, code: str) -> None:
    answer = client.chat(f"Stand-In: status={status}")
    assert answer.status == status
    assert list(answer.json) == ["error"]
    assert list(answer.json["error"]) == ["message", "type", "param", "code"]
    assert (answer.json["error"]["type"], answer.json["error"]["code"]) == (type_, code)


def test_429_has_what_sdks_decide_a_retry_by(client: Client) -> None:
    answer = client.chat("Stand-In: status=429")
    names = ("retry-after", "retry-after-ms", "x-ratelimit-remaining-requests")
    assert [answer.header(name) for name in names] == ["1", "20", "0"]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_neither_body_nor_length(client: Client, status: int) -> None:
    answer = client.chat(f"Stand-In: status={status}")
    assert (answer.status, answer.rest, answer.header("content-length")) == (status, b"", None)
    assert answer.header("transfer-encoding") is None


def test_delay_holds_the_head_back(client: Client) -> None:
    with client.connect() as sock:
        start = time.monotonic()
        sock.sendall(client.request("GET", "/v1/models", "Stand-In: delay=0.4"))
        assert sock.recv(1).startswith(b"H")
        assert time.monotonic() - start >= 0.39


def test_first_holds_the_body_back_but_not_the_head(client: Client) -> None:
    with client.connect() as sock:
        sock.sendall(client.request("GET", "/v1/models", "Stand-In: first=60"))
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += sock.recv(1)
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    answer = client.ask("GET", "/v1/models", "Stand-In: first=0.4")
    assert answer.json["object"] == "list"
    assert answer.seconds >= 0.39


def test_gap_lies_between_the_events_of_a_stream(client: Client) -> None:
    came = []
    with client.connect() as sock:
        body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a b c"}]}'
        start = time.monotonic()
        sock.sendall(
            client.request("POST", "/v1/chat/completions", "Stand-In: gap=0.2", "Connection: close", body=body)
        )
        while piece := sock.recv(65536):
            came += [time.monotonic()] * piece.count(b"data: ")
    assert len(came) == 6
    # From the start, not from the one before: that may have been seen late.
    assert all(at - start >= 0.2 * number - 0.01 for number, at in enumerate(came))


@pytest.mark.parametrize("count", [0, 1, 40, 5000])
def test_cut_resets_the_connection_after_exactly_n_body_bytes(client: Client, count: int) -> None:
    answer = client.ask("GET", "/v1/models", f"Stand-In: size=9000; cut={count}")
    assert answer.end == "reset"
    assert answer.header("content-length") == "9000"
    assert answer.rest == b"".join(pattern(count))


def test_cut_in_a_stream_leaves_no_last_chunk(client: Client) -> None:
    answer = client.chat("Stand-In: chunks=20; cut=900", stream=True)
    assert answer.end == "reset"
    assert sum(len(chunk) for chunk in answer.chunks) == 900
    assert answer.chunks[-1] != b""


@pytest.mark.parametrize("count", [0, 40])
def test_close_ends_the_connection_in_order_after_exactly_n_body_bytes(client: Client, count: int) -> None:
    answer = client.ask("GET", "/v1/models", f"Stand-In: size=9000; close={count}")
    assert (answer.end, answer.header("content-length")) == ("closed", "9000")
    assert answer.rest == b"".join(pattern(count))


def test_a_cut_beyond_the_end_comes_after_the_last_byte(client: Client) -> None:
    answer = client.ask("GET", "/v1/models", "Stand-In: size=100; cut=900")
    assert (answer.end, answer.rest) == ("reset", b"".join(pattern(100)))


def test_drop_answers_with_no_byte(client: Client) -> None:
    answer = client.chat("Stand-In: drop")
    assert (answer.raw, answer.end) == (b"", "closed")


def test_garbage_is_no_http(client: Client) -> None:
    answer = client.chat("Stand-In: garbage")
    assert answer.raw == b"\x00\xffthis is no HTTP\x00\r\n\r\n"
    assert answer.end == "closed"


def test_hang_sends_the_head_and_then_nothing(client: Client) -> None:
    answer = client.chat("Stand-In: hang", limit=3)
    assert (answer.status, answer.rest, answer.end) == (200, b"", "timeout")


def test_drip_writes_one_byte_at_a_time(client: Client) -> None:
    answer = client.chat("Stand-In: drip=1; gap=0.001; chunked; cut=50")
    assert [len(chunk) for chunk in answer.chunks] == [1] * 50


def test_chunks_sets_the_number_of_words_and_of_tokens(client: Client) -> None:
    answer = client.chat("Stand-In: chunks=7", text="one two")
    assert answer.json["choices"][0]["message"]["content"] == "one two one two one two one"
    assert answer.json["usage"]["completion_tokens"] == 7


def test_cached_and_reasoning_show_in_the_usage(client: Client) -> None:
    usage = client.chat("Stand-In: cached=2; reasoning=10").json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 10
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 13, 16)


def test_size_gives_n_bytes_of_the_pattern(client: Client) -> None:
    answer = client.ask("GET", "/v1/models", "Stand-In: size=200001")
    assert answer.header("content-length") == "200001"
    assert answer.rest == b"".join(pattern(200_001, 4096))


def test_the_pattern_is_the_same_in_any_pieces_and_holds_every_byte() -> None:
    whole = b"".join(pattern(150_000))
    assert whole == b"".join(pattern(150_000, 7)) and set(whole) == set(range(256))


def test_a_large_answer_waits_for_the_client_and_is_not_held_in_memory(client: Client, standin_process: Any) -> None:
    def resident() -> int:
        with open(f"/proc/{standin_process.popen.pid}/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    with client.connect() as sock:
        tagged = ("Stand-In: size=1000000000", "X-Client-Tag: large")
        sock.sendall(client.request("GET", "/v1/models", *tagged))
        sock.recv(1)
        last = -1
        while last != (last := client.seen("large")[0]["bytes_out"]):
            time.sleep(0.3)  # until it stands still: two looks apart give the same
        assert 0 < last < 100_000_000
        assert resident() - before < 16 * 1024 * 1024


@pytest.mark.parametrize("name", ["until-close", "no-length"])
def test_until_close_has_no_framing_but_the_end(client: Client, name: str) -> None:
    answer = client.raw(client.request("GET", "/v1/models", f"Stand-In: {name}"))
    assert (answer.header("content-length"), answer.header("transfer-encoding")) == (None, None)
    assert (answer.header("connection"), answer.end) == ("close", "closed")
    assert answer.json["object"] == "list"


def test_chunked_takes_the_length_away(client: Client) -> None:
    answer = client.ask("GET", "/v1/models", "Stand-In: chunked")
    assert (answer.header("content-length"), answer.header("transfer-encoding")) == (None, "chunked")
    assert answer.json["object"] == "list"


def test_early_answers_before_the_body_and_closes(client: Client) -> None:
    head = client.request("POST", "/v1/files", "Stand-In: early; status=429", "Content-Length: 1000000")
    answer = client.raw(head + b"some of it")
    assert (answer.status, answer.header("connection"), answer.end) == (429, "close", "closed")


def test_slow_read_takes_the_body_no_faster_than_asked(client: Client) -> None:
    answer = client.ask("POST", "/v1/files", "Stand-In: sink; slow-read=500000", body=bytes(400_000))
    assert answer.json["bytes"] == 400_000
    assert answer.seconds >= 0.6


def test_slow_read_makes_the_sender_wait() -> None:
    sent = 0
    with Process("--listen", "tcp:0") as process, (slow := Client(process.port)).connect() as sock:
        sock.sendall(slow.request("POST", "/v1/files", "Stand-In: sink; slow-read=1000", "Content-Length: 900000000"))
        sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            while sent < 900_000_000:
                sent += sock.send(bytes(65536))
        assert sent < 20_000_000
        assert slow.state()["last"][0]["body_bytes"] < 100_000
        assert process.stop() == (0, "")


def test_sink_takes_a_body_longer_than_is_kept_and_without_it_that_is_413(client: Client) -> None:
    size = 64 * 1024 * 1024 + 1
    kept = client.ask("POST", "/v1/files", body=bytes(size), limit=120)
    assert (kept.status, str(size) in kept.json["error"]["message"]) == (413, True)
    assert client.ask("POST", "/v1/files", "Stand-In: sink", body=bytes(size), limit=120).json["bytes"] == size


def test_100_is_sent_where_asked_for_and_where_expected(client: Client) -> None:
    for line in ("Stand-In: 100", "Expect: 100-continue"):
        answer = client.ask("POST", "/v1/moderations", line, body=b'{"input": "x"}')
        assert answer.raw.startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\n")
    assert client.ask("POST", "/v1/moderations", body=b'{"input": "x"}').status == 200


def test_a_client_that_waits_for_100_gets_it_before_it_sends_the_body(client: Client) -> None:
    with client.connect() as sock:
        sock.sendall(client.request("POST", "/v1/moderations", "Expect: 100-continue", "Content-Length: 14"))
        assert sock.recv(12) == b"HTTP/1.1 100"


def test_103_comes_before_the_head(client: Client) -> None:
    answer = client.ask("GET", "/v1/models", "Stand-In: 103")
    assert answer.raw.startswith(b"HTTP/1.1 103 \r\nLink: </stand-in>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_times_lets_a_fault_pass_after_n_requests_of_a_tag(client: Client) -> None:
    def statuses(tag: str) -> list[int]:
        lines = ("Stand-In: status=500; times=2", f"X-Client-Tag: {tag}")
        return [client.chat(*lines).status for _ in range(4)]

    assert statuses("times-a") == [500, 500, 200, 200]
    assert statuses("times-b") == [500, 500, 200, 200]


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("directive", ["delay=60", "first=60", "hang", "size=1000000000", "chunks=100000; gap=0.05"])
def test_a_client_that_leaves_is_noticed_wherever_the_answer_stands(client: Client, directive: str, end: str) -> None:
    sock = client.connect()
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a b c"}]}'
    tagged = (f"Stand-In: {directive}", f"X-Client-Tag: gone {directive} {end}".replace(" ", "-"))
    sock.sendall(client.request("POST", "/v1/chat/completions", *tagged, body=body))
    until(lambda: client.state()["requests"] == 1)
    assert client.state()["open_connections"] == 1
    sock.close() if end == "close" else reset(sock)
    until(lambda: client.state()["client_aborts"] == 1)
    state = client.state()
    assert (state["open_connections"], state["last"][0]["end"]) == (0, "client_gone")
    assert state["last"][0]["gone_at"] >= state["last"][0]["started_at"]


def test_a_response_after_a_fault_free_one_comes_on_the_same_connection(client: Client) -> None:
    first = client.request("GET", "/v1/models/gpt-4o")
    last = client.request("GET", "/v1/models/o3", "Connection: close")
    with client.connect() as sock:
        sock.sendall(first + last)
        answer = read(sock, time.monotonic(), 10)
    assert (answer.raw.count(b"HTTP/1.1 200 OK\r\n"), answer.raw.count(b'"id": "gpt-4o"')) == (2, 1)
    assert client.state()["connections_total"] == 1
