"""The bytes that go to and fro: a chat completion as an OpenAI SDK asks for it and as the provider answers.

What the bench upstream does is asked for in the request body (``"user": "bench-…"``), since a body is the one thing
that every subject passes on:

``bench-sse-<milliseconds>-<id>``
    an endless event stream, a chunk each so many milliseconds.
``bench-idle-0-<id>``
    a stream that gives one chunk and then stands still.
``bench-hold-0-<id>``
    no answer at all.
no such word
    the fixed JSON answer at once.

A WebSocket has the word in its path's query, and gives an event of the same size in a frame for each chunk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re

PROVIDER_KEY = "sk-bench-0123456789abcdefghijklmnopqrstuvwxyz"
PATH = "/v1/chat/completions"
UPLOAD_PATH = "/v1/files"
DOWNLOAD_PATH = "/v1/files/file-bench/content"

#: An event of a stream carries ``@t<20 digits: CLOCK_MONOTONIC ns at writing>n<8 digits: its number>;``.
MARK = b"@t"
MARK_BYTES = 32
EVENT_BYTES = 200
MODE = re.compile(rb"bench-(sse|idle|hold)-(\d+)-(\d+)")

_SDK_HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.8.1",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.8.1",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.7",
    "X-Stainless-Async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
    "Authorization": f"Bearer {PROVIDER_KEY}",
}

PROVIDER_HEADERS = (
    "Date: Mon, 01 Jun 2026 12:00:00 GMT\r\n"
    "openai-organization: org-bench\r\n"
    "openai-processing-ms: 412\r\n"
    "openai-version: 2020-10-01\r\n"
    "x-ratelimit-limit-requests: 10000\r\n"
    "x-ratelimit-limit-tokens: 2000000\r\n"
    "x-ratelimit-remaining-requests: 9999\r\n"
    "x-ratelimit-remaining-tokens: 1999000\r\n"
    "x-ratelimit-reset-requests: 6ms\r\n"
    "x-ratelimit-reset-tokens: 30ms\r\n"
    "x-request-id: req_00112233445566778899aabbccddeeff\r\n"
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Server: cloudflare\r\n"
)


def request_headers(flowstack_key: str) -> dict[str, str]:
    """The header fields of every request, but for ``Host`` and ``Content-Length``."""
    return {**_SDK_HEADERS, "Flowstack-Auth": f"Bearer {flowstack_key}"}


def request_body(mode: str = "", *, stream: bool = False) -> bytes:
    """A chat completion request of about 600 bytes.

    :param mode: one of the words in this module's docstring, or nothing.
    """
    document = {
        "messages": [
            {"role": "system", "content": "You are a careful assistant. Answer in one paragraph, name your sources."},
            {
                "role": "user",
                "content": "A train leaves the station at noon and drives eighty kilometres an hour towards the "
                "north; a second one follows half an hour later on the same track, twenty kilometres an hour "
                "faster. After how many minutes and how many kilometres will the second train have caught up with "
                "the first, and what would a signalman have to say about it?",
            },
        ],
        "temperature": 0.2,
        "max_completion_tokens": 256,
        "user": mode or "user-0123456789",
        "stream": stream,
        "model": "gpt-4o-mini",
    }
    return json.dumps(document, separators=(",", ":")).encode()


def request_bytes(headers: dict[str, str], body: bytes, *, method: str = "POST", path: str = PATH) -> bytes:
    """A whole request with ``Content-Length``."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


SOCKET_KEY = base64.b64encode(b"a bench's socket")


def socket_bytes(headers: dict[str, str], path: str) -> bytes:
    """A whole handshake.

    :param path: with the query, in which the mode is.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != "Content-Type")
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = f"Sec-WebSocket-Key: {SOCKET_KEY.decode()}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}{upgrade}{key}\r\n".encode()


def _answer_document() -> bytes:
    document = {
        "id": "chatcmpl-bench0123456789",
        "object": "chat.completion",
        "created": 1780315200,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The second train catches up after two hours, two hundred kilometres from the station. "
                    "The signalman would have stopped it long before that: two trains never share one block of track, "
                    "so the second would have waited at the first red signal.",
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 96,
            "completion_tokens": 31,
            "total_tokens": 127,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_bench",
    }
    return json.dumps(document, separators=(",", ":")).encode()


ANSWER_BODY = _answer_document()


def response_bytes(body: bytes, content_type: str = "application/json") -> bytes:
    """A whole 200 answer as the provider gives it."""
    return response_head(len(body), content_type) + body


def response_head(length: int, content_type: str) -> bytes:
    """The head of a 200 answer whose body has ``length`` bytes."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{PROVIDER_HEADERS}\r\n"
    ).encode()


STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    f"{PROVIDER_HEADERS}\r\n"
).encode()

_EVENT_START = (
    b'data: {"id":"chatcmpl-bench01","object":"chat.completion.chunk","created":1780315200,'
    b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"'
)
_EVENT_END = b'"}}]}\n\n'
_PADDING = b"." * (EVENT_BYTES - len(_EVENT_START) - len(_EVENT_END) - MARK_BYTES)
_CHUNK = b"%x\r\n" % EVENT_BYTES + _EVENT_START + MARK + b"%020dn%08d;" + _PADDING + _EVENT_END + b"\r\n"


def stream_chunk(now_ns: int, number: int) -> bytes:
    """One HTTP chunk that holds one event of :data:`EVENT_BYTES` bytes."""
    return _CHUNK % (now_ns, number)


_ACCEPT = base64.b64encode(hashlib.sha1(SOCKET_KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
SOCKET_HEAD = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {_ACCEPT}\r\n{PROVIDER_HEADERS}\r\n"
).encode()

_FRAME_START = (
    b'{"type":"response.output_text.delta","event_id":"event_bench0123456789","response_id":"resp_bench01",'
    b'"item_id":"item_bench01","delta":"'
)
_FRAME_END = b'"}'
_FRAME_PADDING = b"." * (EVENT_BYTES - len(_FRAME_START) - len(_FRAME_END) - MARK_BYTES)
_FRAME = bytes((0x81, 126, 0, EVENT_BYTES)) + _FRAME_START + MARK + b"%020dn%08d;" + _FRAME_PADDING + _FRAME_END


def socket_frame(now_ns: int, number: int) -> bytes:
    """One frame that holds one event of :data:`EVENT_BYTES` bytes."""
    return _FRAME % (now_ns, number)
