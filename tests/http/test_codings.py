"""Codings come off in any pieces, and decoding stops where it would cost too much."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import brotli
import pytest
import zstandard

from flowstack.http.codings import (
    MAX_BYTES,
    MAX_MEMBERS,
    MAX_RATIO,
    MAX_ZSTD_BYTES,
    STEP_BYTES,
    Decoder,
    codings_of,
    decodable,
)

AT_ONCE = max(STEP_BYTES, 64 * 1024)
"""Brotli's library gives what its window has."""

TEXT = b"".join(b'data: {"n": %d}\n\n' % number for number in range(200))


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        (None, ()),
        (b"", ()),
        (b"identity", ()),
        (b"gzip", (b"gzip",)),
        (b" GZip ,\tidentity,, BR", (b"gzip", b"br")),
        (b"x-gzip", (b"x-gzip",)),
        (b"zstd, deflate, br", (b"zstd", b"deflate", b"br")),
        (b"compress", None),
        (b"gzip, dcz", None),
        (b"gzip, gzip, gzip, gzip", None),
    ],
)
def test_a_field_names_codings_in_the_order_of_their_application(
    value: bytes | None, codings: tuple[bytes, ...] | None
) -> None:
    assert codings_of(value) == codings


def decoded(body: bytes, *codings: bytes, size: int = 1 << 20) -> tuple[bytes, bool]:
    """What came out, and whether decoding went on to the end."""
    out: list[bytes] = []
    decoder = Decoder(codings)
    going = True
    try:
        for at in range(0, len(body), size):
            out.extend(decoder.decoded(body[at : at + size]))
    except Exception:  # any of the libraries'
        going = False
    assert max(map(len, out), default=0) <= AT_ONCE
    return b"".join(out), going


def test_several_gzip_members_are_one_body() -> None:
    body = b"".join(gzip.compress(bytes((byte,))) for byte in TEXT[:50])
    for size in (1, 7, 1000):
        assert decoded(body, b"gzip", size=size) == (TEXT[:50], True)


def test_members_beyond_all_reason_end_it() -> None:
    out, going = decoded(gzip.compress(b"a") * (MAX_MEMBERS + 5), b"gzip")
    assert not going
    assert out == b"a" * MAX_MEMBERS


def test_several_zstd_frames_are_one_body() -> None:
    body = zstandard.compress(TEXT[:9]) + zstandard.compress(TEXT[9:])
    for size in (1, 7, 1000):
        assert decoded(body, b"zstd", size=size) == (TEXT, True)


@pytest.mark.parametrize("head", [b"", b"\x78", b"\x78\x9c", b"\x00"])
def test_deflate_with_and_without_its_wrapper_is_told_by_its_first_two_bytes(head: bytes) -> None:
    raw = zlib.compressobj(wbits=-15)
    for body in (zlib.compress(TEXT), raw.compress(TEXT) + raw.flush()):
        for size in (1, 2, 1000):
            assert decoded(body, b"deflate", size=size) == (TEXT, True)
        raw = zlib.compressobj(wbits=-15)
    assert decoded(head, b"deflate")[0] == b""


@pytest.mark.parametrize(
    ("coding", "body"),
    [(b"gzip", gzip.compress(TEXT)), (b"deflate", zlib.compress(TEXT)), (b"br", brotli.compress(TEXT)),
     (b"zstd", zstandard.compress(TEXT))],
)  # fmt: skip
def test_what_follows_a_whole_body_changes_nothing(coding: bytes, body: bytes) -> None:
    assert decoded(body + b"garbage after the end", coding, size=len(body))[0] == TEXT


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_bytes_that_are_no_such_coding_are_not_decoded(coding: bytes) -> None:
    assert decoded(b"\xff\xfe this is none of them, and goes on for a while", coding) == (b"", False)


def test_what_is_left_within_the_decoder_comes_out_though_no_byte_follows() -> None:
    for size in range(STEP_BYTES, STEP_BYTES + 3000, 37):
        deflate = zlib.compressobj(wbits=-15)
        body = deflate.compress(bytes(size)) + deflate.flush()
        assert decoded(body, b"deflate") == (bytes(size), True)


def zeros(coding: bytes, size: int) -> bytes:
    if coding == b"gzip":
        return gzip.compress(bytes(size))
    if coding == b"deflate":
        return zlib.compress(bytes(size))
    return brotli.compress(bytes(size), quality=5) if coding == b"br" else zstandard.compress(bytes(size))


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
def test_no_more_is_decoded_than_is_asked_for(coding: bytes) -> None:
    size = 2 * AT_ONCE
    pieces = Decoder((coding,)).decoded(zeros(coding, MAX_ZSTD_BYTES))
    tracemalloc.start()
    assert len(next(pieces)) <= AT_ONCE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (MAX_ZSTD_BYTES + size if coding == b"zstd" else size)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd"])
@pytest.mark.parametrize("parts", [1, 64])
def test_a_whole_body_decodes_to_a_bounded_number_of_bytes(coding: bytes, parts: int) -> None:
    body = zeros(coding, 64 * 1024 * 1024)
    out, going = decoded(body, coding, size=max(1, len(body) // parts))
    assert not going
    assert len(out) <= MAX_BYTES + MAX_RATIO * len(body)
    assert decoded(zeros(coding, MAX_ZSTD_BYTES // 2), coding) == (bytes(MAX_ZSTD_BYTES // 2), True)


def test_a_bomb_in_a_bomb_is_stopped_by_what_the_inner_one_yields() -> None:
    body = gzip.compress(zeros(b"br", 16 * MAX_BYTES))
    out, going = decoded(body, b"br", b"gzip")
    assert not going
    assert len(out) <= MAX_BYTES + MAX_RATIO * len(body)


def test_a_frame_that_asks_for_a_window_beyond_http_s_is_not_decoded() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(TEXT) + compressor.flush()
    assert decoded(body, b"zstd") == (b"", False)


@pytest.mark.parametrize(
    ("wanted", "onward"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate, br, zstd"),
        (b"GZIP;q=0.5,X-Gzip , identity;q=0", b"GZIP;q=0.5,X-Gzip , identity;q=0"),
        (b"", b""),
        (b"gzip,,br", b"gzip,,br"),
        (b"*", b"identity"),
        (b"compress", b"identity"),
        (b"dcb, gzip;q=1.0, dcz;q=0.9, *;q=0", b"gzip;q=1.0"),
        (b"gzip-like, br", b"br"),
    ],
)
def test_an_answer_is_asked_for_in_no_coding_that_is_not_decoded(wanted: bytes, onward: bytes) -> None:
    pairs = [(b"Accept", b"what, ever"), (b"accept-ENCODING", wanted), (b"Accept-Encoding", b"br")]
    changed = decodable(pairs)
    assert changed == [pairs[0], (b"accept-ENCODING", onward), pairs[2]]
    assert (changed is pairs) == (wanted == onward)
