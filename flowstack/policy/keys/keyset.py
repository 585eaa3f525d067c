"""The keys of a whole file as a compact table: the file's text, and where in it each hash stands.

A dictionary of 100,000 keys stops the loop for tens of milliseconds whenever the garbage collector looks through all
of it. Here there is one buffer and one array, and a key is read from its line when it is asked for; the keys that were
asked for lately are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import evolve

from flowstack.policy.keys.line import is_blank, is_group, parse_line
from flowstack.policy.keys.model import Group, Key
from flowstack.policy.keys.places import Places

MOST_RECENT = 4096
"""Keys that were asked for lately, of which up to twice as many are kept."""


class KeySet:
    """A set of keys that does not change. Made by :class:`flowstack.policy.keys.keyfile.Scan`.

    :param text: the file's, without a fault.
    :param hashes: the places of the digits of each hash, of replaced secrets too.
    :param count: keys.
    :param groups: by name. There are few of them, so they are held ready.
    :param members: how many keys name each group that any does.
    :ivar recent: some of the keys that were asked for lately, by digest: a look into it may spare :meth:`find`.
    """

    __slots__ = ("_hashes", "_older", "count", "groups", "members", "recent", "text")

    def __init__(
        self,
        text: bytes | bytearray,
        hashes: Places,
        count: int,
        groups: Mapping[str, Group],
        members: Mapping[str, int],
    ) -> None:
        self.text = text
        self._hashes = hashes
        self.count = count
        self.groups = groups
        self.members = members
        self.recent: dict[bytes, Key] = {}
        self._older: dict[bytes, Key] = {}

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return True

    def get(self, digest: bytes) -> Key | None:
        """Return the key whose token has this SHA-256, or None."""
        return self.recent.get(digest) or self.find(digest)

    def find(self, digest: bytes) -> Key | None:
        """As :meth:`get`, without the look into ``recent``.

        A key that is found by the hash of a replaced secret is given as :meth:`Key.as_superseded` says. What is not
        found is not remembered, so that strangers push nobody out.
        """
        key = self._older.get(digest) or self._read(digest)
        if key is not None:
            if len(self.recent) >= MOST_RECENT:
                self._older, self.recent = self.recent, {}
            self.recent[digest] = key
        return key

    def _read(self, digest: bytes) -> Key | None:
        at = self._hashes.find(digest.hex())
        if at < 0:
            return None
        start = self.text.rfind(b"\n", 0, at) + 1
        end = self.text.find(b"\n", at)
        key = self._key_of(_decoded(self.text[start : len(self.text) if end < 0 else end]))
        return key if key is None or key.digest == digest else key.as_superseded()

    def _key_of(self, line: str) -> Key | None:
        """The key of a line, with its group's limits."""
        key, _ = parse_line(line)
        if key is None or key.group is None:
            return key
        group = self.groups.get(key.group)
        return evolve(key, shared=group) if group is not None and group.limited else key

    def __iter__(self) -> Iterator[Key]:
        """Read each key, in the order of the file."""
        start = 0
        while start < len(self.text):
            end = self.text.find(b"\n", start)
            end = len(self.text) if end < 0 else end
            line = _decoded(self.text[start:end])
            if not is_blank(line) and not is_group(line):
                key = self._key_of(line)
                if key is not None:
                    yield key
            start = end + 1


def _decoded(line: bytes | bytearray) -> str:
    return line.decode().removesuffix("\r")
