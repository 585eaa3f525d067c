"""Fakes that keep everything in memory, behind the seams of :mod:`flowstack.interfaces`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowstack.keys import Key


class MemoryKeystore:
    """A keystore over a mapping of SHA-256 digest to key.

    :param keys: digest (32 bytes) to :class:`flowstack.keys.Key`; copied.
    """

    def __init__(self, keys: Mapping[bytes, Key] | None = None) -> None:
        self._keys: dict[bytes, Key] = dict(keys or {})
        self.generation: int = 1

    def lookup(self, digest: bytes) -> Key | None:
        """Return the key with this digest, or None."""
        return self._keys.get(digest)

    def replace(self, keys: Mapping[bytes, Key]) -> None:
        """Take over another set in one step, as a reload does."""
        self._keys = dict(keys)
        self.generation += 1

    def __repr__(self) -> str:
        return f"<MemoryKeystore of {len(self._keys)} keys, generation {self.generation}>"


class MemoryLedger:
    """A ledger whose rows are a list, in the order in which they were recorded."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.accepting = True

    def record(self, row: Any, operation: str = "") -> None:
        """Append the row."""
        self.rows.append(row)

    def flush(self) -> None:
        """Nothing waits."""
