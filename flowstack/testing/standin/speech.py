"""Where the text comes from: an echo, a word a token. No language is generated here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from attrs import frozen

from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.values import Request, Usage

DEFAULT = "Hello from the stand-in."
_WORD = re.compile(r"\s*\S+|\s+$")
_SNAPSHOTS = {
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "gpt-4": "gpt-4-0613",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
}


def snapshot(model: str) -> str:
    """The dated name with which OpenAI answers for an alias; any other name is given back."""
    return _SNAPSHOTS.get(model, model)


def tokens(text: str) -> list[str]:
    """Words with the space before them: joined, they are the text again."""
    return _WORD.findall(text)


def text_of(content: Any) -> str:
    """The text of a message's ``content``: a string, or parts of which those with ``text`` count."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


@frozen
class Speech:
    """What will be said: ``count`` tokens, the words over and over where there are fewer.

    :ivar truncated: whether a limit on tokens cut it short.
    """

    words: tuple[str, ...]
    count: int
    truncated: bool = False

    def __iter__(self) -> Iterator[str]:
        again = [" " + word.strip() for word in self.words]
        yield from islice(self.words, self.count)
        yield from islice(cycle(again), max(0, self.count - len(self.words)))

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self)


def speak(text: str, directives: Directives, limit: Any = None) -> Speech:
    """An echo of the text.

    :param limit: the request's limit on output tokens; anything but a positive integer is no limit.
    """
    words = tuple(tokens(text) or tokens(DEFAULT))
    count = directives.chunks or len(words)
    if isinstance(limit, int) and 0 < limit < count:
        return Speech(words, limit, truncated=True)
    return Speech(words, count)


def usage_of(prompt: int, speech: Speech, directives: Directives, choices: int = 1) -> Usage:
    """What an answer costs: the words in, the words out, and what the directives say was cached or thought."""
    return Usage(
        prompt=prompt,
        completion=speech.count * choices + directives.reasoning,
        cached=min(directives.cached, prompt),
        reasoning=directives.reasoning,
    )


def identifier(prefix: str, request: Request) -> str:
    """An id that follows from the request's body."""
    return f"{prefix}{request.digest[:29]}"
