"""Count the calls of tools in a response that OpenAI bills by the call, without holding the response.

They are items of its ``output`` (OpenAI reference, responses), found by their ``type``. A JSON string holds no bare
quote, so that what looks like such a member is one.
"""

from __future__ import annotations

import re
from typing import Any, Final

BILLED: Final = (
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "shell_call",
)  # fmt: skip
"""What runs at OpenAI. A web search also opens pages and looks for words in them, which is not billed."""

MAX_CONTAINERS: Final = 256
"""Different containers counted in one response."""

_CALL: Final = b'_call"'
_CONTAINER: Final = b'"container_id"'
_WIDEST: Final = 256
"""Bytes of the longest member that is looked for."""

_found: Final = re.compile(
    rb'"(?:type"\s{0,32}:\s{0,32}"(%b)"'
    rb'|action"\s{0,32}:\s{0,32}\{\s{0,32}"type"\s{0,32}:\s{0,32}"(open_page|find_in_page|find)"'
    rb'|container_id"\s{0,32}:\s{0,32}"([^"\\]{1,96})")' % "|".join(BILLED).encode()
).finditer


class Calls:
    """Shown a response's bytes, in order."""

    __slots__ = ("_any", "_containers", "_counts", "_last", "_unbilled")

    def __init__(self) -> None:
        self._any = False  # so far neither a call of whatever kind nor a container
        self._last = b""
        self._counts: dict[str, int] = {}
        self._unbilled = 0
        self._containers: set[bytes] = set()

    def feed(self, piece: bytes) -> None:
        """Look at a piece."""
        last = self._last
        text = last + piece if last else piece
        self._last = text[-_WIDEST:]
        if not self._any:
            if text.find(_CALL) < 0 and text.find(_CONTAINER) < 0:
                return
            self._any = True
        for found in _found(text):
            if found.end() <= len(last):
                continue  # it was seen before
            call, page, container = found.groups()
            if call is not None:
                name = call.decode()
                self._counts[name] = self._counts.get(name, 0) + 1
            elif page is not None:
                self._unbilled += 1
            elif len(self._containers) < MAX_CONTAINERS:
                self._containers.add(container)

    def counts(self) -> dict[str, Any] | None:
        """How many of each kind; None where there are none."""
        counts = dict(self._counts)
        if self._unbilled and (searches := counts.pop("web_search_call", 0) - self._unbilled) > 0:
            counts["web_search_call"] = searches
        if self._containers:
            counts["containers"] = len(self._containers)
        return counts or None


def calls_in(body: bytes) -> dict[str, Any] | None:
    """What :class:`Calls` counts in a complete response."""
    if body.find(_CALL) < 0:
        return None
    calls = Calls()
    calls.feed(body)
    return calls.counts()
