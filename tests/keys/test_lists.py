"""Lists of keys that are brought in from elsewhere."""

from __future__ import annotations

import hashlib

import pytest

from flowstack.keys import Key, digest, make_token
from flowstack.keys.lists import parse_list, repeats

KEY_ID, TOKEN = make_token(lambda size: bytes(range(size)))
HASH = hashlib.sha256(b"other").hexdigest()


def faults_of(text: str | bytes) -> list[str]:
    _, faults = parse_list(text if isinstance(text, bytes) else text.encode(), "list", {})
    return [str(fault) for fault in faults]


def test_lines_of_a_keystore_and_whole_keys_may_stand_side_by_side() -> None:
    foreign = "a-token-of-another-making"
    text = f"# a list\r\n\n{TOKEN}\r\nk1 sha256:{HASH} rpm=5 # x\n  {foreign}  \n"
    found, faults = parse_list(text.encode(), "list", {"owner": "x"})
    assert faults == []
    hashed = digest(foreign.encode())
    assert found == [
        (3, Key(KEY_ID, digest(TOKEN.encode()), owner="x")),
        (4, Key("k1", bytes.fromhex(HASH), rpm=5)),
        (5, Key(hashed.hex()[:12], hashed, owner="x")),
    ]


BAD = [
    (TOKEN[:-1], "list:2: The Flowstack key looks mistyped or cut"),
    (TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B"), "its checksum is wrong"),
    ("short", "list:2: found a key of 5 characters (not shown), expected at least 16"),
    ("sk-proj-0123456789abcdef", "this is no key that a client could send"),
    ("x" * 600, "this is no key that a client could send"),
    ("schlüssel-0123456789", "this is no key that a client could send"),
    (f"k1 sha256:{HASH} rpm=x", "list:2:76: rpm: found 'x'"),
    (f"sha256:{HASH}", "list:2:1: found a hash, expected an id first"),
    (f"k1 {TOKEN}", "list:2:4: found a whole key"),
    (f"{TOKEN} rpm=5", "list:2:1: found a whole key"),
    ("two words", "list:2:5: hash: found 5 characters without 'sha256:'"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_bad_line_is_named_and_never_repeated(line: str, says: str) -> None:
    faults = faults_of(f"# first\n{line}\n")
    assert len(faults) == 1
    assert faults[0].startswith("list:2")
    assert says in faults[0]
    assert not any(len(word) > 12 and word in faults[0] for word in line.split())


def test_a_line_that_is_no_utf8_is_named() -> None:
    assert faults_of(b"k1 \xff\n") == ["list:1:4: found a byte that is not UTF-8, expected UTF-8 text"]


def test_a_key_that_stands_twice_in_the_list_is_named_with_both_lines() -> None:
    hashed = digest(TOKEN.encode()).hex()
    assert faults_of(f"{TOKEN}\n{TOKEN}\n") == [
        f"list:2: found the same {what} as in line 1, expected each once; remove one of the two"
        for what in ("id", "hash")
    ]
    faults = faults_of(f"{TOKEN}\nother sha256:{HASH} previous=sha256:{hashed} previous_until=2027-06-30\n")
    assert faults == ["list:2: found the same hash as in line 1, expected each once; remove one of the two"]


def test_keys_that_the_keystore_has_are_named_by_what_they_share() -> None:
    found, _ = parse_list(f"{TOKEN}\nk1 sha256:{HASH}\nk2 sha256:{'ab' * 32}\n".encode(), "list", {})
    old = [Key(KEY_ID, bytes(32)), Key("x", bytes([1]) * 32, previous=bytes.fromhex(HASH), previous_until=1.0)]
    assert [str(fault) for fault in repeats(found, old, "list", "keys")] == [
        "list:1: found the id of a key that is in keys already; remove the line, or that key",
        "list:2: found the hash of a key that is in keys already; remove the line, or that key",
    ]
