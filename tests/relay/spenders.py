"""Requests by which a key may try to spend more than its budget, and an upstream that does whatever they ask for.

It obeys what is declared in its own API, gives as much as the model can where nothing is, and says what it used only
where it is asked to, or never.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

MOST = {"gpt-5": 100_000, "claude-sonnet-4-5": 64_000}
"""Tokens of an answer of which no most is declared: what these models can give, or less."""

RATES = {"gpt-5": (1.25, 10.0), "claude-sonnet-4-5": (3.0, 15.0), "text-embedding-3-small": (0.02, 0.0)}
"""US dollars for a million tokens, in and out (OpenAI, Anthropic: "Pricing")."""

DECLARED = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}
_FAR = ("file_id", "file_url", "http", "web_search", "mcp", "previous_response_id", "conversation")


@frozen
class Way:
    """A kind of request.

    :ivar budget: of the key that tries it, in US dollars.
    :ivar refused: whether Flowstack does not let it pass at all.
    """

    path: str
    members: dict[str, Any]
    budget: float = 5.0
    refused: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """The body."""
        model = "claude-sonnet-4-5" if self.path == "/v1/messages" else "gpt-5"
        return {"model": model, "messages" if "chat" in self.path else "x": [], **self.members}


CHAT, COMPLETIONS, RESPONSES, MESSAGES = DECLARED
STREAM = {"stream": True}
PICTURE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.test/b"}}]}]}

WAYS: dict[str, Way] = {
    "chat": Way(CHAT, {}),
    "chat, declared": Way(CHAT, {"max_completion_tokens": 50_000}),
    "chat, several choices": Way(CHAT, {"max_tokens": 10_000, "n": 5}),
    "chat, declared for another API": Way(CHAT, {"max_output_tokens": 1}),
    "chat, a text of which each byte is a token": Way(
        CHAT, {"max_tokens": 16, "messages": [{"role": "user", "content": "\u0f40\u0f41" * 15_000}]}, budget=1.0
    ),
    "chat, a picture that is far away": Way(CHAT, {"max_tokens": 1_000, **PICTURE}, budget=1.0),
    "stream": Way(CHAT, STREAM),
    "stream, usage wanted": Way(CHAT, STREAM | {"stream_options": {"include_usage": True}}),
    "stream, usage not wanted": Way(CHAT, STREAM | {"stream_options": {"include_usage": False}}),
    "stream, usage null": Way(CHAT, STREAM | {"stream_options": {"include_usage": None}}),
    "stream, options null": Way(CHAT, STREAM | {"stream_options": None}),
    "stream, options empty": Way(CHAT, STREAM | {"stream_options": {}}),
    "stream, usage 0": Way(CHAT, STREAM | {"stream_options": {"include_usage": 0}}, refused=True),
    "stream, options a list": Way(CHAT, STREAM | {"stream_options": []}, refused=True),
    "stream, options in another case": Way(CHAT, STREAM | {"Stream_Options": {"include_usage": False}}, refused=True),
    "stream 1": Way(CHAT, {"stream": 1}, refused=True),
    "stream as text": Way(COMPLETIONS, {"stream": "true", "prompt": "a"}, refused=True),
    "stream, long, usage not wanted": Way(
        CHAT, STREAM | {"stream_options": {"include_usage": False}, "user": "u" * 200_000}
    ),
    "completions": Way(COMPLETIONS, {"prompt": "a"}),
    "completions, many prompts": Way(COMPLETIONS, {"prompt": ["a"] * 100, "max_tokens": 1_000}),
    "completions, lists of tokens": Way(COMPLETIONS, {"prompt": [[7] * 9] * 50, "max_tokens": 500, "best_of": 4}),
    "completions, usage not wanted": Way(
        COMPLETIONS, STREAM | {"prompt": "a", "stream_options": {"include_usage": False}}
    ),
    "responses": Way(RESPONSES, {"input": "a"}),
    "responses, declared for another API": Way(RESPONSES, {"input": "a", "max_tokens": 1}),
    "responses, a stream": Way(RESPONSES, STREAM | {"input": "a"}),
    "responses, what is stored": Way(RESPONSES, {"previous_response_id": "r", "max_output_tokens": 100}, budget=1.0),
    "responses, a file": Way(
        RESPONSES, {"input": [{"content": [{"file_url": "x"}]}], "max_output_tokens": 100}, budget=1.0
    ),
    "responses, a search": Way(RESPONSES, {"tools": [{"type": "web_search"}], "max_output_tokens": 100}, budget=1.0),
    "messages": Way(MESSAGES, {}),
    "messages, declared": Way(MESSAGES, {"max_tokens": 40_000}),
    "embeddings": Way("/v1/embeddings", {"model": "text-embedding-3-small", "input": [7] * 8_000}, budget=0.001),
}


def used(path: str, document: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the input and the output that a request has."""
    text = str(document)
    dense = not text.isascii()
    prompt = 100_000 if any(word in text for word in _FAR) else len(text.encode()) // (1 if dense else 4)
    if path == "/v1/embeddings":
        return len(document["input"]), 0
    declared = [document[name] for name in DECLARED[path] if name in document]
    prompts = document.get("prompt")
    choices = max(document.get("n", 1), document.get("best_of", 1)) * (len(prompts) if type(prompts) is list else 1)
    return prompt, (max(declared) if declared else MOST[document["model"]]) * choices


def dollars(model: str, prompt: int, output: int) -> float:
    """What the upstream bills."""
    into, out = RATES[model]
    return (prompt * into + output * out) / 1e6
