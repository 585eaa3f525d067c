"""Client secrets of OpenAI's Realtime (``ek_…``) that were made through Flowstack: a browser that comes with one alone
is charged to the key that made it.

Each is a small file, whose name is the secret's SHA-256 and whose time is when it expires; the secret is in none. So
all workers know what one of them saw, and the next start does. Of several machines each asks their common memory for
what it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import orjson
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flowstack.files import read_regular, write_new
from flowstack.tokens import digest
from flowstack.util import Throttle

log = Logger()

BEGINNING = b"ek_"

KEPT_IN_MEMORY = 10_000
"""Secrets that are remembered without a directory; then the oldest goes."""

LONGEST = 86_400.0
"""Seconds for which one is remembered, whatever its answer says. OpenAI's live two hours at most."""

_MOST_BYTES = 4096
_SHOUT_SECONDS = 60.0


def secrets_path(state: Path) -> Path:
    """Where they lie."""
    return state / "secrets"


@frozen(slots=True)
class ClientSecret:
    """What is known of one.

    :ivar key: the SHA-256 of the Flowstack key's token.
    :ivar upstream: through which it was made, and where alone it counts.
    :ivar expires: UTC Unix seconds.
    """

    key: bytes
    upstream: str
    expires: float


class Memory(Protocol):
    """What several machines remember together: see :class:`flowstack.limits.remote_memory.RemoteMemory`."""

    def keep_secret(self, name: bytes, text: bytes, seconds: float) -> None:
        """Remember a text."""

    def find_secret(self, name: bytes) -> Deferred[bytes] | None:
        """What is remembered; None where it cannot be asked."""


class ClientSecrets:
    """Those that are known, among all workers and across restarts. Without a directory each process remembers its own.

    :param directory: made when it is first needed, for this user alone; or None.
    :param wall_clock: gives UTC Unix seconds.
    :param monotonic: seconds, for how often a failure is told of.
    :param shared: what other machines remember, too; or None.
    """

    def __init__(
        self,
        directory: Path | None,
        wall_clock: Callable[[], float],
        monotonic: Callable[[], float],
        shared: Memory | None = None,
    ) -> None:
        self._directory = directory
        self._shared = shared
        self._wall_clock = wall_clock
        self._memory: dict[bytes, ClientSecret] = {}
        self._throttle = Throttle(monotonic, _SHOUT_SECONDS)

    def remember(self, secret: str, key: bytes, upstream: str, expires: float | None) -> None:
        """Remember one. Never raises: one that cannot be written down is not known, and whoever comes with it is told.

        :param expires: as the answer says; None where it does not.
        """
        now = self._wall_clock()
        latest = now + LONGEST
        known = ClientSecret(key, upstream, latest if expires is None else min(expires, latest))
        if not known.expires > now:  # or it is no number at all
            return
        name = digest(secret.encode("utf-8", "replace"))
        if self._shared is not None:
            self._shared.keep_secret(name, _written(known), known.expires - now)
        self._note(name, known)

    def _note(self, name: bytes, known: ClientSecret) -> None:
        if self._directory is None:
            if len(self._memory) >= KEPT_IN_MEMORY:
                del self._memory[next(iter(self._memory))]
            self._memory[name] = known
            return
        text = _written(known)
        path = self._directory / name.hex()
        try:
            try:
                write_new(path, text)
            except FileNotFoundError:
                self._directory.mkdir(0o700, exist_ok=True)
                write_new(path, text)
            os.utime(path, (known.expires, known.expires))
        except FileExistsError:
            pass
        except OSError as error:
            if self._throttle.ready():
                log.error(
                    "a client secret cannot be written down, so that it will not be known: {directory}: {error}",
                    directory=str(self._directory),
                    error=error.strerror or str(error),
                )

    def find(self, secret: bytes) -> ClientSecret | None:
        """What is known of a secret that has not expired."""
        name = digest(secret)
        if self._directory is None:
            known = self._memory.get(name)
        else:
            known = None
            with suppress(OSError):  # there is none
                known = _read(read_regular(self._directory / name.hex(), _MOST_BYTES, follow=False)[0])
        return None if known is None or known.expires <= self._wall_clock() else known

    def learn(self, secret: bytes) -> Deferred[None] | None:
        """Ask what other machines know of a secret that is not known here.

        :return: fires when there is no more to be known; None where there is nobody to ask, or nothing to be asked.
        """
        if self._shared is None or self.find(secret) is not None:
            return None
        name = digest(secret)
        finding = self._shared.find_secret(name)
        return None if finding is None else finding.addCallback(self._learned, name)

    def _learned(self, text: bytes, name: bytes) -> None:
        known, now = _read(text), self._wall_clock()
        if known is not None and now < known.expires <= now + LONGEST:
            self._note(name, known)


def _written(known: ClientSecret) -> bytes:
    return orjson.dumps({"key": known.key.hex(), "upstream": known.upstream, "expires": known.expires})


def _read(text: bytes) -> ClientSecret | None:
    """What was written; None where it is something else, as its writer was killed."""
    with suppress(ValueError, TypeError, KeyError):
        values = orjson.loads(text)
        return ClientSecret(bytes.fromhex(values["key"]), str(values["upstream"]), float(values["expires"]))
    return None


def prune_secrets(directory: Path, now: float) -> int:
    """Remove those that have expired. To be called by one process, in a thread.

    :param now: UTC Unix seconds.
    :return: how many.
    :raises OSError: the directory cannot be read, or one of them not be removed.
    """
    removed = 0
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < now:
                    os.unlink(entry.path)
                    removed += 1
    return removed
