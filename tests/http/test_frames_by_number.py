"""The cases of Autobahn's test suite that are about frames, by its numbers, with bytes of our own.

Those of 0 and 10 are not about frames, those of 12 and 13 about an extension, and 9.7 and 9.8 measure times.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from flowstack.http.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.http.test_frames import MASK, Reading, Said, bytewise, wire

Sent = tuple[int, bytes] | tuple[int, bytes, bool] | tuple[int, bytes, bool, int]
"""Opcode, payload, whether FIN is set, and the reserved bits."""

Case = tuple[Sequence[Sent], Sequence[Said], int | None]
"""Frames, what is read of them, and the code of what ends it."""


def good(*frames: Said) -> Case:
    return frames, frames, None


def fragments(kind: int, *payloads: bytes) -> list[Sent]:
    last = len(payloads) - 1
    return [(CONTINUATION if at else kind, payload, at == last) for at, payload in enumerate(payloads)]


def close(code: int, reason: bytes = b"") -> Said:
    return CLOSE, struct.pack(">H", code) + reason


SIZES = (0, 125, 126, 127, 128, 65535, 65536, 65536)
FRAMING: dict[str, Case] = {
    f"1.{section}.{number}": good((kind, b"~" * size))
    for section, kind in ((1, TEXT), (2, BINARY))
    for number, size in enumerate(SIZES, 1)
}

TEN = [(PING, b"ping %d" % number) for number in range(10)]
PINGS: dict[str, Case] = {
    "2.1": good((PING, b"")),
    "2.2": good((PING, b"are you there?")),
    "2.3": good((PING, b"\x00\xff\xfe\x80\xc3")),
    "2.4": good((PING, b"\xfe" * 125)),
    "2.5": ([(PING, b"\xfe" * 126)], [], 1002),
    "2.6": good((PING, b"\xfe" * 125)),
    "2.7": good((PONG, b"")),
    "2.8": good((PONG, b"nobody asked")),
    "2.9": good((PONG, b"nobody asked"), (PING, b"now I do")),
    "2.10": good(*TEN),
    "2.11": good(*TEN),
}

HELLO = (TEXT, b"Good day")
RESERVED_BITS: dict[str, Case] = {
    "3.1": ([(*HELLO, True, 1)], [], 1002),
    "3.2": ([HELLO, (*HELLO, True, 2), (PING, b"")], [HELLO], 1002),
    "3.3": ([HELLO, (*HELLO, True, 3), (PING, b"")], [HELLO], 1002),
    "3.4": ([HELLO, (*HELLO, True, 4), (PING, b"")], [HELLO], 1002),
    "3.5": ([(BINARY, b"\x00\xff\x80", True, 5)], [], 1002),
    "3.6": ([(PING, b"Good day", True, 6)], [], 1002),
    "3.7": ([(*close(1000), True, 7)], [], 1002),
}

OPCODES: dict[str, Case] = {
    f"4.{section}.{number}": (
        [(first + number - 1, payload), (PING, b"")] if number < 3
        else [HELLO, (first + number - 1, payload), (PING, b"")],
        [] if number < 3 else [HELLO],
        1002,
    )
    for section, first in ((1, 3), (2, 11))
    for number, payload in enumerate((b"", b"reserved", b"", b"reserved", b"reserved"), 1)
}  # fmt: skip

TWO = fragments(TEXT, b"one, ", b"two")
BOTH: Said = (TEXT, b"one, two")
BETWEEN: Case = ([TWO[0], (PING, b"p"), TWO[1]], [(PING, b"p"), BOTH], None)
NOTHING_TO_CONTINUE: Case = ([(CONTINUATION, b"of nothing"), HELLO], [], 1002)
NOTHING_TO_GO_ON: Case = ([(CONTINUATION, b"of nothing", False), HELLO], [], 1002)
FIVE = fragments(TEXT, b"1", b"2", b"3", b"4", b"5")
PINGED: Case = (
    [*FIVE[:2], (PING, b"a"), *FIVE[2:4], (PING, b"b"), FIVE[4]], [(PING, b"a"), (PING, b"b"), (TEXT, b"12345")], None,
)  # fmt: skip
FRAGMENTATION: dict[str, Case] = {
    "5.1": (fragments(PING, b"a", b"b"), [], 1002),
    "5.2": (fragments(PONG, b"a", b"b"), [], 1002),
    "5.3": (TWO, [BOTH], None),
    "5.4": (TWO, [BOTH], None),
    "5.5": (TWO, [BOTH], None),
    "5.6": BETWEEN,
    "5.7": BETWEEN,
    "5.8": BETWEEN,
    "5.9": NOTHING_TO_CONTINUE,
    "5.10": NOTHING_TO_CONTINUE,
    "5.11": NOTHING_TO_CONTINUE,
    "5.12": NOTHING_TO_GO_ON,
    "5.13": NOTHING_TO_GO_ON,
    "5.14": NOTHING_TO_GO_ON,
    "5.15": ([*TWO, (CONTINUATION, b"three", False), HELLO], [BOTH], 1002),
    "5.16": ([(CONTINUATION, b"zero", False), *TWO] * 2, [], 1002),
    "5.17": ([(CONTINUATION, b"zero"), *TWO] * 2, [], 1002),
    "5.18": ([(TEXT, b"one, ", False), (TEXT, b"two")], [], 1002),
    "5.19": PINGED,
    "5.20": PINGED,
}

SAMPLE = "Grüße, 5 €, \U0001f984".encode()
BAD_SAMPLE = SAMPLE + b"\xed\xa0\x80" + b"end"
OCTETS = [SAMPLE[at : at + 1] for at in range(len(SAMPLE))]
BAD_OCTETS = [BAD_SAMPLE[at : at + 1] for at in range(len(BAD_SAMPLE))]
UTF_8: dict[str, Case] = {
    "6.1.1": good((TEXT, b"")),
    "6.1.2": (fragments(TEXT, b"", b"", b""), [(TEXT, b"")], None),
    "6.1.3": (fragments(TEXT, b"", b"middle", b""), [(TEXT, b"middle")], None),
    "6.2.1": good((TEXT, SAMPLE)),
    "6.2.2": (fragments(TEXT, SAMPLE[:4], SAMPLE[4:]), [(TEXT, SAMPLE)], None),
    "6.2.3": (fragments(TEXT, *OCTETS), [(TEXT, SAMPLE)], None),
    "6.2.4": good((TEXT, "ὅδε".encode())),
    "6.3.1": ([(TEXT, BAD_SAMPLE)], [], 1007),
    "6.3.2": (fragments(TEXT, *BAD_OCTETS), [], 1007),
}

WHOLE = "ῥῦμα".encode()
ENDS = {len("ῥῦμα"[:size].encode()) for size in range(1, 5)}
SEQUENCES: dict[int, list[tuple[bool, str]]] = {
    5: [(True, (b"a" + text.encode() + b"z").hex()) for text in ("$", "¢", "€", "\U00024b62")] + [(True, WHOLE.hex())],
    6: [(size in ENDS, WHOLE[:size].hex()) for size in range(1, len(WHOLE) + 1)],
    7: [(True, text) for text in ("00", "c280", "e0a080", "f0908080")],
    8: [(False, text) for text in ("f888808080", "fc8480808080")],
    9: [(True, text) for text in ("7f", "dfbf", "efbfbf", "f48fbfbf")],
    10: [(False, text) for text in ("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")],
    11: [(True, "ed9fbf"), (True, "ee8080"), (True, "efbfbd"), (True, "f48fbfbf"), (False, "f4908080")],
    12: [(False, text) for text in ("80", "bf", *(("80bf" * 3)[: size * 2] for size in range(2, 7)))]
    + [(False, bytes(range(0x80, 0xC0)).hex())],
    13: [
        (False, b"".join(b"%c " % byte for byte in range(first, last + 1)).hex())
        for first, last in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
    ],
    14: [
        (False, text)
        for text in (
            "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf",
        )
    ],
    15: [(False, "c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf")],
    16: [(False, text) for text in ("fe", "ff", "fefeffff")],
    17: [(False, text) for text in ("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")],
    18: [(False, text) for text in ("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")],
    19: [(False, text) for text in ("c080", "e08080", "f0808080", "f880808080", "fc8080808080")],
    20: [(False, text) for text in ("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf")],
    21: [(False, high + low) for high in ("eda080", "edadbf", "edae80", "edafbf") for low in ("edb080", "edbfbf")],
    22: [(True, chr(plane << 16 | last).encode().hex()) for plane in range(17) for last in (0xFFFE, 0xFFFF)],
    23: [(True, chr(code).encode().hex()) for code in range(0xFFF9, 0x10000)],
}  # fmt: skip
UTF_8 |= {
    f"6.{section}.{number}": good((TEXT, bytes.fromhex(text))) if valid else ([(TEXT, bytes.fromhex(text))], [], 1007)
    for section, cases in SEQUENCES.items()
    for number, (valid, text) in enumerate(cases, 1)
}

NORMAL = close(1000)
LARGE: Said = (TEXT, b"~" * (256 << 10))
CLOSES: dict[str, Case] = {
    "7.1.1": good(HELLO, NORMAL),
    "7.1.2": ([NORMAL, NORMAL], [NORMAL], None),
    "7.1.3": ([NORMAL, (PING, b"")], [NORMAL], None),
    "7.1.4": ([NORMAL, HELLO], [NORMAL], None),
    "7.1.5": ([TWO[0], NORMAL, TWO[1]], [NORMAL], None),
    "7.1.6": ([LARGE, NORMAL, (PING, b"")], [LARGE, NORMAL], None),
    "7.3.1": good((CLOSE, b"")),
    "7.3.2": ([(CLOSE, b"\x03")], [], 1002),
    "7.3.3": good(NORMAL),
    "7.3.4": good(close(1000, b"all is said")),
    "7.3.5": good(close(1000, b"~" * 123)),
    "7.3.6": ([close(1000, b"~" * 124)], [], 1002),
    "7.5.1": ([close(1000, BAD_SAMPLE)], [], 1007),
    **{
        f"7.7.{number}": good(close(code))
        for number, code in enumerate(
            (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1
        )
    },
    **{
        f"7.9.{number}": ([close(code)], [], 1002)
        for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    },
    "7.13.1": ([close(5000)], [], 1002),
    "7.13.2": ([close(65535)], [], 1002),
}  # fmt: skip

CASES = FRAMING | PINGS | RESERVED_BITS | OPCODES | FRAGMENTATION | UTF_8 | CLOSES


def bytes_of(frames: Sequence[Sent], mask: bytes | None) -> list[bytes]:
    def written(opcode: int, payload: bytes, fin: bool = True, rsv: int = 0) -> bytes:
        return wire(opcode, payload, fin=fin, rsv=rsv, mask=mask)

    return [written(*frame) for frame in frames]


@pytest.mark.parametrize("mask", [MASK, None], ids=["client", "server"])
@pytest.mark.parametrize(("frames", "said", "code"), CASES.values(), ids=CASES)
def test_a_case_has_the_end_that_the_suite_expects(
    frames: Sequence[Sent], said: Sequence[Said], code: int | None, mask: bytes | None
) -> None:
    written = bytes_of(frames, mask)
    whole = b"".join(written)
    chops = [whole[at : at + 997] for at in range(0, len(whole), 997)]
    for pieces in ([whole], written, chops, *([list(bytewise(whole))] if len(whole) < 1000 else [])):
        reading = Reading(mask is not None).feed(*pieces)
        assert reading.outcome == (list(said), code, any(opcode == CLOSE for opcode, _ in said))
        if code is None and not reading.reader.closed:
            assert b"".join(reading.raw) == whole


@pytest.mark.parametrize("number", ["6.4.1", "6.4.2", "6.4.3", "6.4.4"])
def test_a_text_fails_before_its_end_is_sent(number: str) -> None:
    first, bad, rest = SAMPLE, b"\xf4\x90\x80\x80", b"end"
    if number in ("6.4.2", "6.4.4"):  # what is sent first ends within the sequence
        first, bad, rest = first + bad[:1], bad[1:2], bad[2:] + rest
    if number in ("6.4.1", "6.4.2"):
        pieces = bytes_of(fragments(TEXT, first, bad, rest), MASK)
    else:  # in one frame
        whole = wire(TEXT, first + bad + rest, mask=MASK)
        head = len(whole) - len(first + bad + rest)
        pieces = [whole[: head + len(first)], whole[head + len(first) : -len(rest)]]
    reading = Reading(masked=True).feed(pieces[0])
    assert reading.code is None
    assert b"".join(reading.raw) == pieces[0]
    reading.feed(pieces[1])
    assert reading.code == 1007
    assert b"".join(reading.raw) == pieces[0]


MEGABYTES = 4 << 20
LIMITS: dict[str, tuple[int, int, int, int]] = {
    # kind, bytes, bytes of a fragment, bytes of a read
    **{
        f"9.{section}.{number}": (kind, size, size, 65536)
        for section, kind in ((1, TEXT), (2, BINARY))
        for number, size in enumerate((64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20), 1)
    },
    **{
        f"9.{section}.{number}": (kind, MEGABYTES, 64 * 4 ** (number - 1), 65536)
        for section, kind in ((3, TEXT), (4, BINARY))
        for number in range(1, 10)
    },
    **{
        f"9.{section}.{number}": (kind, 1 << 20, 1 << 20, 64 * 2 ** (number - 1))
        for section, kind in ((5, TEXT), (6, BINARY))
        for number in range(1, 7)
    },
}


@pytest.mark.parametrize(("kind", "size", "fragment", "read"), LIMITS.values(), ids=LIMITS)
def test_a_large_message_passes_up_to_the_limit_and_none_above_it(
    kind: int, size: int, fragment: int, read: int
) -> None:
    payload = b"~" * size
    # A server's, as masking so much takes long.
    sent = b"".join(bytes_of(fragments(kind, *(payload[at : at + fragment] for at in range(0, size, fragment))), None))
    pieces = [sent[at : at + read] for at in range(0, len(sent), read)]
    reading = Reading(limit=size).feed(*pieces)
    assert reading.outcome == ([(kind, payload)], None, False)
    assert b"".join(reading.raw) == sent
    assert Reading(limit=size - 1).feed(*pieces).outcome == ([], 1009, False)
