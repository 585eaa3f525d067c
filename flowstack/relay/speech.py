"""Speech on a Realtime WebSocket that may be written down, and what is reserved for that.

Nobody asks for a transcription: it comes of the sound, once a turn is over, and is charged as the upstream tells it. So
that all of them fit a key's tokens and money, sound passes only as far as something is reserved for it, block by block.
A block is given back when as much was written down; or after :data:`LASTS`: by then it was silence, or will not be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

SECOND: Final = 10
"""Tokens of speech (OpenAI, "Managing costs": one for 100 ms)."""

BLOCK: Final = 10 * SECOND
"""The least for which is reserved at once."""

SHARE: Final = 64
"""Where more is outstanding, a block is that part of it: so that there are not too many."""

AHEAD: Final = 60 * SECOND
"""Is reserved where the sound itself is not seen."""

LASTS: Final = 1500.0
"""Seconds. No transcription is of more sound (OpenAI reference, audio)."""

MOST: Final = int(LASTS) * SECOND
"""Tokens of sound that nothing was reserved for, and that may be written down if that is asked for now."""


class Speech:
    """Of one WebSocket. A block is whatever has ``size``, its tokens, and ``came``, its time on the monotonic clock.

    :ivar sent: tokens of sound that passed, and that are not known to be written down or silence.
    """

    __slots__ = ("_blocks", "_covered", "_passed_at", "_written", "sent")

    def __init__(self) -> None:
        self._blocks: list[Any] = []
        self._covered = 0  # tokens for which the blocks are
        self._written = 0  # tokens, of the oldest block
        self._passed_at = 0.0
        self.sent = 0

    def __bool__(self) -> bool:
        """Whether anything is reserved."""
        return bool(self._blocks)

    def missing(self, tokens: int) -> int:
        """For how many tokens there must be one more block before so many may pass; 0: for none."""
        missing = self.sent + tokens - self._covered
        return max(missing, BLOCK, self.sent // SHARE) if missing > 0 else 0

    def hold(self, block: Any) -> None:
        """A block was reserved."""
        self._blocks.append(block)
        self._covered += block.size

    def passes(self, tokens: int, now: float) -> None:
        """So much sound goes on."""
        self.sent = min(self.sent + tokens, self._covered + MOST)
        self._passed_at = now

    def written(self, tokens: int) -> Iterator[Any]:
        """So many tokens of sound were written down.

        :return: the blocks that are not needed any more.
        """
        self._written += tokens
        while self._blocks and self._written >= self._blocks[0].size:
            self._written -= self._blocks[0].size
            yield self._let_go()
        if not self._blocks:
            self._written = 0

    def forget(self) -> None:
        """What passed is not written down, unless something is reserved for it."""
        self.sent = min(self.sent, self._covered)

    def expire(self, now: float) -> Iterator[Any]:
        """Let go of what is too old."""
        if self._passed_at + LASTS <= now:
            self.forget()
        while self._blocks and self._blocks[0].came + LASTS <= now:
            self._written = 0
            yield self._let_go()

    def end(self) -> Iterator[Any]:
        """Let go of all."""
        while self._blocks:
            yield self._let_go()

    def _let_go(self) -> Any:
        block = self._blocks.pop(0)
        self._covered -= block.size
        self.sent = max(0, self.sent - block.size)
        return block
