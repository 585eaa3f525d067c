from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.keys import digest, make_token
from flowstack.keys.misplaced import credential_holds_key
from flowstack.keys.one_string import FIELDS, two_keys
from flowstack.tokens import MAX_TOKEN_BYTES

OURS = make_token(lambda size: bytes(range(size)))[1].encode()
KEYS = (OURS, b"a-key-of-others", b"~", b"a~b", b"a+b/c==", b"k" * MAX_TOKEN_BYTES)
KNOWN = frozenset(map(digest, KEYS))

SCHEMES = st.one_of(
    st.tuples(st.just(b"authorization"), st.sampled_from([b"Bearer ", b"bearer ", b"BEARER   "])),
    st.tuples(st.sampled_from([b"api-key", b"x-api-key"]), st.just(b"")),
)
SECRETS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")).map(
    lambda text: text.encode("latin-1")
)
PARTS = [b"~", b"a", b"b", b"sk-", b"fsk", b" ", b"Bearer ", b"%7e", b"-", b"="]
STRINGS = st.lists(st.sampled_from(PARTS)).map(b"".join)
WORDS = SECRETS.filter(lambda text: b" " not in text)


def is_known(sha256: bytes) -> bool:
    return sha256 in KNOWN


@given(SCHEMES, st.sampled_from(KEYS), SECRETS)
def test_what_is_left_is_the_field_with_the_providers_key_alone(
    field: tuple[bytes, bytes], ours: bytes, theirs: bytes
) -> None:
    name, scheme = field
    left = scheme + theirs if theirs else b""
    assert two_keys(name, scheme + ours + b"~" + theirs, is_known) == (ours, left)


@given(st.sampled_from(FIELDS), STRINGS)
def test_it_is_a_known_key_or_one_of_flowstacks_form_that_is_cut_off(name: bytes, value: bytes) -> None:
    found = two_keys(name, value, is_known)
    if found is not None:
        token, left = found
        assert digest(token) in KNOWN or token.startswith(b"fsk-")
        whole = value.partition(token + b"~")
        assert left == (whole[0] + whole[2] if whole[2] else b"")
    elif value.startswith((b"a~b~", b"~~")):
        assert name == b"authorization", "Bearer is missing"


@given(st.sampled_from(FIELDS), st.binary(max_size=80))
def test_nothing_is_cut_off_where_no_key_is_known(name: bytes, value: bytes) -> None:
    for credential in (value, b"Bearer " + value, b"~" + value + b"~"):
        assert b"fsk-" in credential or two_keys(name, credential, lambda sha256: False) is None


@given(st.sampled_from(KEYS[:-1]), WORDS, st.sampled_from([b"~", b"%7E", b"%7e"]))
def test_a_key_beside_another_in_one_string_is_found_either_way_round(ours: bytes, theirs: bytes, mark: bytes) -> None:
    assert credential_holds_key(b"Bearer " + ours + mark + theirs, is_known)
    assert credential_holds_key(b"Bearer " + theirs + mark + ours, is_known)


@pytest.mark.parametrize("value", [b"~" * 70_000, b"a~" * 30_000, b"Bearer " + b"fsk-" * 20_000 + b"~"])
def test_a_long_value_is_looked_at_no_longer_than_a_key_may_be(value: bytes) -> None:
    looked = []

    def none_is_known(sha256: bytes) -> bool:
        looked.append(sha256)
        return False

    for name in FIELDS:
        two_keys(name, value, none_is_known)
    assert len(looked) <= len(FIELDS) * (MAX_TOKEN_BYTES + 1)
