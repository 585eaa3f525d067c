"""What rows are told apart by, as numbers: combinations, and what is left of each where less is told."""

from __future__ import annotations

from flowstack.ledger.database import Database
from flowstack.ledger.numbers import Numbers
from flowstack.ledger.schema import TOLD, WITHIN, columns, told_by

FIELDS = (*TOLD, "attributes")
"""Of a combination; those of ``TOLD`` and the number of a set of attributes."""

KEPT = 50_000
"""Combinations whose numbers are kept in memory."""

_FIRST = next(iter(WITHIN.values()))
_OPEN = f"SELECT id, {columns(*FIELDS)} FROM dims WHERE {_FIRST} = 0"
_NOT_TOLD = (0,) * len(WITHIN)
_TOLD_BY = [tuple(name in told_by(shape) for name in FIELDS) for shape in WITHIN]


class Combinations:
    """Gives combinations their numbers. The caller holds the transaction.

    Of each method: :raises sqlite3.Error: the database cannot be read or written.
    """

    def __init__(self, connection: Database) -> None:
        self._connection = connection
        self._numbers = Numbers(connection, "dims", FIELDS, tuple(WITHIN.values()), KEPT, mark=_FIRST)

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._numbers.forget()

    def number(self, values: tuple[int, ...]) -> int:
        """The number of a row's combination.

        :param values: of :data:`FIELDS`.
        """
        found = self._number(values)
        if found in self._numbers.open:
            self._complete(found, values)
        return found

    def complete(self) -> None:
        """Say of all that rows may have what is left of them."""
        for number, *values in self._connection.execute(_OPEN).fetchall():
            self._complete(number, tuple(values))
        self.store()

    def store(self) -> None:
        """Store the new ones, at the end of the transaction."""
        self._numbers.store()

    def _complete(self, number: int, values: tuple[int, ...]) -> None:
        left = (tuple(value if told else 0 for value, told in zip(values, some, strict=True)) for some in _TOLD_BY)
        self._numbers.change(number, tuple(map(self._number, left)))

    def _number(self, values: tuple[int, ...]) -> int:
        found = self._numbers.get(values)
        return self._numbers.add(values, _NOT_TOLD) if found is None else found
