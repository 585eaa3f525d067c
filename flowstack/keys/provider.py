"""The operator's own provider keys, each in a file beside the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.logger import Logger

from flowstack.errors import ParseError
from flowstack.files import read_secret
from flowstack.redact import shown

log = Logger()

_MAX_BYTES = 8192
_KEY = re.compile(rb"[!-~]{1,4096}").fullmatch


ASIDE = 60.0
"""Seconds for which a key is not used that a provider refused."""


class KeyRing:
    """A provider's keys for one target, used in turn.

    :ivar keys: in the order of the file, at least one.
    """

    __slots__ = ("_next", "_until", "keys")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.put(keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self.keys)}>"

    def put(self, keys: Sequence[bytes]) -> None:
        """Use these from now on. What is known of those that stay is forgotten."""
        self.keys = tuple(keys)
        self._until: dict[bytes, float] = {}
        self._next = 0

    def take(self, now: float) -> bytes:
        """The key for the next request. Where none may be used, the one that may be again the soonest."""
        keys = self.keys
        if len(keys) == 1:
            return keys[0]
        if not self._until:
            self._next = number = (self._next + 1) % len(keys)
            return keys[number]
        for step in range(1, len(keys) + 1):
            number = (self._next + step) % len(keys)
            if self._until.get(keys[number], 0.0) <= now:
                self._next = number
                return keys[number]
        return min(keys, key=lambda key: self._until[key])

    def rest(self, key: bytes, until: float) -> None:
        """Leave a key alone until then, on the monotonic clock."""
        if key in self.keys:
            self._until = {one: time for one, time in self._until.items() if one != key}
            self._until[key] = until

    def resting(self, now: float) -> bool:
        """Whether none may be used now."""
        return len(self._until) == len(self.keys) and all(time > now for time in self._until.values())

    def number(self, key: bytes) -> int:
        """Which line of the file it is, from 1; by that it is named. 0: it is not there any more."""
        return self.keys.index(key) + 1 if key in self.keys else 0


class ProviderKeys:
    """The keys of the places that have them, as of the last good reading of each file.

    :param files: by the label of an upstream or target, the file with its keys.
    :ivar rings: by label.
    :ivar keys: by the upstream's name, its first key: which upstreams get the operator's; the same object for as long
        as the process lives.
    :raises ParseError: a file cannot be used.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self.rings = {label: KeyRing(read_keys(_where(label), path)) for label, path in self._files.items()}
        self.keys: dict[str, bytes] = {}
        self._note()

    def __repr__(self) -> str:
        return f"<ProviderKeys of {', '.join(self._files) or 'no upstream'}>"

    def _note(self) -> None:
        for label, ring in reversed(self.rings.items()):
            self.keys[label.partition("/")[0]] = ring.keys[0]

    def reload(self) -> None:
        """Reload each file. Where one cannot be used, the log says why, and its old keys stay in force."""
        for label, path in self._files.items():
            try:
                self.rings[label].put(read_keys(_where(label), path))
            except ParseError as error:
                log.error("a provider key was not reloaded, the old one stays in force: {fault}", fault=str(error))
        self._note()


def _where(label: str) -> str:
    upstream, _, target = label.partition("/")
    return f"[upstreams.{upstream}{target and f'.targets.{target}'}] api_key_file"


def read_key(where: str, path: Path) -> bytes:
    """Read the one key of a file.

    :param where: as of :func:`read_keys`.
    :raises ParseError: it cannot be used, or there are several.
    """
    keys = read_keys(where, path)
    if len(keys) > 1:
        raise ParseError(f"found {len(keys)} keys in {shown(str(path))}, expected one", key=where)
    return keys[0]


def read_keys(where: str, path: Path) -> tuple[bytes, ...]:
    """Read a provider's keys from the file that has them and nothing else, one on each line.

    :param where: whose file it is, for messages.
    :raises ParseError: it cannot be used.
    """
    alone = "the provider's key and nothing else, or several, one on each line"
    try:
        keys = tuple(line.strip() for line in read_secret(path, _MAX_BYTES).split(b"\n") if line.strip())
        if not keys or not all(map(_KEY, keys)):
            raise ParseError.found(f"something else in {shown(str(path))}", alone)
        if any(key.startswith(b"fsk-") for key in keys):
            raise ParseError.found(f"a Flowstack key in {shown(str(path))}", alone)
        if len(set(keys)) < len(keys):
            raise ParseError.found(f"one key twice in {shown(str(path))}", "each once")
    except ParseError as error:
        raise ParseError(error.message, key=where) from None
    return keys
