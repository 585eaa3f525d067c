from __future__ import annotations

import hashlib

from flowstack.testing.standin.journal import Journal, Seen
from tests.testing.wire import Client


def test_a_request_is_remembered_as_it_stood_on_the_wire(client: Client) -> None:
    body = b'{"input": "x"}'
    raw = client.request("POST", "/v1/moderations?a=%2f&b=", "x-FIRST: 1", "X-Second:  two ", "x-first: 3", body=body)
    client.raw(raw.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n", 1))
    [seen] = client.state()["last"]
    assert seen["head"].encode("latin-1") == raw.replace(b"1.1\r\n", b"1.1\r\nConnection: close\r\n", 1)[: -len(body)]
    assert (seen["method"], seen["target"], seen["http_version"]) == ("POST", "/v1/moderations?a=%2f&b=", "1.1")
    assert seen["headers"] == [
        ["Connection", "close"],
        ["Host", "stand-in.example"],
        ["Authorization", "Bearer sk-test"],
        ["x-FIRST", "1"],
        ["X-Second", "two"],
        ["x-first", "3"],
        ["Content-Length", "14"],
    ]
    assert (seen["body_bytes"], seen["body_sha256"]) == (14, hashlib.sha256(body).hexdigest())
    assert (seen["status"], seen["end"], seen["gone_at"]) == (200, "complete", None)


def test_requests_are_found_by_their_tag(client: Client) -> None:
    for tag in ("a", "b", "a"):
        client.ask("GET", f"/v1/models?{tag}", f"X-Client-Tag: {tag}")
    assert [seen["target"] for seen in client.seen("a")] == ["/v1/models?a"] * 2
    assert client.seen("c") == []


def test_tokens_are_summed_by_endpoint_as_clients_were_told(client: Client) -> None:
    client.chat()
    client.chat(stream=True, stream_options={"include_usage": True})
    client.chat(stream=True)
    client.chat("Stand-In: cut=10")
    client.post("/v1/embeddings", {"model": "text-embedding-3-small", "input": "a b", "dimensions": 2})
    assert client.state()["tokens"] == {
        "chat/completions": {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12},
        "embeddings": {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2},
    }


def test_each_answer_that_was_counted_says_so(client: Client) -> None:
    client.chat("X-Client-Tag: a")
    client.chat("X-Client-Tag: a", stream=True)
    client.chat("X-Client-Tag: a", "Stand-In: cut=10")
    counted = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert [seen["usage"] for seen in client.seen("a")] == [counted, None, None]


def test_questions_to_the_journal_are_not_counted(client: Client) -> None:
    client.ask("GET", "/v1/models")
    client.state()
    with client.connect():
        state = client.state()
        assert (state["requests"], state["connections_total"], state["open_connections"]) == (1, 2, 1)
    assert client.ask("GET", "/stand-in/none").status == 404


def test_the_journal_is_bounded() -> None:
    journal = Journal(lambda: 0.0)
    for number in range(1000):
        journal.begin(Seen(number, 1, "GET", "/", "1.1", [], "", 0.0), f"tag {number % 300}")
        journal.framing_fault(None, str(number))
    assert len(journal.state()["last"]) == len(journal.framing_faults) == 64
    assert (journal.requests, journal.framing_fault_count) == (1000, 1000)
    assert sum(bool(journal.seen(f"tag {n}")) for n in range(300)) == 256


def test_a_record_shows_no_credential_by_its_repr() -> None:
    seen = Seen(
        1, 1, "GET", "/", "1.1", [("Authorization", "Bearer sk-secret")], "Authorization: Bearer sk-secret", 0.0
    )
    assert "sk-secret" not in repr(seen)
