"""The keystore that the service looks keys up in: a flat file, read whole, replaced in one step.

A reload under traffic is done in slices of a few milliseconds, between which the loop serves requests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowstack.errors import ParseError
from flowstack.files import replace
from flowstack.keys import Key, KeySet, scan
from flowstack.keys.process import started_at
from flowstack.keys.reading import KeystoreError, Pieces, Reading, finished, pieces_of_reading
from flowstack.util import instant

__all__ = ["FileKeystore", "KeystoreError", "ReloadResult"]

log = Logger()

SHOWN_FAULTS = 20
"""The most faults of one reading that the log and ``reload.json`` name; the rest is counted."""

SLICE_SECONDS = 0.004
"""After so long a reload lets the loop go on. A piece of work within takes about 0.2 ms, and at most a few."""

REPORT = "reload.json"
"""In the state directory."""

MAX_REPORT = 1024 * 1024
"""Bytes of it; what is larger is none."""

_REPORT_MODE = 0o640


@frozen(slots=True)
class ReloadResult:
    """What became of a reload.

    :ivar generation: of the set that is in force now.
    :ivar keys: how many keys are in force now.
    :ivar faults: why the file was not reloaded; empty where it was.
    :ivar begun: UTC Unix seconds; who asked for a reload before then is answered by this one.
    :ivar time: UTC Unix seconds, when it was done.
    """

    generation: int
    keys: int
    faults: tuple[ParseError, ...]
    begun: float
    time: float

    @property
    def ok(self) -> bool:
        """Whether the file as it is now is in force."""
        return not self.faults


class FileKeystore:
    """The keys of a file, as of its last good reading.

    :param path: the file.
    :param state: the directory for ``reload.json``; None means that none is written.
    :param now: gives UTC Unix seconds.
    :param clock: between whose calls a reload is done in slices; None means at once, as where nothing else is served.
    :param monotonic: gives seconds, also within one turn of the loop, in which a reactor's clock may stand still.
    :ivar generation: how many sets were loaded; 0 before :meth:`load`.
    :ivar last: what came of the last reading; None before :meth:`load`.
    :ivar sha256: of the file's bytes at its last good reading, in hexadecimal.
    """

    def __init__(
        self,
        path: Path,
        state: Path | None,
        now: Callable[[], float],
        clock: Any = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._state = state
        self._now = now
        self._clock = clock
        self._monotonic = monotonic
        self._keys: KeySet = scan(b"", "").key_set()
        self._running = False
        self._asked: list[tuple[float, Deferred[ReloadResult]]] = []
        self.last: ReloadResult | None = None
        self.generation = 0
        self.sha256 = ""

    @property
    def count(self) -> int:
        """How many keys are in force."""
        return len(self._keys)

    @property
    def text(self) -> bytes:
        """The file's bytes at its last good reading."""
        return bytes(self._keys.text)

    def lookup(self, digest: bytes) -> Key | None:
        """Return the key whose token has this SHA-256, or None.

        A token that a rotation replaced gives the key as :meth:`flowstack.keys.Key.as_superseded` says.
        """
        return self._keys.get(digest)

    def load(self, last_good: bytes | None = None) -> None:
        """Read the file for the first time, at once.

        :param last_good: the ``text`` of another process of this service, to be in force while the file has faults.
        :raises KeystoreError: it has faults, and there is no such text; nothing is in force.
        """
        begun = self._now()
        result = self._judged(finished(pieces_of_reading(self._path, begun)), begun)
        if result.ok:
            return
        if last_good is None:
            raise KeystoreError(result.faults)
        self._take(scan(last_good, str(self._path)).key_set(), sha256(last_good).hexdigest())
        self._log_kept(result.faults)

    def reload(self, begun: float | None = None) -> Deferred[ReloadResult]:
        """Reload the file: whole and valid it replaces the old set in one step, otherwise the old set stays.

        Logs what became of it, and writes it to ``reload.json`` in the state directory. A reload in progress may have
        read the file already, so another one follows it, for all who asked meanwhile.

        :param begun: UTC Unix seconds, when the service began to reload, where this is not the first of its parts.
        """
        done: Deferred[ReloadResult] = Deferred()
        self._asked.append((self._now() if begun is None else begun, done))
        if not self._running:
            self._begin()
        return done

    def announce(self) -> None:
        """Write ``reload.json`` again, where this process is another one than that which loaded: after a fork."""
        if self.last is not None:
            self._report(self.last)

    def _begin(self) -> None:
        self._running = True
        asked, self._asked = self._asked, []
        begun = min(at for at, _ in asked)
        waiting = [done for _, done in asked]
        self._turn(pieces_of_reading(self._path, self._now()), begun, waiting)

    def _turn(self, pieces: Pieces[Reading], begun: float, waiting: list[Deferred[ReloadResult]]) -> None:
        """Work until the slice is over, and come back; or end the reload."""
        outcome: ReloadResult | Failure | None
        try:
            reading = self._slice(pieces)
            outcome = None if reading is None else self._judged(reading, begun)
        except Exception:
            outcome = Failure()
        if outcome is None:
            assert self._clock is not None
            self._clock.callLater(0, self._turn, pieces, begun, waiting)
            return
        self._running = False
        for done in waiting:
            done.callback(outcome)
        if self._asked and not self._running:  # who was answered may have begun it
            self._begin()

    def _slice(self, pieces: Pieces[Reading]) -> Reading | None:
        """Work for a few milliseconds, or to the end where there is no clock; give the reading if it is whole."""
        if self._clock is None:
            return finished(pieces)
        until = self._monotonic() + SLICE_SECONDS
        try:
            while self._monotonic() < until:
                next(pieces)
        except StopIteration as end:
            reading: Reading = end.value
            return reading
        return None

    def _judged(self, reading: Reading, begun: float) -> ReloadResult:
        """Take a reading over, or not; say so."""
        for warning in reading.warnings:
            log.warn("keystore: {warning}", warning=str(warning))
        if not reading.faults:
            self._take(reading.key_set, reading.sha256)
            log.info(
                "keystore: {path} is in force: {keys} keys, generation {generation}",
                path=str(self._path),
                keys=self.count,
                generation=self.generation,
            )
        elif self.generation:
            self._log_kept(reading.faults)
        result = ReloadResult(self.generation, self.count, reading.faults, begun, self._now())
        self.last = result
        self._report(result)
        return result

    def _take(self, keys: KeySet, sha256: str) -> None:
        self._keys = keys
        self.sha256 = sha256
        self.generation += 1

    def _log_kept(self, faults: tuple[ParseError, ...]) -> None:
        for line in _lines(faults):
            log.error("keystore: {line}", line=line)
        log.error(
            "keystore: {path} was not reloaded; the {keys} keys of generation {generation} stay in force",
            path=str(self._path),
            keys=self.count,
            generation=self.generation,
        )

    def _report(self, result: ReloadResult) -> None:
        """Write ``reload.json``, so that whoever sent SIGHUP can see what came of it."""
        if self._state is None:
            return
        report = {
            "generation": result.generation,
            "time": instant(result.time),
            "begun": instant(result.begun),
            "keys": result.keys,
            "sha256": self.sha256,
            "fault": list(_lines(result.faults)) or None,
            "pid": os.getpid(),
            "pid_started": started_at(os.getpid()),
        }
        path = self._state / REPORT
        try:
            # Not synced: it tells of this process only, and a sync would hold up its requests.
            replace(path, orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE), _REPORT_MODE)
        except OSError as error:
            log.error(
                "keystore: could not write {path}: {reason}; make its directory writable for this service's user",
                path=str(path),
                reason=error.strerror,
            )


def _lines(faults: tuple[ParseError, ...]) -> list[str]:
    # A path need not be UTF-8, and what is written has to be.
    lines = [str(fault).encode("utf-8", "backslashreplace").decode() for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        more = len(faults) - SHOWN_FAULTS
        lines.append(f"and {more} more faults; `flowstack check` names them all")
    return lines
