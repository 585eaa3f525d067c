"""Numbers of what stands in a table: the database is not asked for each, as to ask costs more than all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowstack.ledger.database import Database
from flowstack.ledger.schema import columns


class Numbers:
    """Gives each key of a table its number, which never changes.

    As long as all of the table is in memory, a key that is not there is new. New ones have the next numbers, and are
    stored together. The caller holds the transaction, alone, and calls :meth:`store` at its end.

    Of each method: :raises sqlite3.Error: the database cannot be read or written.

    :param key: the columns of the key.
    :param others: all other columns but ``id``.
    :param most: keys that are kept in memory.
    :param mark: a column of whole numbers that tells, by being 0, which keys are open.
    :ivar open: the numbers of these, of those in memory.
    """

    def __init__(
        self, connection: Database, table: str, key: Sequence[str], others: Sequence[str], most: int, mark: str = "1"
    ) -> None:
        self._connection = connection
        self._most = most
        names = columns(*key)
        where = " AND ".join(f"{columns(name)} = ?" for name in key)
        self._find = f"SELECT id, {mark} FROM {table} WHERE {where}"
        self._read = f"SELECT id, {mark}, {names} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"
        self._max = f"SELECT COALESCE(MAX(id), 0) FROM {table}"
        every = ("id", *key, *others)
        self._insert = f"INSERT INTO {table} ({columns(*every)}) VALUES ({', '.join('?' * len(every))})"
        self._update = f"UPDATE {table} SET {', '.join(f'{columns(name)} = ?' for name in others)} WHERE id = ?"
        self._marked = mark != "1"
        self.forget()

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._known: dict[tuple[Any, ...], int] = {}
        self._new: dict[int, tuple[Any, ...]] = {}
        self.open: set[int] = set()
        self._last = 0
        self._has_all, self._begun = True, False

    def __len__(self) -> int:
        return len(self._known)

    def begin(self) -> bool:
        """Learn what others have brought since the last transaction, unless that is done.

        :return: whether they have, or may have.
        """
        if self._begun:
            return False
        self._begun = True
        before = self._last
        if self._has_all:
            room = self._most - len(self._known)
            for number, mark, *key in self._connection.execute(self._read, (before, room + 1)):
                self._remember(number, mark, tuple(key))
        if not self._has_all:
            (self._last,) = self._connection.execute(self._max).fetchone()
        return self._last != before

    def get(self, key: tuple[Any, ...]) -> int | None:
        """A key's number, or None where it has none."""
        self.begin()
        found = self._known.get(key)
        if found is None and not self._has_all:
            row = self._connection.execute(self._find, key).fetchone()
            if row is not None:
                found = int(row[0])
                self._remember(found, row[1], key)
        return found

    def add(self, key: tuple[Any, ...], others: tuple[Any, ...]) -> int:
        """Give a key that has none a number."""
        self.begin()
        number = self._last + 1
        self._new[number] = (number, *key, *others)
        self._remember(number, others[0] if self._marked else 1, key)
        return number

    def change(self, number: int, others: tuple[Any, ...]) -> None:
        """Say what stands in the other columns, which closes it."""
        self.open.discard(number)
        new = self._new.get(number)
        if new is None:
            self._connection.execute(self._update, (*others, number))
        else:
            self._new[number] = (*new[: len(new) - len(others)], *others)

    def store(self) -> None:
        """Store the new ones, at the end of the transaction."""
        self.flush()
        self._begun = False

    def flush(self) -> None:
        """Store what is new by now, as for a question about the table."""
        if self._new:
            self._connection.executemany(self._insert, list(self._new.values()))
            self._new.clear()

    def _remember(self, number: int, mark: int, key: tuple[Any, ...]) -> None:
        if len(self._known) >= self._most:
            self.flush()
            self._known.clear()
            self.open.clear()
            self._has_all = False
        self._known[key] = number
        if not mark:
            self.open.add(number)
        self._last = max(self._last, number)
