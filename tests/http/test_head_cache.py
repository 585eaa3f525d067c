"""What is read from a head is the same whether or not its client sent one like it before."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.errors import FlowstackError
from flowstack.http.head_cache import MAX_BYTES, MAX_SHAPES, MISSES, PAUSE, KnownHeads, RequestHeads, ResponseHeads
from flowstack.http.headers import lines_of, response_pairs
from flowstack.http.heads import RequestHead, ResponseHead, parse_request, parse_response


def head(length: bytes = b"5", line: bytes = b"POST /v1/x HTTP/1.1", name: bytes = b"Content-Length: ") -> bytes:
    return line + b"\r\nHost: a\r\nX-A: 1\r\n" + name + length + b"\r\nX-B: 2\r\n\r\n"


class Heads:
    """One connection's, of which there are others."""

    def __init__(self, known: KnownHeads | None = None, client: str = "192.0.2.1", secure: bool = False) -> None:
        self.own = RequestHeads(KnownHeads() if known is None else known)
        self.whose = client, secure

    def read(self, data: bytes) -> RequestHead:
        return self.own.read(data, *self.whose)


def _of(found: RequestHead | ResponseHead, name: str) -> Any:
    return dict(found.by_name) if name == "by_name" else getattr(found, name)


def values(found: RequestHead | ResponseHead) -> list[Any]:
    names = ["minor", "pairs", "by_name", "repeated", "length", "keep_alive"]
    if isinstance(found, RequestHead):
        return [_of(found, name) for name in (*names, "method", "target", "expects")]
    return [passed_on(found), *(_of(found, name) for name in (*names, "status", "reason", "chunked"))]


def passed_on(found: ResponseHead) -> list[Any]:
    """What goes back to the client, which is the same whatever was asked before."""
    lines = found.onward()
    pairs = response_pairs(found)
    assert lines == lines_of(pairs) == found.onward()
    return pairs


def outcome(read: Any, *data: bytes) -> Any:
    try:
        return values(read(*data))
    except FlowstackError as error:
        return type(error), error.message


class Watched:
    """Heads, and those among them that were read anew."""

    def __init__(self, heads: Heads | ResponseHeads) -> None:
        self.heads: Any = heads
        self.anew: list[bytes] = []
        self._caches: list[Any] = []

    def read(self, data: bytes, *method: bytes) -> Any:
        found = self.heads.read(data, *method)
        if isinstance(found, RequestHead):
            anew = found.cache is None or all(found.cache is not cache for cache in self._caches)
            self._caches.append(found.cache)
        else:
            anew = type(found) is ResponseHead
        if anew:
            self.anew.append(data)
        return found


def test_a_head_that_differs_in_its_length_only_is_not_read_anew() -> None:
    heads = Watched(Heads())
    for length in (b"5", b"5", b"17", b"999999999999999999", b"1"):
        data = head(length)
        assert values(heads.read(data)) == values(parse_request(data))
    assert heads.anew == [head()]


def test_a_head_is_known_from_the_clients_other_connections_and_nobody_elses() -> None:
    known = KnownHeads()
    connections = [
        Heads(known, client, secure)
        for client, secure in [("192.0.2.1", False), ("192.0.2.1", False), ("192.0.2.1", True), ("192.0.2.2", False)]
    ]
    caches = [one.read(head(b"%d" % number)).cache for number, one in enumerate(connections, 1)]
    assert caches[0] is caches[1]
    assert len(set(caches)) == 3


def test_a_head_is_forgotten_with_the_last_connection_that_had_it() -> None:
    known = KnownHeads()
    first, second = Heads(known), Heads(known)
    for one in (first, second):
        one.read(head())
    del one, first
    assert len(known) == 1
    second.read(head(line=b"POST /v1/y HTTP/1.1"))
    assert [line for *_, line, _ in known] == [b"POST /v1/y HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nContent-Length: "]
    del second
    assert len(known) == 0


@pytest.mark.parametrize(
    "length",
    [b"", b"0", b"05", b"00", b"1" * 19, b"-1", b"+1", b"5x", b"x", b"5 ", b" 5", b"5\t", b"5, 5", b"5\r\nX: 1",
     b"\xb2", b"5\r\nContent-Length: 5", b"5\r\nTransfer-Encoding: chunked", b"5\r\n Y", b"5\nX: 1", b"5\x00",
     b"1_0", b"0x5"],
)  # fmt: skip
def test_what_is_no_plain_length_is_read_with_all_care(length: bytes) -> None:
    heads = Heads()
    for _ in range(3):
        heads.read(head())
    assert outcome(heads.read, head(length)) == outcome(parse_request, head(length))
    assert values(heads.read(head(b"7"))) == values(parse_request(head(b"7")))


def test_a_head_is_not_another_ones_although_it_begins_and_ends_like_it() -> None:
    heads = Heads()
    for _ in range(3):
        heads.read(head(b"11"))
    data = head(b"11")
    at = data.index(b"11")
    for short in (data[: at + 1] + data[at + 3 :], data[:at] + data[at + 4 :], data[:at] + data[at + 1 :]):
        assert outcome(heads.read, short) == outcome(parse_request, short)


def test_who_changes_a_heads_fields_changes_no_other_heads() -> None:
    heads = Heads()
    for _ in range(4):
        found = heads.read(head())
        assert values(found) == values(parse_request(head()))
        found.pairs.append((b"X-C", b"3"))
        found.by_name[b"x-c"] = b"3"


def test_where_heads_keep_changing_they_are_not_compared_for_ever() -> None:
    heads = Watched(Heads())
    for number in range(2 * MISSES):
        heads.read(head(line=b"POST /v1/%d HTTP/1.1" % number))
    heads.anew.clear()
    for _ in range(3):
        heads.read(head())
    assert len(heads.anew) == 3


def test_a_head_that_changes_now_and_then_is_compared_on() -> None:
    heads = Watched(Heads())
    for number in range(3 * MISSES):
        for _ in range(3):
            heads.read(head(line=b"POST /v1/%d HTTP/1.1" % number))
    assert len(heads.anew) == 3 * MISSES


PIECES = st.sampled_from([head(), head(b"12"), head(b"0"), head(b"007"), head(name=b"content-length: "),
                          head(name=b"Content-Length:"), head(b"chunked", name=b"Transfer-Encoding: "),
                          head(line=b"POST /v1/y HTTP/1.1"), head(line=b"GET /v1/x HTTP/1.0"),
                          b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])  # fmt: skip


@given(st.lists(PIECES | st.tuples(PIECES, st.integers(0, 90), st.binary(max_size=3)), max_size=12))
def test_a_sequence_of_heads_is_read_as_each_would_be_alone(
    sequence: list[bytes | tuple[bytes, int, bytes]],
) -> None:
    heads = Heads()
    for each in sequence:
        data = each if isinstance(each, bytes) else each[0][: each[1]] + each[2] + each[0][each[1] :]
        if data.count(b"\r\n\r\n") == 1 and data.endswith(b"\r\n\r\n"):
            assert outcome(heads.read, data) == outcome(parse_request, data)


# Answers.

OK = b"HTTP/1.1 200 OK"


def answer(*fields: bytes, line: bytes = OK) -> bytes:
    return b"\r\n".join((line, *fields, b"", b""))


def usual(number: int, *more: bytes) -> bytes:
    return answer(b"Date: now %d" % number, b"X-Id: %d" % number, b"Content-Length: %d" % number, *more)


@pytest.mark.parametrize(
    "more",
    [
        (),
        (b"Connection: keep-alive",),
        (b"connection: close",),
        (b"set-cookie: a", b"Set-Cookie: b"),
        (b"Connection: X-Hop, keep-alive", b"x-hop: 1", b"Keep-Alive: 5", b"Flowstack-Secret: 1", b"X-End: 2"),
        (b"\x21|: \xff",),
    ],
)
def test_from_the_third_on_answers_that_differ_in_values_only_are_not_read_anew(
    more: tuple[bytes, ...]
) -> None:
    heads = Watched(ResponseHeads())
    for number in range(6):
        data = usual(number, *more)
        assert values(heads.read(data, b"POST")) == values(parse_response(data, b"POST"))
    assert heads.anew == [usual(0, *more), usual(1, *more)]


def test_a_streams_head_has_a_shape_too() -> None:
    heads = Watched(ResponseHeads())
    for number in range(4):
        data = answer(b"X-Id: %d" % number, b"Transfer-Encoding: chunked")
        found = heads.read(data, b"POST")
        assert found.chunked and found.length is None
        assert values(found) == values(parse_response(data, b"POST"))
    assert len(heads.anew) == 2


def test_answers_of_several_shapes_in_turn_are_all_known() -> None:
    heads = Watched(ResponseHeads())
    lines = [b"HTTP/1.1 %d X" % status for status in range(400, 400 + MAX_SHAPES)]
    for line in lines:
        for _ in range(2):
            heads.read(answer(b"X-Id: 1", line=line), b"POST")
    heads.anew.clear()
    for line in lines:
        data = answer(b"X-Id: 2", line=line)
        assert values(heads.read(data, b"POST")) == values(parse_response(data, b"POST"))
    assert not heads.anew


def learn(heads: Watched, status: int) -> None:
    for _ in range(2):
        heads.read(answer(b"X-Id: 1", line=b"HTTP/1.1 %d X" % status), b"POST")


def known(heads: Watched, status: int) -> bool:
    heads.anew.clear()
    heads.read(answer(b"X-Id: 2", line=b"HTTP/1.1 %d X" % status), b"POST")
    return not heads.anew


def test_a_new_shape_takes_the_place_of_the_one_that_was_met_longest_ago() -> None:
    heads = Watched(ResponseHeads())
    for status in range(400, 400 + MAX_SHAPES):
        learn(heads, status)
    assert known(heads, 400)
    learn(heads, 500)
    assert known(heads, 500)
    assert known(heads, 400)
    assert not known(heads, 401)


def test_where_there_are_too_many_shapes_new_ones_are_made_now_and_then_only() -> None:
    heads = Watched(ResponseHeads())
    for status in range(400, 401 + MAX_SHAPES):
        learn(heads, status)
    for _ in range(PAUSE // 2):
        learn(heads, 500)
    assert len(heads.anew) == 2 * (MAX_SHAPES + 1) + PAUSE
    assert not known(heads, 500)
    assert not known(heads, 500)
    assert known(heads, 500)


def test_shapes_that_take_turns_are_known() -> None:
    heads = Watched(ResponseHeads())
    kinds = [usual(1), usual(2, b"X-More: 1"), answer(b"X-Id: 1", b"Transfer-Encoding: chunked")]
    for _ in range(5):
        for data in kinds:
            heads.read(data, b"POST")
            heads.read(answer(b"Link: x", line=b"HTTP/1.1 103 Early Hints"), b"POST")
    assert len([data for data in heads.anew if b" 103 " not in data]) == 2 * len(kinds)


@pytest.mark.parametrize("field", [b"X-Empty:", b"X-Two:  a", b"X-None:a", b"X-End: a "])
def test_a_head_that_no_expression_can_match_is_not_tried_each_time(
    field: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    compile_expression = re.compile

    def counted(expression: bytes) -> re.Pattern[bytes]:
        made.append(expression)
        return compile_expression(expression)

    monkeypatch.setattr(re, "compile", counted)
    heads = ResponseHeads()
    for number in range(50):
        data = usual(number, field)
        assert values(heads.read(data, b"POST")) == values(parse_response(data, b"POST"))
    assert len(made) == 1


def test_long_heads_are_not_remembered() -> None:
    requests, answers = Watched(Heads()), Watched(ResponseHeads())
    for _ in range(4):
        requests.read(head(line=b"POST /" + b"x" * MAX_BYTES + b" HTTP/1.1"))
        answers.read(usual(1, b"X-Long: " + b"x" * MAX_BYTES), b"POST")
    assert (len(answers.anew), len(requests.anew)) == (4, 4)
    assert requests.heads.own._last is None


def test_a_shape_keeps_nothing_of_anybodys_answer() -> None:
    heads = ResponseHeads()
    for _ in range(3):
        heads.read(usual(1, b"Set-Cookie: a-tenants-own"), b"POST")
    (shape,) = heads._shapes
    kept = repr([getattr(shape, name) for name in dir(shape) if name[:2] != "__"])
    assert "Set-Cookie" in kept
    assert "a-tenants-own" not in kept


@pytest.mark.parametrize("status", [b"100 Continue", b"204 No Content", b"304 Not Modified"])
def test_answers_that_have_no_body_by_their_status_are_read_with_all_care(
    status: bytes
) -> None:
    heads = Watched(ResponseHeads())
    for _ in range(4):
        data = answer(b"X-Id: 1", line=b"HTTP/1.1 " + status)
        assert values(heads.read(data, b"GET")) == values(parse_response(data, b"GET"))
    assert len(heads.anew) == 4


def test_the_answer_to_a_head_request_has_no_body_whatever_came_before() -> None:
    heads = ResponseHeads()
    for number in range(1, 4):
        assert heads.read(usual(number), b"GET").length == number
    assert heads.read(usual(5), b"HEAD").length == 0


@pytest.mark.parametrize(
    "fields",
    [
        (b"Date: a\x00", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a\nb", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a\rb", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a\x7f", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a\x1f", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date:  a", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a \t", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date:\ta", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: ", b"X-Id:", b"Content-Length: 5"),
        (b"Date: a\tb", b"X-Id: \x80 \xff", b"Content-Length: 5"),
        (b"Date: a", b" b", b"X-Id: 1", b"Content-Length: 5"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 05"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: +5"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 5, 5"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: \xb2"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: " + b"9" * 18),
        (b"Date: a", b"X-Id: 1", b"Content-Length: " + b"9" * 19),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 0"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 5", b"Content-Length: 5"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 5", b"Connection: close"),
        (b"Date: a", b"X-Id: 1", b"Transfer-Encoding: chunked"),
        (b"Date: a", b"X-Id: 1", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"date: a", b"X-Id: 1", b"Content-Length: 5"),
        (b"X-Id: 1", b"Date: a", b"Content-Length: 5"),
        (b"Date: a", b"X-Id: 1", b"Content-Length:5"),
    ],
)
def test_a_head_like_another_one_is_read_as_it_would_be_alone(fields: tuple[bytes, ...]) -> None:
    heads = ResponseHeads()
    for number in range(3):
        heads.read(usual(number), b"POST")
    assert outcome(heads.read, answer(*fields), b"POST") == outcome(parse_response, answer(*fields), b"POST")


def test_what_frames_an_answer_is_not_taken_from_another_one() -> None:
    heads = ResponseHeads()
    for _ in range(3):
        assert heads.read(answer(b"Transfer-Encoding: chunked", b"Connection: keep-alive"), b"GET").keep_alive
    for coding, connection in ((b"gzip", b"keep-alive"), (b"chunked", b"close"), (b"chunked", b"X"), (b"x", b"close")):
        data = answer(b"Transfer-Encoding: " + coding, b"Connection: " + connection)
        assert outcome(heads.read, data, b"GET") == outcome(parse_response, data, b"GET")


def test_who_changes_an_answers_fields_changes_no_other_answers() -> None:
    heads = ResponseHeads()
    for _ in range(4):
        found = heads.read(usual(5), b"POST")
        assert values(found) == values(parse_response(usual(5), b"POST"))
        found.addRawHeader("X-C", "3")
        assert found.onward().endswith(b"\r\nContent-Length: 5\r\nX-C: 3")
        found.setRawHeaders("X-Id", ["4"])
        assert found.onward().endswith(b"\r\nContent-Length: 5\r\nX-C: 3\r\nX-Id: 4")


def test_the_values_of_a_head_of_a_known_shape_are_a_mapping() -> None:
    heads = ResponseHeads()
    for number in range(3):
        found = heads.read(usual(number, b"X-Twice: 1", b"x-twice: 2"), b"POST").by_name
    assert dict(found) == {b"date": b"now 2", b"x-id": b"2", b"content-length": b"2", b"x-twice": b"2"}
    assert len(found) == 4
    assert b"x-id" in found and b"x-no" not in found
    assert found.get(b"x-id") == found[b"x-id"] == b"2"
    assert (found.get(b"x-no"), found.get(b"x-no", b"no")) == (None, b"no")
    with pytest.raises(KeyError):
        found[b"x-no"]


ANSWERS = st.sampled_from([usual(5), usual(12), usual(0), answer(b"Transfer-Encoding: chunked"), answer(),
                           answer(b"X-Id: 1", line=b"HTTP/1.1 204 No Content"), usual(5, b"Connection: close"),
                           usual(5, b"Set-Cookie: a", b"Set-Cookie: b"), usual(5, b"Connection: keep-alive"),
                           answer(b"Content-Length: 3", line=b"HTTP/1.0 200 OK")])  # fmt: skip


@given(st.lists(ANSWERS | st.tuples(ANSWERS, st.integers(0, 60), st.binary(max_size=3)), max_size=14))
def test_a_sequence_of_answers_is_read_as_each_would_be_alone(sequence: list[bytes | tuple[bytes, int, bytes]]) -> None:
    heads = ResponseHeads()
    for each in sequence:
        data = each if isinstance(each, bytes) else each[0][: each[1]] + each[2] + each[0][each[1] :]
        if data.count(b"\r\n\r\n") == 1 and data.endswith(b"\r\n\r\n"):
            assert outcome(heads.read, data, b"POST") == outcome(parse_response, data, b"POST")
