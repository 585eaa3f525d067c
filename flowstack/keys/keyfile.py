r"""The keystore file's text: every key and group, or every fault.

UTF-8, a key or a group a line, lines ended by LF or CRLF; an id, a hash and attributes, set apart by spaces or tabs, or
``@`` with a group's name and attributes::

    @search       budget=500usd/month rpm=6000
    # id           hash                 attributes
    k7Qm2xW9pLz4  sha256:<64 hex>      owner=alice@example.com expires=2027-06-30 rpm=600   # a remark
    p3Rt8vN1cYs6  sha256:<64 hex>      owner="Batch jobs" budget=50.00usd/month disabled

A word that begins with ``#`` opens a comment up to the line's end. A value with spaces stands in double quotes, in
which ``\"`` and ``\\`` are a quote and a backslash; outside of quotes a backslash is itself.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from flowstack.errors import ParseError
from flowstack.keys.attributes import shown
from flowstack.keys.key import Group, Key, expires_text
from flowstack.keys.keyset import KeySet
from flowstack.keys.line import (
    comment_faults,
    group_at,
    group_of,
    head_of,
    is_blank,
    is_group,
    parse_group,
    parse_line,
    previous_at,
    usual_line,
)

MAX_BYTES = 2**30
"""Of a file."""

MAX_LINE_BYTES = 64 * 1024
MAX_FAULTS = 10_000
"""After so many the rest of a file is not judged."""

MAX_WARNINGS = 20
"""Expired keys that are named; the rest is counted."""

PIECE_LINES = 32
"""Lines that are judged in one piece of work: about 0.2 ms. A line with a fault, which may take as long, ends one."""

_BLOCK_BYTES = 256 * 1024
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Scan:
    """One reading of a file's text, in pieces of bounded work.

    :param text: it must not change while the scan or its key set is used.
    :param name: what faults call the file.
    :param now: UTC Unix seconds, by which a key counts as expired; None means that none does.
    :ivar faults: in the order of the file. With any of them the set is not to be used.
    :ivar warnings: keys that have expired.
    """

    def __init__(self, text: bytes | bytearray, name: str, now: float | None = None) -> None:
        self._text = text
        self._name = name
        self._now = float("-inf") if now is None else now
        self._count = 0
        self._expired = 0
        self._blocks: list[tuple[int, int]] = []  # the offset of the first line of each block, and its number
        self._digests: dict[bytes, int] = {}  # where the line of each begins, those of replaced secrets too
        self._ids: dict[str, int] = {}
        self._groups: dict[str, Group] = {}
        self._group_lines: dict[str, int] = {}
        self._members: dict[str, int] = {}
        self._ahead: dict[str, array[int]] = {}  # of groups that were named before their line: offset and number
        self.faults: list[ParseError] = []
        self.warnings: list[ParseError] = []

    def key_set(self) -> KeySet:
        """The keys, once all pieces are done and there are no faults."""
        return KeySet(self._text, self._digests, self._count, self._groups, self._members)

    def pieces(self) -> Iterator[None]:
        """Do the work; each step is a piece of it, and nothing is to be used before the last one."""
        text = self._text
        for mark, encoding in _BYTE_ORDER_MARKS.items():
            if text.startswith(mark):
                found = f"found a {encoding} byte order mark, expected UTF-8 text without one"
                self._fault(1, 1, f"{found}; save the file as plain UTF-8")
                return
        if len(text) > MAX_BYTES:
            found = f"found {len(text)} bytes, expected at most {MAX_BYTES}"
            self.faults.append(ParseError(f"{found}; split the keys among several services", file=self._name))
            return
        yield from self._judge_lines()
        while self._ids:
            for _ in range(min(len(self._ids), 1024)):
                self._ids.popitem()
            yield
        yield from self._judge_names()
        if self._expired > MAX_WARNINGS:
            more = f"and {self._expired - MAX_WARNINGS} more keys that have expired; `flowstack keys list` shows them"
            self.warnings.append(ParseError(more, file=self._name))
        self.faults.sort(key=lambda fault: (fault.line or 0, fault.column or 0))

    def _judge_lines(self) -> Iterator[None]:
        text, number, at, judge = self._text, 0, 0, self._judge
        while at < len(text):
            self._blocks.append((at, number + 1))
            cut = text.rfind(b"\n", at, at + _BLOCK_BYTES) if at + _BLOCK_BYTES < len(text) else len(text)
            if cut < 0:  # a line that is longer than a block
                cut = text.find(b"\n", at)
                cut = len(text) if cut < 0 else cut
            for raw in text[at:cut].split(b"\n"):
                number += 1
                before = len(self.faults)
                judge(raw, at, number)
                at += len(raw) + 1
                if len(self.faults) >= MAX_FAULTS:
                    self._fault(number, None, f"found {MAX_FAULTS} faults up to here; the rest was not judged")
                    return
                if len(self.faults) > before or number % PIECE_LINES == 0:
                    yield

    def _judge(self, raw: bytes | bytearray, at: int, number: int) -> None:
        """Judge one line, and remember where it begins by its id and its hash."""
        if len(raw) > MAX_LINE_BYTES:
            found = f"found a line of {len(raw)} bytes, expected at most {MAX_LINE_BYTES}"
            self._fault(number, None, f"{found}; end lines with LF, and shorten its lists")
            return
        try:
            line = raw.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            found = f"found the byte 0x{raw[error.start]:02x}, expected UTF-8 text"
            self._fault(number, error.start + 1, f"{found}; save the file as UTF-8")
            return
        usual = usual_line(line)
        if usual is not None:
            head, fields = usual
            expires_at = fields.get("expires_at")
            group = fields.get("group")
            previous = -1
        elif is_blank(line):
            self._wrong(number, comment_faults(line))
            return
        elif is_group(line):
            self._judge_group(line, number)
            return
        else:
            key, wrong = parse_line(line)
            self._wrong(number, wrong)
            found_head = head_of(line)
            if found_head is None:
                return
            head = found_head
            expires_at, group = (key.expires_at, key.group) if key else (None, None)
            previous = previous_at(line) if key and key.previous else -1
        self._count += 1
        key_id, place = head[1], head.start(2)
        if (earlier := self._ids.setdefault(key_id, at)) != at:
            self._repeated(number, head.start(1), f"the id {key_id}", earlier)
        if (earlier := self._digests.setdefault(bytes.fromhex(head[2]), at)) != at:
            self._repeated(number, place, "the same hash", earlier)
        if previous >= 0 and (
            (earlier := self._digests.setdefault(bytes.fromhex(line[previous : previous + 64]), at)) != at
        ):
            self._repeated(number, previous, "the same hash", earlier)
        if expires_at is not None and expires_at <= self._now:
            self._warn_expired(number, key_id, expires_at)
        if group is not None:
            self._members[group] = self._members.get(group, 0) + 1
            if group not in self._group_lines:
                self._ahead.setdefault(group, array("Q")).extend((at, number))

    def _judge_group(self, line: str, number: int) -> None:
        group, wrong = parse_group(line)
        self._wrong(number, wrong)
        name = group_of(line)
        if name is None:
            return
        first = self._group_lines.setdefault(name, number)
        if first != number:
            found = f"found the group @{name} as in line {first}, expected each once"
            self._fault(number, line.index("@") + 1, f"{found}; remove one of the two lines, or rename it")
        elif group is not None:
            self._groups[name] = group

    def _judge_names(self) -> Iterator[None]:
        """Each group that a key names has a line, before or behind the key's."""
        missing = {name: places for name, places in self._ahead.items() if name not in self._group_lines}
        self._ahead.clear()
        for name, places in missing.items():
            for at, number in zip(places[::2], places[1::2], strict=True):
                if len(self.faults) >= MAX_FAULTS:
                    return
                end = self._text.find(b"\n", at)
                line = self._text[at : len(self._text) if end < 0 else end].decode()
                self._fault(
                    number,
                    group_at(line) + 1,
                    f"group: found {shown(name)}, which has no line in this file, expected one that begins with @ and "
                    "that name, such as '@search rpm=6000'; add it by `flowstack groups add`, or correct the name",
                )
                if len(self.faults) % PIECE_LINES == 0:
                    yield

    def _repeated(self, number: int, place: int, what: str, earlier: int) -> None:
        found = f"found {what} as in line {self._line_of(earlier)}, expected each once"
        self._fault(number, place + 1, f"{found}; remove one of the two lines, or make another key")

    def _line_of(self, at: int) -> int:
        start, number = self._blocks[bisect_right(self._blocks, at, key=lambda block: block[0]) - 1]
        return number + self._text.count(b"\n", start, at)

    def _warn_expired(self, number: int, key_id: str, expires_at: float) -> None:
        self._expired += 1
        if self._expired <= MAX_WARNINGS:
            message = (
                f"expires: found a time that has passed: the key {key_id} was valid through {expires_text(expires_at)} "
                "(UTC); remove the line, or move the date"
            )
            self.warnings.append(ParseError(message, file=self._name, line=number))

    def _wrong(self, number: int, wrong: list[ParseError]) -> None:
        for one in wrong:
            self._fault(number, one.column, one.message)

    def _fault(self, number: int, column: int | None, message: str) -> None:
        self.faults.append(ParseError(message, file=self._name, line=number, column=column))


def scan(text: bytes | bytearray, name: str, now: float | None = None) -> Scan:
    """Judge a file's text at one go; see :class:`Scan`."""
    result = Scan(text, name, now)
    for _ in result.pieces():
        pass
    return result


def parse_keys(text: bytes, path_name: str) -> tuple[list[Key], list[ParseError]]:
    """Read the whole file, each key of it.

    :param path_name: what faults call the file.
    :return: the keys of the faultless lines, in their order, and all faults. With any fault the set is not to be used.
    """
    result = scan(text, path_name)
    bad = {fault.line for fault in result.faults}
    keys = []
    for number, raw in enumerate(text.split(b"\n"), 1):
        if number not in bad and None not in bad:
            line = raw.decode().removesuffix("\r")
            key = None if is_blank(line) or is_group(line) else parse_line(line)[0]
            if key is not None:
                keys.append(key)
    return keys, result.faults
