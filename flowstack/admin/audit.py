"""Who changed which key or group by the page or its API, and when: lines of JSON in the state directory.

Each change has two: what is to be done, before it is, and what came of it, with the attributes before and after. No
secret or hash is in it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
from attrs import define

from flowstack.errors import ParseError
from flowstack.files import open_regular, write
from flowstack.keys.reading import KeystoreError
from flowstack.util import instant

MODE = 0o600

INTENDED, MADE, REFUSED, UNKNOWN = "intended", "made", "refused", "unknown"
"""What a line says of a change. Unknown is one without an outcome: the process ended, or the disk was full."""

MOST_READ = 8 * 1024 * 1024
"""Bytes at the file's end that are looked at."""


def audit_path(state: Path) -> Path:
    """Where it lies below the state directory."""
    return state / "audit.jsonl"


@define(slots=True)
class Entry:
    """What a change was.

    :ivar fault: why its outcome could not be written down, though it was made; None where it was.
    """

    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    fault: str | None = None


@contextmanager
def written(state: Path, now: float, actor: Mapping[str, Any], action: str, target: str) -> Iterator[Entry]:
    """Write down that a change is to be made, on disk before the block makes it; and, after it, what it was.

    :param actor: role and address.
    :raises KeystoreError: it could not be written down, and so is not made.
    """
    path, entry = audit_path(state), Entry()
    about = {"change": secrets.token_hex(8), "at": instant(now), "actor": actor, "action": action, "target": target}
    try:
        file = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE, follow=False)
    except OSError as error:
        raise _not_made(path, error) from None
    try:
        try:
            _append(file, {**about, "outcome": INTENDED})
        except OSError as error:
            raise _not_made(path, error) from None
        try:
            yield entry
        except BaseException:
            with suppress(OSError):  # without this line nobody knows that nothing was changed
                _append(file, {**about, "outcome": REFUSED})
            raise
        try:
            _append(file, {**about, "outcome": MADE, "before": entry.before, "after": entry.after})
        except OSError as error:  # to fail now would keep a new secret from who asked for it
            entry.fault = f"The change was made; that it was could not be written to {path}: {error.strerror}."
    finally:
        os.close(file)


def _not_made(path: Path, error: OSError) -> KeystoreError:
    message = f"a change cannot be written down: {error.strerror}; nothing was changed"
    return KeystoreError((ParseError(message, file=str(path)),))


def _append(file: int, document: Mapping[str, Any]) -> None:
    # A line that a full disk cut before is ended first.
    write(file, b"\n" + orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
    os.fsync(file)


def entries(state: Path, limit: int) -> list[dict[str, Any]]:
    """The changes made last, the newest first; of one whose outcome is not known, too."""
    try:
        file = open_regular(audit_path(state), os.O_RDONLY, follow=False)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(file).st_size
        text = os.pread(file, MOST_READ, max(size - MOST_READ, 0))
    finally:
        os.close(file)
    found: list[dict[str, Any]] = []
    ended: set[str] = set()
    for line in reversed(text.split(b"\n")):
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the end, or a line that was cut
        outcome = entry.setdefault("outcome", MADE)  # of an earlier version
        if outcome == INTENDED and entry["change"] not in ended:
            entry |= {"outcome": UNKNOWN, "before": None, "after": None}
        elif outcome != MADE:
            ended.add(entry["change"])
            continue
        elif "change" in entry:
            ended.add(entry["change"])
        found.append(entry)
        if len(found) == limit:
            break
    return found
