"""The compact table of a file's keys, and the pieces in which it is made."""

from __future__ import annotations

import gc
import hashlib

import pytest

from flowstack.keys import Key, KeySet, Scan, digest, parse_keys, scan
from flowstack.keys.keyfile import PIECE_LINES
from flowstack.keys.keyset import MAX_RECENT


def line(number: int, attributes: str = "") -> str:
    return f"key{number} sha256:{hashlib.sha256(b'%d' % number).hexdigest()} {attributes}\n"


def key_set(text: str) -> KeySet:
    result = scan(text.encode(), "keys")
    assert result.faults == []
    return result.key_set()


def test_each_key_is_found_by_its_digest_and_strangers_are_not() -> None:
    keys = key_set("# é\n" + "".join(line(number, f"rpm={number + 1}") for number in range(1000)))
    assert len(keys) == 1000
    for number in range(1000):
        assert keys.get(digest(b"%d" % number)) == Key(f"key{number}", digest(b"%d" % number), rpm=number + 1)
        assert keys.get(digest(b"no-%d" % number)) is None


def test_keys_are_given_in_the_order_of_the_file_as_the_parser_reads_them() -> None:
    text = "# x\r\n\n" + line(3, "owner=é").replace("\n", "\r\n") + line(1, "# y") + line(2).rstrip("\n")
    assert list(key_set(text)) == parse_keys(text.encode(), "keys")[0]
    assert [key.id for key in key_set(text)] == ["key3", "key1", "key2"]


def test_a_hash_in_upper_case_is_found_all_the_same() -> None:
    keys = key_set(line(1).replace(hashlib.sha256(b"1").hexdigest(), hashlib.sha256(b"1").hexdigest().upper()))
    found = keys.get(digest(b"1"))
    assert found is not None
    assert found.id == "key1"


def test_a_replaced_secret_finds_its_key_which_then_expires_when_the_grace_ends() -> None:
    old = hashlib.sha256(b"old").hexdigest()
    keys = key_set(
        line(1, f"owner=é rpm=5 previous=sha256:{old} previous_until=2027-06-30T12:00:00Z expires=2027-07-30")
    )
    now, before = keys.get(digest(b"1")), keys.get(digest(b"old"))
    assert now is not None
    assert before is not None
    assert (now.id, now.rpm, now.superseded) == ("key1", 5, False)
    assert (before.id, before.rpm, before.superseded) == ("key1", 5, True)
    assert before.expires_at == 1_814_356_800.0
    assert now.expires_at == 1_816_992_000.0
    assert len(keys) == 1


def test_a_comment_or_an_attribute_that_holds_a_hash_is_no_key() -> None:
    stranger = hashlib.sha256(b"stranger").hexdigest()
    keys = key_set(f"# old sha256:{stranger}\n" + line(1, f'note="sha256:{stranger}" # sha256:{stranger}'))
    assert keys.get(digest(b"stranger")) is None


def test_a_recently_used_key_is_the_same_object_and_no_more_than_the_bound_are_kept() -> None:
    count = 3 * MAX_RECENT
    keys = key_set("".join(map(line, range(count))))
    first = keys.get(digest(b"0"))
    assert keys.get(digest(b"0")) is first
    for number in range(count):
        assert keys.get(digest(b"%d" % number)) is not None
        assert len(keys._recent) <= MAX_RECENT
    assert keys.get(digest(b"0")) == first
    assert keys.get(digest(b"0")) is not first


def test_strangers_push_no_key_out_of_those_that_were_used_lately() -> None:
    keys = key_set(line(0))
    first = keys.get(digest(b"0"))
    for number in range(2 * MAX_RECENT):
        keys.get(digest(b"no-%d" % number))
    assert keys.get(digest(b"0")) is first
    assert len(keys._recent) == 1


def test_the_garbage_collector_has_nothing_to_look_at_in_the_keys_that_were_not_asked_for() -> None:
    text = "".join(line(number, "rpm=5 models=a*,b") for number in range(5000)).encode()
    gc.collect()
    before = len(gc.get_objects())
    keys = scan(text, "keys").key_set()
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert len(keys) == 5000


class CountedLines(Scan):
    """Counts the lines that are judged."""

    judged = 0

    def _judge(self, raw: bytes | bytearray, at: int, number: int) -> None:
        self.judged += 1
        super()._judge(raw, at, number)


@pytest.mark.parametrize(
    "text",
    [
        "".join(line(number, "owner=x") for number in range(10_000)),
        "# a comment\n" * 10_000,
        "\n" * 100_000,
        "nonsense\n" * 5000,
        "".join(line(number, "ownr=x") for number in range(2000)),
        line(1) * 2000,
    ],
    ids=["keys", "comments", "empty lines", "nonsense", "faults", "repeats"],
)
def test_no_piece_of_a_scan_judges_more_than_a_few_lines(text: str) -> None:
    judging = CountedLines(text.encode(), "keys")
    most = before = 0
    for _ in judging.pieces():
        most = max(most, judging.judged - before)
        before = judging.judged
    most = max(most, judging.judged - before)
    assert before > 0
    assert most <= PIECE_LINES


def test_a_line_with_a_fault_is_the_last_of_its_piece() -> None:
    judging = CountedLines(("nonsense\n" * 100).encode(), "keys")
    seen = [(judging.judged, len(judging.faults)) for _ in judging.pieces()]
    assert (5, 5) in seen
    assert all(judged == faults for judged, faults in seen)
