"""The PostgreSQL in which all machines keep one ledger: how it is reached, and what is SQLite's way to ask it.

Only where ``[shared] postgres`` is set is this module imported, as psycopg is an extra (``flowstack[postgres]``).
"""

from __future__ import annotations

import os
import re
import signal
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from itertools import count
from types import FrameType, TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psycopg
from attrs import frozen
from psycopg.adapt import Buffer, Loader
from psycopg.types.numeric import Int8Dumper

from flowstack.config.settings import Shared
from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.ledger.database import Cursor, Unavailable
from flowstack.tokens import hide_keys

SCHEMA: Final = "flowstack"
"""In which all tables are."""

OLDEST: Final = 14
"""The first version of PostgreSQL with which all of it works."""

CONNECT_SECONDS: Final = 10
SILENT_SECONDS: Final = 30
"""After which a network that takes bytes and gives none counts as broken, on both sides."""

LOCK_SECONDS: Final = 10
STATEMENT_SECONDS: Final = 120

AT_ONCE: Final = 500
"""Rows in one ``INSERT``."""

_FETCHED: Final = 1000

_PASSWORD_BYTES: Final = 8192

_SESSION: Final = (
    ("search_path", SCHEMA),
    ("timezone", "UTC"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("default_transaction_isolation", "read\\ committed"),
    ("lock_timeout", f"{LOCK_SECONDS}s"),
    ("statement_timeout", f"{STATEMENT_SECONDS}s"),
    ("idle_in_transaction_session_timeout", f"{SILENT_SECONDS}s"),
    ("tcp_user_timeout", f"{SILENT_SECONDS}s"),
    ("tcp_keepalives_idle", "10s"),
    ("tcp_keepalives_interval", "5s"),
    ("tcp_keepalives_count", "4"),
)  # fmt: skip
"""What the server is told, whatever the role is set to. It must not hold the locks of a machine that is gone."""


_TOO_MUCH: Final = "54"
"""The class of errors that name a limit of PostgreSQL's own, as of how deep a value may be."""


_NO_FILE: Final = os.path.join(os.devnull, "none")
"""No file can be there: of one that is none, such as os.devnull, libpq says so on standard error."""


class Misfit(Exception):
    """PostgreSQL does not take a value: the statement is at fault, and not the way to the server."""


class _Whole(Loader):
    """Sums of whole numbers are ``numeric``, and whole."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _Cursor(psycopg.RawCursor[Any]):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # who iterates is no more than that
        """Rows by the thousand: one by one each costs as much again."""
        while some := self.fetchmany(_FETCHED):
            yield from some


class Postgres:
    """A connection, as :class:`flowstack.ledger.database.Database`. Once it raised Unavailable, close it.

    :param shared: where it is.
    :param application: what PostgreSQL's views call the connection.
    :raises Unavailable: it cannot be reached, refuses, or is too old.
    """

    def __init__(self, shared: Shared, application: str) -> None:
        self.place, options = _options(shared, application)
        with self._named():
            self._connection = psycopg.connect(autocommit=True, cursor_factory=_Cursor, **options)
        adapters = self._connection.adapters
        adapters.register_dumper(int, Int8Dumper)
        adapters.register_loader("numeric", _Whole)
        self.version = self._connection.info.server_version // 10000
        if self.version < OLDEST:
            self.close()
            raise Unavailable(
                f"found PostgreSQL {self.version} at {self.place}, expected {OLDEST} or newer: upgrade the server"
            )
        (path,) = self.execute("SELECT current_setting('search_path')").fetchone()
        if path != SCHEMA:
            self.close()
            raise Unavailable(
                f"PostgreSQL at {self.place}: found a connection that was not told its settings, expected PostgreSQL "
                "itself: a pooler that drops the parameter options, as PgBouncer may, cannot be between"
            )
        encoding = self._connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            self.close()
            raise Unavailable(
                f"PostgreSQL at {self.place}: found a database in {encoding}, expected UTF8: make another with CREATE "
                "DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it, whatever state it is in."""
        with suppress(psycopg.Error):
            self._connection.close()

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run a statement.

        :raises Unavailable: it came to no end.
        :raises Misfit: PostgreSQL does not take one of the values.
        """
        with self._named():
            if not parameters:
                return self._connection.execute(sql.encode())
            return self._connection.execute(_translated(sql), _fitting(parameters))

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Inserted:
        """Run an ``INSERT`` with each of these, many at once: each alone would cost several times as much.

        Their texts are without NUL.

        :raises Unavailable: as of :meth:`execute`; likewise Misfit.
        """
        rows = list(parameters)
        if len(rows) > AT_ONCE and self._copied(sql, rows):
            return Inserted(len(rows))
        new = 0
        with self._named():
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                query = _translated_many(sql, len(some))
                new += self._connection.execute(query, [value for row in some for value in row]).rowcount
        return Inserted(new)

    def _copied(self, sql: str, rows: list[Sequence[Any]]) -> bool:
        """The same by ``COPY``, which costs half; false where that is not possible, as a row is there already.

        The caller holds the transaction.
        """
        copy = _copy(sql)
        if copy is None:
            return False
        self.execute("SAVEPOINT copied")
        try:
            with self.copying(copy) as send:
                for row in rows:
                    send(row)
        except Misfit:
            self.execute("ROLLBACK TO SAVEPOINT copied")
            return False
        self.execute("RELEASE SAVEPOINT copied")
        return True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block, or nothing."""
        self.execute("BEGIN")
        try:
            yield
            self.execute("COMMIT")
        except Misfit:
            self.execute("ROLLBACK")
            raise
        except BaseException:
            self.close()  # to roll back would be to wait for a network that may be dead
            raise

    def has_table(self, name: str) -> bool:
        """Whether there is a table: as of now, where ``to_regclass`` may remember that there was none.

        :raises Unavailable: as of :meth:`execute`.
        """
        found = self.execute(
            "SELECT FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace "
            "WHERE nspname = ? AND relname = ?",
            (SCHEMA, name),
        )
        return found.fetchone() is not None

    @contextmanager
    def copying(self, sql: str) -> Iterator[Callable[[Sequence[Any]], None]]:
        """``COPY … FROM STDIN``: gives what takes each row.

        :raises Unavailable: as of :meth:`execute`; likewise Misfit.
        """
        with self._named(), self._connection.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            try:
                yield copy.write_row
            except BaseException:
                self.close()  # else PostgreSQL would be told, which is to wait for a network that may be dead
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        """PostgreSQL's errors as ours, in a line, without what was sent: it may be anybody's."""
        try:
            yield
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise Misfit(_why(error)) from None
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith(_TOO_MUCH):
                raise Misfit(_why(error)) from None
            raise Unavailable(f"PostgreSQL at {self.place}: {_why(error)}") from None


@frozen
class Inserted:
    """How many rows were new."""

    rowcount: int


def _options(shared: Shared, application: str) -> tuple[str, dict[str, Any]]:
    """Where PostgreSQL is, for people; and what psycopg is to be told."""
    url = urlsplit(shared.postgres or "")
    place = f"{url.hostname}:{url.port}"
    try:
        secret = shared.postgres_password_file and read_secret(shared.postgres_password_file, _PASSWORD_BYTES).decode()
    except (ParseError, UnicodeDecodeError) as error:
        why = error.message if isinstance(error, ParseError) else "found a password that is no UTF-8"
        raise Unavailable(f"[shared] postgres_password_file: {why}") from None
    authorities = shared.postgres_ca_file
    if shared.postgres_tls and authorities is None:
        # The library that psycopg brings looks where another distribution keeps them.
        paths = ssl.get_default_verify_paths()
        if paths.cafile:
            os.environ.setdefault("SSL_CERT_FILE", paths.cafile)
        if paths.capath:
            os.environ.setdefault("SSL_CERT_DIR", paths.capath)
    return place, {
        "host": url.hostname, "port": url.port, "user": url.username, "dbname": url.path.strip("/"),
        "password": secret or "", "passfile": _NO_FILE,
        "sslmode": "verify-full" if shared.postgres_tls else "disable",
        "sslrootcert": (str(authorities) if authorities else "system") if shared.postgres_tls else "",
        "gssencmode": "disable", "connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": SILENT_SECONDS * 1000,
        "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4,
        "application_name": application, "options": " ".join(f"-c {name}={value}" for name, value in _SESSION),
    }  # fmt: skip


def _why(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error) or type(error).__name__
    return hide_keys(" ".join(text.split())).removesuffix(".")


@lru_cache(1000)
def _translated(sql: str) -> bytes:
    """With PostgreSQL's own marks: psycopg's it would look for in each text, which costs more than to run it."""
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", sql).encode()


@lru_cache(100)
def _translated_many(sql: str, rows: int) -> bytes:
    """An ``INSERT`` of one row as one of many."""
    head, marks, rest = _insert(sql)
    return _translated.__wrapped__(f"{head}{', '.join([marks] * rows)}{rest}")


@cache
def _insert(sql: str) -> tuple[str, str, str]:
    """An ``INSERT`` in three: up to its values, a row's marks, and what comes behind."""
    head, found, rest = sql.partition(" VALUES ")
    depth = 0
    for at, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return f"{head}{found}", rest[: at + 1], rest[at + 1 :]
    raise ValueError(f"no INSERT of values: {sql}")


@cache
def _copy(sql: str) -> str | None:
    """An ``INSERT`` as a ``COPY``; None where it changes rows that are there.

    Where -1 stands for NULL it does so in each column: those in which it does not are ``NOT NULL``, so that a row with
    it there is not taken, and goes by ``INSERT``.
    """
    head, marks, rest = _insert(sql)
    if "DO UPDATE" in rest:
        return None
    null = " WITH (NULL '-1')" if "NULLIF(?, -1)" in marks else ""
    return f"COPY {head.removeprefix('INSERT INTO ').removesuffix(' VALUES ')} FROM STDIN{null}"


def _fitting(values: Sequence[Any]) -> list[Any]:
    """The same without NUL, which no text of PostgreSQL can hold."""
    return [value.replace("\0", "\ufffd") if type(value) is str and "\0" in value else value for value in values]


class TookTooLong(BaseException):
    """The block of :func:`at_most` did not end in its time. Nothing that goes on after an error may stop it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Bound a block in time, in the main thread: a network may swallow what the server would answer.

    :raises TookTooLong: it is over.
    """

    def over(number: int, frame: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
