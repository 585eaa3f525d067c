"""What rows are told apart by, as numbers: combinations, and what is left of each where less is told."""

from __future__ import annotations

from flowstack.ledger.database import Database
from flowstack.ledger.schema import TOLD, WITHIN, column, columns, told_by

FIELDS = (*TOLD, "attributes")
"""Of a combination; those of ``TOLD`` and the number of a set of attributes."""

KEPT = 50_000
"""Combinations whose numbers are kept in memory."""

_FIND = f"SELECT id FROM dims WHERE {' AND '.join(f'{column(name)} = ?' for name in FIELDS)}"
_NEW = f"INSERT INTO dims ({columns(*FIELDS)}) VALUES ({', '.join('?' for _ in FIELDS)}) RETURNING id"
_OPEN = f"SELECT id, {columns(*FIELDS)} FROM dims WHERE {next(iter(WITHIN.values()))} = 0"
_COMPLETE = f"UPDATE dims SET {', '.join(f'{name} = ?' for name in WITHIN.values())} WHERE id = ?"
_TOLD_BY = [tuple(name in told_by(shape) for name in FIELDS) for shape in WITHIN]


class Combinations:
    """Gives combinations their numbers. The caller holds the transaction.

    Of each method: :raises sqlite3.Error: the database cannot be read or written.
    """

    def __init__(self, connection: Database) -> None:
        self._execute = connection.execute
        self._known: dict[tuple[int, ...], int] = {}

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._known.clear()

    def number(self, values: tuple[int, ...]) -> int:
        """The number of a row's combination.

        :param values: of :data:`FIELDS`.
        """
        found = self._number(values)
        if self._execute(f"{_OPEN} AND id = ?", (found,)).fetchone():
            self._complete(found, values)
        return found

    def complete(self) -> None:
        """Say of all that rows may have what is left of them."""
        for number, *values in self._execute(_OPEN).fetchall():
            self._complete(number, tuple(values))

    def _complete(self, number: int, values: tuple[int, ...]) -> None:
        left = (tuple(value if told else 0 for value, told in zip(values, some, strict=True)) for some in _TOLD_BY)
        self._execute(_COMPLETE, (*map(self._number, left), number))

    def _number(self, values: tuple[int, ...]) -> int:
        found = self._known.get(values)
        if found is None:
            row = self._execute(_FIND, values).fetchone() or self._execute(_NEW, values).fetchone()
            found = int(row[0])
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[values] = found
        return found
