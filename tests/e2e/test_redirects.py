"""An upstream that redirects to itself: SDKs follow, and come back through Flowstack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.crowd import journal
from tests.e2e.raw_upstream import Seen, front
from tests.e2e.sdk_runs import OPENAI_KEY, Sdks

pytestmark = pytest.mark.e2e

COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "moved"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
).encode()  # fmt: skip

PYTHON = """
import openai
headers = {{"Flowstack-Auth": "Bearer " + {key!r}}}
client = openai.OpenAI(base_url={base!r}, api_key={api_key!r}, default_headers=headers)
answer = client.chat.completions.create(model="gpt-4o", messages=[{{"role": "user", "content": "hi"}}])
print(answer.choices[0].message.content)
"""
NODE = """
import OpenAI from "openai";
const headers = {{"Flowstack-Auth": "Bearer " + {key!r}}};
const client = new OpenAI({{baseURL: {base!r}, apiKey: {api_key!r}, defaultHeaders: headers}});
const answer = await client.chat.completions.create({{model: "gpt-4o", messages: [{{role: "user", content: "hi"}}]}});
console.log(answer.choices[0].message.content);
"""


def moves_once(seen: Seen) -> None:
    """Say that a path is to be asked for with a slash, by the upstream's own address."""
    seen.read_body()
    (host,) = seen.all(b"host")
    if seen.target.endswith(b"/"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION)
        seen.link.offer(head + COMPLETION)
        return
    location = b"http://" + host + seen.target + b"/"
    seen.link.offer(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(("sdk", "text"), [("python-openai", PYTHON), ("node-openai", NODE)])
def test_an_sdk_that_follows_a_redirect_comes_back_through_flowstack(
    sdk: str, text: str, sdks: Sdks, tmp_path: Path
) -> None:
    with front(tmp_path, base="/v1") as ends:
        ends.upstream.script = moves_once
        program = text.format(base=ends.proxy.base_url, api_key=OPENAI_KEY, key=ends.proxy.key)
        assert sdks.program(sdk, program).strip() == "moved"
        assert [seen.target for seen in ends.upstream.requests] == [b"/v1/chat/completions", b"/v1/chat/completions/"]
        assert not any(ends.proxy.key.encode() in seen.raw_head for seen in ends.upstream.requests)
        rows = journal(ends.proxy)
        assert [(row["path"], row["status"], row["total_tokens"]) for row in rows] == [
            ("/v1/chat/completions", 307, None), ("/v1/chat/completions/", 200, 3)
        ]  # fmt: skip
        ends.proxy.stop()
