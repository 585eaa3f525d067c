from __future__ import annotations

import pytest

from flowstack.testing.standin.framing import fault_in
from tests.testing.wire import Client, reset, until

HEAD = "POST /v1/moderations HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-x\r\n"

FAULTY = {
    "Content-Length with Transfer-Encoding": HEAD + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "equal Content-Lengths": HEAD + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list as Content-Length": HEAD + "Content-Length: 2, 2\r\n\r\n{}",
    "unequal Content-Lengths": HEAD + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "zeros before Content-Length": HEAD + "Content-Length: 002\r\n\r\n{}",
    "a sign before Content-Length": HEAD + "Content-Length: +2\r\n\r\n{}",
    "another coding beside chunked": HEAD + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": HEAD.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare LF": HEAD.replace("sk-x\r\n", "sk-x\n") + "Content-Length: 2\r\n\r\n{}",
    "a bare CR": HEAD + "X-A: b\rX-B: c\r\nContent-Length: 2\r\n\r\n{}",
    "a folded line": HEAD + "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "a NUL": HEAD + "X-A: b\0c\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": HEAD + "Content-Length : 2\r\n\r\n{}",
    "no Host": HEAD.replace("Host: a\r\n", "") + "Content-Length: 2\r\n\r\n{}",
    "two Hosts": HEAD + "Host: b\r\nContent-Length: 2\r\n\r\n{}",
    "an empty Host": HEAD.replace("Host: a", "Host:") + "Content-Length: 2\r\n\r\n{}",
    "two spaces in the request line": HEAD.replace(" /v1", "  /v1") + "Content-Length: 2\r\n\r\n{}",
    "a fragment in the target": HEAD.replace("moderations", "moderations#x") + "Content-Length: 2\r\n\r\n{}",
    "another protocol": "HELO there\r\n\r\n",
    "a head without an end": "GET / HTTP/1.1\r\nHost: a\r\n" + "X-A: b\r\n" * 20_000,
    "a chunk without its line end": HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
    "a chunk size that is none": HEAD + "Transfer-Encoding: chunked\r\n\r\nx\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_not_strict_http_is_refused_recorded_and_the_connection_closed(client: Client, name: str) -> None:
    answer = client.raw(FAULTY[name].encode("latin-1"))
    assert (answer.status, answer.header("connection"), answer.end) == (400, "close", "closed")
    assert answer.json["error"]["code"] == "bad_http"
    state = client.state()
    assert (state["framing_faults"], len(state["framing_fault_messages"])) == (1, 1)
    assert [seen["end"] for seen in state["last"]] in ([], ["framing_fault"])


def test_bytes_beyond_the_content_length_are_a_fault_of_the_next_request(client: Client) -> None:
    answer = client.raw((HEAD + 'Content-Length: 14\r\n\r\n{"input": "x"}extra\r\n\r\n').encode())
    assert (answer.raw.count(b"HTTP/1.1 200 OK"), answer.raw.count(b"HTTP/1.1 400 Bad Request")) == (1, 1)
    assert client.state()["framing_faults"] == 1


@pytest.mark.parametrize(
    "body", ["Content-Length: 14\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{", "Content-Length: 14\r\n\r\n"]
)
def test_a_body_shorter_than_announced_is_recorded(client: Client, body: str) -> None:
    sock = client.connect()
    sock.sendall((HEAD + body).encode())
    until(lambda: client.state()["requests"] == 1)
    reset(sock)
    until(lambda: client.state()["incomplete_bodies"] == 1)
    [seen] = client.state()["last"]
    assert (seen["end"], seen["body_complete"], seen["status"]) == ("client_gone", False, None)


@pytest.mark.parametrize(
    "text",
    [
        "GET /v1/models?a=%2F&b=[1]@x~ HTTP/1.1\r\nHost: a\r\nX-Empty:\r\n\r\n",
        "GET /v1//models HTTP/1.0\r\nhost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_a_strict_head_has_no_fault(text: str) -> None:
    assert fault_in(text.encode()) is None


def test_a_chunked_request_and_its_trailers_are_read(client: Client) -> None:
    body = '5\r\n{"inp\r\n9;x=y\r\nut": "x"}\r\n0\r\nX-Trailer: last\r\n\r\n'
    answer = client.raw((HEAD + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body).encode())
    assert answer.status == 200
    [seen] = client.state()["last"]
    assert (seen["body_bytes"], seen["trailers"]) == (14, [["X-Trailer", "last"]])


def test_an_http_1_0_client_gets_a_stream_without_chunks_ended_by_closing(client: Client) -> None:
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a b c"}]}'
    answer = client.raw(client.request("POST", "/v1/chat/completions", body=body, version="1.0"))
    assert (answer.header("transfer-encoding"), answer.header("content-length"), answer.end) == (None, None, "closed")
    assert answer.rest.endswith(b"data: [DONE]\n\n")
