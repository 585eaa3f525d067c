"""What intake, sums and reports need of a database: of SQLite's index here, and of the PostgreSQL of all machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Count(Protocol):
    """What a statement did."""

    @property
    def rowcount(self) -> int:
        """How many rows were inserted, changed or removed."""


class Cursor(Count, Protocol):
    """What a statement gave."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Them, one by one."""


class Database(Protocol):
    """A connection in which a transaction begins with ``BEGIN``; ``?`` stands for a parameter."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run a statement."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Count:
        """Run an ``INSERT`` with each of these."""


class Unavailable(Exception):
    """The PostgreSQL of all machines cannot be used now, or as it is; the text says why."""
