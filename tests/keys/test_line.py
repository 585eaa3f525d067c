"""One line of the keystore file: the quick way to read it against the slow one, and how it is changed."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from flowstack.keys import Key, format_key
from flowstack.keys.line import _parse_words, parse_line, previous_at, rewrite_line, usual_line

A, B = "a1" * 32, "b2" * 32
HEAD = f"key1  sha256:{A}"

pieces = st.sampled_from(
    [" ", " ", "  ", '"', "\\", "=", "#", "\t", ",", "owner=a", 'owner="a b"', 'note="x #1"', "rpm=5", "tpm=0", "é",
     "disabled", "disabled=", "models=a*,b", "allow_ip=::1", "expires=2027-06-30", "fsk-", "\u00a0", "\x0b", "=5"]
)  # fmt: skip


@given(st.lists(pieces, max_size=10))
@example([" ", 'owner="a b"', " ", "#", " ", "rpm=5"])
@example([" ", 'owner="a"', 'note="b"'])
def test_whatever_is_read_the_quick_way_is_read_the_same_word_by_word(parts: list[str]) -> None:
    line = HEAD + "".join(parts)
    usual = usual_line(line)
    key, wrong = _parse_words(line)
    if usual is not None:
        head, fields = usual
        assert wrong == []
        assert key == Key(head[1], bytes.fromhex(head[2]), **fields)
    assert parse_line(line)[0] == key


@pytest.mark.parametrize(
    "attributes",
    ["", " rpm=600", " disabled rpm=5  owner=x#y", ' owner="Batch jobs" rpm=5 note="ticket #5, a=b"', " owner=José"],
)
def test_lines_as_they_mostly_are_are_read_the_quick_way(attributes: str) -> None:
    assert usual_line(HEAD + attributes) is not None


REWRITTEN = [
    (HEAD, {"rpm": 5}, f"{HEAD}  rpm=5"),
    (f"{HEAD}\trpm=5", {"rpm": 6}, f"{HEAD}\trpm=6"),
    (f"  {HEAD}   rpm=5   # a remark", {"owner": "x"}, f"  {HEAD}   owner=x rpm=5   # a remark"),
    (f"{HEAD} rpm=5 # a remark", {"rpm": None}, f"{HEAD} # a remark"),
    (f"{HEAD}  # disabled", {"disabled": True}, f"{HEAD}  disabled  # disabled"),
    (f"{HEAD} rpm=5  ", {"disabled": True}, f"{HEAD} rpm=5 disabled"),
    (f'{HEAD} note="a # b" rpm=5 # c', {"rpm": 7}, f'{HEAD} rpm=7 note="a # b" # c'),
    (f"{HEAD} rpm=5", {"digest": bytes.fromhex(B)}, f"key1  sha256:{B} rpm=5"),
]


@pytest.mark.parametrize(("line", "changes", "after"), REWRITTEN)
def test_a_changed_key_takes_its_lines_place_and_the_comment_stays(
    line: str, changes: dict[str, Any], after: str
) -> None:
    key, _ = parse_line(line)
    assert key is not None
    changed = evolve(key, **changes)
    assert rewrite_line(line, changed) == after
    assert parse_line(after) == (changed, [])


@pytest.mark.parametrize(
    "line",
    [
        f"{HEAD} previous=sha256:{B} previous_until=2027-06-30",
        f'{HEAD} note="previous=sha256:{A}" previous="sha256:{B}" previous_until=2027-06-30',
        f"{HEAD} owner=previous=sha256:{A} previous_until=2027-06-30 previous=sha256:{B} # previous=sha256:{A}",
    ],
)
def test_the_place_of_a_replaced_secrets_hash_is_found_among_words_like_it(line: str) -> None:
    place = previous_at(line)
    assert line[place : place + 64] == B


def test_a_line_without_a_rotation_has_no_such_place() -> None:
    assert previous_at(f"{HEAD} owner=previous=x # previous=sha256:{A}") == -1


def test_a_rotated_key_is_written_with_both_its_hashes() -> None:
    key = Key("k", bytes.fromhex(A), previous=bytes.fromhex(B), previous_until=86_400.0)
    assert format_key(key) == f"k  sha256:{A}  previous=sha256:{B} previous_until=1970-01-01"
    assert B[:8] not in repr(key)
