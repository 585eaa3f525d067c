"""The keys of a whole file: its text, and where in it the line of each hash begins.

A key is parsed when it is asked for. 100,000 parsed keys would stop the loop for tens of milliseconds at each full
garbage collection; a dictionary from bytes to numbers is nothing that the collector looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import evolve

from flowstack.keys.key import Group, Key
from flowstack.keys.line import is_blank, is_group, parse_line

MAX_RECENT = 4096
"""Parsed keys that are kept."""


class KeySet:
    """A set of keys that does not change. Made by :class:`flowstack.keys.keyfile.Scan`.

    :param text: the file's, without a fault.
    :param lines: where in it the line of each SHA-256 begins, those of replaced secrets too.
    :param count: keys.
    :param groups: by name.
    :param members: how many keys name each group that any does.
    """

    __slots__ = ("_lines", "_recent", "count", "groups", "members", "text")

    def __init__(
        self,
        text: bytes | bytearray,
        lines: Mapping[bytes, int],
        count: int,
        groups: Mapping[str, Group],
        members: Mapping[str, int],
    ) -> None:
        self.text = text
        self._lines = lines
        self.count = count
        self.groups = groups
        self.members = members
        self._recent: dict[bytes, Key] = {}

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return True

    def get(self, digest: bytes) -> Key | None:
        """Return the key whose token has this SHA-256, or None.

        For the hash of a replaced secret it is the key as :meth:`Key.as_superseded` says.
        """
        key = self._recent.get(digest)
        if key is None and digest in self._lines:
            key = self._key_of(self._line_at(self._lines[digest]))
            if key is not None:
                if key.digest != digest:
                    key = key.as_superseded()
                if len(self._recent) >= MAX_RECENT:
                    self._recent.clear()
                self._recent[digest] = key
        return key

    def _line_at(self, start: int) -> str:
        end = self.text.find(b"\n", start)
        return self.text[start : len(self.text) if end < 0 else end].decode().removesuffix("\r")

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
            line = self._line_at(start)
            if not is_blank(line) and not is_group(line):
                key = self._key_of(line)
                if key is not None:
                    yield key
            start = end + 1
