"""Who changed which key or group by the page or its API, and when: a line of JSON each, in the state directory.

Attributes before and after are in it, and no secret or hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from attrs import define

from flowstack.errors import ParseError
from flowstack.files import open_regular, write
from flowstack.keys.reading import KeystoreError
from flowstack.util import instant

MODE = 0o600

MOST_READ = 8 * 1024 * 1024
"""Bytes at the file's end that are looked at."""


def audit_path(state: Path) -> Path:
    """Where it lies below the state directory."""
    return state / "audit.jsonl"


@define(slots=True)
class Entry:
    """What a change was."""

    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


@contextmanager
def written(state: Path, now: float, actor: Mapping[str, Any], action: str, target: str) -> Iterator[Entry]:
    """Write a change down that the block does, and says in the entry; none where it raises.

    :param actor: role and address.
    :raises KeystoreError: it could not be written down, and so is not done.
    """
    path = audit_path(state)
    try:
        file = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE, follow=False)
    except OSError as error:
        message = f"a change cannot be written down: {error.strerror}; nothing was changed"
        raise KeystoreError((ParseError(message, file=str(path)),)) from None
    entry = Entry()
    try:
        yield entry
        document = {
            "at": instant(now), "actor": actor, "action": action, "target": target,
            "before": entry.before, "after": entry.after,
        }  # fmt: skip
        try:
            write(file, orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
            os.fsync(file)
        except OSError as error:
            message = f"the change was made, and could not be written down: {error.strerror}"
            raise KeystoreError((ParseError(message, file=str(path)),)) from None
    finally:
        os.close(file)


def entries(state: Path, limit: int) -> list[dict[str, Any]]:
    """The last ones, the newest first."""
    try:
        file = open_regular(audit_path(state), os.O_RDONLY, follow=False)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(file).st_size
        text = os.pread(file, MOST_READ, max(size - MOST_READ, 0))
    finally:
        os.close(file)
    found = []
    for line in reversed(text.split(b"\n")):
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the end, or a beginning that was cut
        found.append(entry)
        if len(found) == limit:
            break
    return found
