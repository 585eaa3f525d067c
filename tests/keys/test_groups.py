"""Lines of groups, and the keys that name them."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from flowstack.keys import Budget, Group, Key, KeySet, Scan, digest, format_group, rewrite_line, scan
from flowstack.keys.keyfile import PIECE_LINES
from flowstack.keys.line import parse_group

from .test_keyfile import A, B, amounts, numbers, texts


def line(number: int, attributes: str = "") -> str:
    return f"key{number} sha256:{hashlib.sha256(b'%d' % number).hexdigest()} {attributes}\n"


def key_set(text: str) -> KeySet:
    result = scan(text.encode(), "keys")
    assert result.faults == []
    return result.key_set()


def faults_of(text: str) -> list[str]:
    return [str(fault) for fault in scan(text.encode(), "keys").faults]


@pytest.mark.parametrize("order", [1, -1], ids=["before its keys", "behind its keys"])
def test_a_group_s_limits_come_with_each_key_that_names_it(order: int) -> None:
    lines = ["@search budget=500usd/month rpm=6000 # the team\n", line(1, "group=search rpm=5"), line(2)]
    keys = key_set("".join(lines[::order]))
    search = Group("search", rpm=6000, budget=Budget(Decimal(500), "month"))
    assert keys.groups == {"search": search}
    assert keys.members == {"search": 1}
    one, two = keys.get(digest(b"1")), keys.get(digest(b"2"))
    assert one == Key("key1", digest(b"1"), rpm=5, group="search", shared=search)
    assert two == Key("key2", digest(b"2"))
    assert sorted(key.id for key in keys) == ["key1", "key2"]
    assert next(key for key in keys if key.id == "key1") == one
    assert keys.count == 2


def test_a_replaced_secret_has_its_key_s_group_too() -> None:
    old = hashlib.sha256(b"old").hexdigest()
    rotated = f"group=g previous=sha256:{old} previous_until=2127-06-30"
    key = key_set(f"@g rpm=7\n{line(1, rotated)}").get(digest(b"old"))
    assert key is not None
    assert (key.superseded, key.shared) == (True, Group("g", rpm=7))


def test_a_group_without_limits_is_only_a_name_to_its_keys() -> None:
    key = key_set("@g note=x\n" + line(1, "group=g")).get(digest(b"1"))
    assert key == Key("key1", digest(b"1"), group="g")


def test_a_key_and_a_group_may_have_the_same_name_and_are_two_things() -> None:
    keys = key_set(f"@key1 rpm=7\n{line(1, 'group=key1 rpm=5')}")
    key = keys.get(digest(b"1"))
    assert key is not None
    assert (key.rpm, key.shared) == (5, Group("key1", rpm=7))


NAMES = "expected @ and a group's name, 1 to 64 of A-Z a-z 0-9 _ . -; rename it"
ALL = "rpm, tpm, max_parallel, budget, note"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("@", [f"1:1: found 0 characters, {NAMES}"]),
        ("  @a/b rpm=5", [f"1:5: found U+002F SOLIDUS, {NAMES}"]),
        ("@ search rpm=5", [f"1:1: found 0 characters, {NAMES}", "1:3: found the unknown attribute 'search', expected "
         f"one of {ALL}; correct or remove it; a value with spaces needs double quotes"]),
        (f"@{'a' * 65}", [f"1:1: found 65 characters, {NAMES}"]),
        ("@a rpm=5x", ["1:4: rpm: found '5x', expected a whole number of requests a minute, from 1; write the digits "
         "alone, without a unit, a sign or a separator"]),
        ("@a rpm=5 rpm=6", ["1:10: found rpm a second time, expected it once; remove one of the two"]),
        ("@a rmp=5", [f"1:4: found the unknown attribute 'rmp', expected one of {ALL}; did you mean rpm?"]),
        ("@a owner=b", [f"1:4: found owner, which only keys have, expected of a group {ALL}; write it on the lines of "
         "its keys"]),
        ("@a disabled", [f"1:4: found disabled, which only keys have, expected of a group {ALL}; write it on the lines "
         "of its keys"]),
        ("@a group=b", [f"1:4: found group, which only keys have, expected of a group {ALL}; write it on the lines of "
         "its keys"]),
        (f"@a sha256:{A} rpm=5", [f"1:4: found a hash, which only keys have, expected of a group {ALL}; write it on "
         "the lines of its keys"]),
        ("@a rpm=5\n@b\n@a tpm=5", ["3:1: found the group @a as in line 1, expected each once; remove one of the two "
         "lines, or rename it"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_group_s_line_is_named_with_its_place(text: str, faults: list[str]) -> None:
    assert faults_of(text) == [f"keys:{fault}" for fault in faults]


def test_a_secret_in_a_group_s_line_is_refused_and_not_shown() -> None:
    (fault,) = faults_of("@a note=fsk-k7Qm2xW9pLz4abcdefgh")
    assert fault.startswith("keys:1:9: found a whole key (fsk-..., not shown)")


def test_a_key_in_a_group_that_has_no_line_is_a_fault_of_each_such_key() -> None:
    missing = (
        "which has no line in this file, expected one that begins with @ and that name, such as '@search rpm=6000'; "
        "add it by `flowstack groups add`, or correct the name"
    )
    text = f"a sha256:{A} group=serach\n@search rpm=5\n@other\nb sha256:{B} owner=\"group=x\" rpm=5 group=sk-x # y\n"
    assert faults_of(text) == [
        f"keys:1:75: group: found 'serach', {missing}",
        f"keys:4:97: group: found a value of 4 characters (not shown), {missing}",
    ]


def test_a_group_whose_line_has_a_fault_is_not_missing_too() -> None:
    assert len(faults_of(f"@search rpm=x\na sha256:{A} group=search")) == 1


@given(
    st.builds(
        Group,
        name=st.text(st.sampled_from("abcXYZ019._-"), min_size=1, max_size=12),
        rpm=numbers,
        tpm=numbers,
        max_parallel=st.none() | st.integers(1, 1_000_000),
        budget=st.none() | st.builds(Budget, amounts, st.sampled_from(["day", "month", "total"])),
        note=texts,
    )
)
def test_a_group_that_is_written_as_a_line_is_read_as_the_same_group(group: Group) -> None:
    assert parse_group(format_group(group)) == (group, [])
    changed = evolve(group, rpm=1)
    rewritten = rewrite_line(format_group(group) + "  # ours", changed)
    assert parse_group(rewritten) == (changed, [])
    assert rewritten.endswith("  # ours")


def test_of_many_keys_whose_group_is_missing_few_are_judged_at_once() -> None:
    judged = Scan("".join(line(number, "group=g") for number in range(10 * PIECE_LINES)).encode(), "keys")
    pieces, counts = judged.pieces(), [0]
    for _ in pieces:
        counts.append(len(judged.faults))
    assert len(judged.faults) == 10 * PIECE_LINES
    assert max(after - before for before, after in pairwise(counts)) <= PIECE_LINES
