"""The token's form, and the rule of the ``Flowstack-Auth`` header."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flowstack import tokens
from flowstack.errors import FlowstackError, InvalidKey, MalformedRequest, MisplacedKey, MissingKey
from flowstack.tokens import (
    ALPHABET,
    checksum_ok,
    digest,
    looks_like_flowstack_key,
    make_token,
    parse_flowstack_auth,
    unknown_key,
)

KEY_ID, TOKEN = make_token(lambda size: bytes(range(size)))


def test_a_token_is_the_prefix_twelve_of_id_forty_of_secret_and_six_of_checksum() -> None:
    assert len(TOKEN) == 4 + 12 + 40 + 6
    assert TOKEN.startswith(f"fsk-{KEY_ID}")
    assert set(TOKEN[4:]) <= set(ALPHABET)


def test_the_checksum_is_the_crc32_of_all_that_precedes_it_as_six_base62_digits() -> None:
    number = 0
    for character in TOKEN[-6:]:
        number = number * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(character)
    assert number == zlib.crc32(TOKEN[:-6].encode())


def test_a_known_token_stays_valid_across_versions() -> None:
    _, token = make_token(lambda count: bytes(range(count)))
    assert token == "fsk-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnop" + "3SLJ0j"
    assert checksum_ok(token)


def test_bytes_that_would_favour_some_characters_are_passed_over() -> None:
    served = iter([bytes([255, 254, 253, 252, 251, 250, 249, 248] + [61] * 44), bytes([1] * 52)])
    _, token = make_token(lambda count: next(served))
    assert token[4:-6] == "z" * 44 + "1" * 8


def test_every_character_comes_from_the_same_number_of_byte_values() -> None:
    counts: Counter[str] = Counter()
    for byte in range(248):
        key_id, _ = make_token(lambda count, byte=byte: bytes([byte]) * count)  # type: ignore[misc]
        counts[key_id[0]] += 1
    assert counts == dict.fromkeys(ALPHABET, 4)


@given(st.integers(0, 61), st.sampled_from(ALPHABET))
def test_any_one_wrong_character_fails_the_checksum(place: int, character: str) -> None:
    mistyped = TOKEN[:place] + character + TOKEN[place + 1 :]
    assert checksum_ok(mistyped) == (mistyped == TOKEN)


@pytest.mark.parametrize("cut", range(62))
def test_a_cut_token_fails_the_checksum(cut: int) -> None:
    assert not checksum_ok(TOKEN[:cut])


@pytest.mark.parametrize("token", ["", "fsk-", TOKEN + "x", "fsk-" + "é" * 58, b"\xff" * 62, b"fsk-" + b"\xff" * 58])
def test_what_is_no_token_at_all_fails_the_checksum(token: str | bytes) -> None:
    assert not checksum_ok(token)


def test_text_and_bytes_are_judged_alike() -> None:
    assert checksum_ok(TOKEN)
    assert checksum_ok(TOKEN.encode())


def test_the_digest_is_sha256() -> None:
    assert digest(b"abc") == hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize(
    "value",
    [
        TOKEN.encode(),
        b"Bearer " + TOKEN.encode(),
        b"bearer   fsk-",
        b"Bearer fsk-cut",
        b"fsk-",
        b'Token token="fsk-abc"',
        b" \tfsk-abc",
        b"Bearer sk-proj-x, Bearer fsk-abc",
    ],
)
def test_whatever_begins_like_a_flowstack_key_is_caught_in_a_providers_header(value: bytes) -> None:
    assert looks_like_flowstack_key(value)


@pytest.mark.parametrize("value", [b"", b"Bearer sk-proj-abc", b"Bearer sk-xfsk-abc", b"Bearer FSK-abc", b"sk-a-fsk-b"])
def test_a_providers_key_is_not_taken_for_a_flowstack_key(value: bytes) -> None:
    assert not looks_like_flowstack_key(value)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"BEARER abc", b"abc"),
        (b"bEaReR    abc", b"abc"),
        (b" \t Bearer abc \t ", b"abc"),
        (b"Bearer " + TOKEN.encode(), TOKEN.encode()),
        (b"Bearer !~:,;=/+", b"!~:,;=/+"),
        (b"Bearer " + b"x" * 512, b"x" * 512),
        (b"Bearer Bearer", b"Bearer"),
    ],
)
def test_the_token_is_taken_after_bearer_in_any_case(value: bytes, token: bytes) -> None:
    assert parse_flowstack_auth([value]) == token


CANARY = b"canaryCANARY0123"

REFUSED: list[tuple[list[bytes], type[FlowstackError], str]] = [
    ([], MissingKey, "no Flowstack-Auth header"),
    ([b"Bearer " + CANARY] * 2, MalformedRequest, "2 Flowstack-Auth headers"),
    ([b"", b""], MalformedRequest, "exactly one"),
    ([b"Bearer " + CANARY + b", Bearer " + CANARY], MalformedRequest, "joined by a comma"),
    ([b"Bearer sk-" + CANARY], MisplacedKey, "belongs in Authorization"),
    ([b"Bearer sk-proj-" + CANARY], MisplacedKey, "belongs in Authorization"),
    ([b"bearer   sk-"], MisplacedKey, "belongs in Authorization"),
    ([b"sk-" + CANARY], MisplacedKey, "belongs in Authorization"),
    ([CANARY], InvalidKey, "does not begin with the scheme Bearer"),
    ([b"fsk-" + CANARY], InvalidKey, "does not begin with the scheme Bearer"),
    ([b"Basic " + CANARY], InvalidKey, "does not begin with the scheme Bearer"),
    ([b"Bearer" + CANARY], InvalidKey, "does not begin with the scheme Bearer"),
    ([b"Bearer:" + CANARY], InvalidKey, "does not begin with the scheme Bearer"),
    ([b""], InvalidKey, "holds no key"),
    ([b"  "], InvalidKey, "holds no key"),
    ([b"Bearer"], InvalidKey, "holds no key"),
    ([b"Bearer  \t"], InvalidKey, "holds no key"),
    ([b"Bearer " + CANARY * 33], InvalidKey, "528 bytes"),
    ([b"Bearer " + CANARY + b" more"], InvalidKey, "holds a space"),
    ([b"Bearer " + CANARY + b"\xc3\xa9"], InvalidKey, "not visible ASCII"),
    ([b"Bearer " + CANARY + b"\x00"], InvalidKey, "not visible ASCII"),
    ([b"Bearer\t" + CANARY], InvalidKey, "not visible ASCII"),
]


@pytest.mark.parametrize(("values", "error", "says"), REFUSED)
def test_anything_else_is_refused_with_what_it_should_look_like_and_without_the_secret(
    values: list[bytes], error: type[FlowstackError], says: str
) -> None:
    with pytest.raises(error) as caught:
        parse_flowstack_auth(values)
    assert type(caught.value) is error
    assert says in caught.value.message
    assert "Flowstack-Auth: Bearer fsk-..." in caught.value.message
    assert CANARY.decode() not in caught.value.message


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_any_header_bytes_give_a_token_or_one_of_our_errors(values: list[bytes]) -> None:
    try:
        token = parse_flowstack_auth(values)
    except FlowstackError as error:
        assert error.status in {400, 401}
    else:
        assert len(values) == 1
        assert values[0].strip(b" \t").endswith(token)
        assert 0 < len(token) <= tokens.MAX_TOKEN_BYTES


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (TOKEN.encode(), "not known here"),
        (b"another-kind-of-token", "not known here"),
        (TOKEN[:-1].encode(), "61 characters, not 62"),
        (TOKEN.encode() + b"x", "63 characters, not 62"),
        (b"fsk-" + b"0" * 58, "its checksum is wrong"),
    ],
)
def test_a_token_that_is_not_in_the_keystore_is_called_unknown_or_mistyped(token: bytes, says: str) -> None:
    error = unknown_key(token)
    assert (error.status, error.code) == (401, "invalid_flowstack_key")
    assert says in error.message
    assert token.decode() not in error.message


def test_a_new_token_for_a_key_holds_its_id_where_that_has_the_form_of_one_that_was_made_here() -> None:
    for key_id, held in (("k7Qm2xW9pLz4", True), ("my-key", False), ("k7Qm2xW9pLz", False)):
        own, token = make_token(os.urandom, key_id)
        assert own == key_id
        assert checksum_ok(token)
        assert (token[4:16] == key_id) == held
    assert make_token(os.urandom, "k7Qm2xW9pLz4")[1] != make_token(os.urandom, "k7Qm2xW9pLz4")[1]


QUOTED = "is in quotes"
UNSEEN = "invisible"
TWICE = "occurs twice"
OTHERS = "There is something before or after"
IN_ITS_PLACE = "is the variable that should hold it set?"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('Bearer "{}"', QUOTED),
        ("Bearer '{}'", QUOTED),
        ("Bearer `{}`", QUOTED),
        ('Bearer "{}', QUOTED),
        ("Bearer {}'", QUOTED),
        ('"Bearer {}"', QUOTED),
        ('"{}"', QUOTED),
        ("Bearer “{}”", QUOTED),
        ("Bearer ‘{}’", QUOTED),
        ("Bearer „{}“", QUOTED),
        ("Bearer «{}»", QUOTED),
        ("“Bearer {}”", QUOTED),
        ('Bearer \\"{}\\"', QUOTED),
        ("Bearer %22{}%22", QUOTED),
        ('Bearer "Bearer {}"', QUOTED),
        ("Bearer {}\\n", UNSEEN),
        ("Bearer {}%0A", UNSEEN),
        ("Bearer {}%0d%0a", UNSEEN),
        ("Bearer {}\u00a0", UNSEEN),
        ("Bearer \u200b{}", UNSEEN),
        ("Bearer \ufeff{}", UNSEEN),
        ("Bearer \t{}", "holds a space"),
        ("{}", "does not begin with the scheme"),
        ("Basic {}", "does not begin with the scheme"),
        ("Bearer:{}", "does not begin with the scheme"),
        ("Bearer%20{}", "does not begin with the scheme"),
        ("Bearer Bearer {}", TWICE),
        ("Bearer bearer {}", TWICE),
        ("Bearer Flowstack-Auth: Bearer {}", TWICE),
        ("Bearer Bearer%20{}", TWICE),
        ("Flowstack-Auth: Bearer {}", TWICE),
        ("Bearer {},", OTHERS),
        ("Bearer {};", OTHERS),
        ("Bearer <{}>", IN_ITS_PLACE),
        ("Bearer key={}", OTHERS),
        ("Bearer {} # mine", OTHERS),
        ("Bearer {}~sk-proj-canary", "after a ~, a provider's"),
        ("Bearer {}~AIza", "after a ~, a provider's"),
        ("Bearer $FLOWSTACK_KEY", IN_ITS_PLACE),
        ("Bearer ${{FLOWSTACK_KEY}}", IN_ITS_PLACE),
        ("Bearer {{{{ flowstack_key }}}}", IN_ITS_PLACE),
        ("Bearer %FLOWSTACK_KEY%", IN_ITS_PLACE),
        ("Bearer <your key>", IN_ITS_PLACE),
        ("Bearer undefined", IN_ITS_PLACE),
        ("Bearer None", IN_ITS_PLACE),
        ('Bearer ""', IN_ITS_PLACE),
        ("Bearer fsk-...", IN_ITS_PLACE),
        ("Bearer fsk-…", IN_ITS_PLACE),
    ],
)
def test_a_key_in_quotes_or_with_anything_around_it_is_told_what_is_around_it(value: str, says: str) -> None:
    sent = value.format(TOKEN).encode()
    for bytes_ in (sent, sent + b" "):
        with pytest.raises(FlowstackError) as caught:
            raise unknown_key(parse_flowstack_auth([bytes_]))
        assert (caught.value.status, caught.value.code) == (401, "invalid_flowstack_key")
        assert says in caught.value.message
        assert "Flowstack-Auth: Bearer fsk-..." in caught.value.message
        assert TOKEN[16:] not in caught.value.message and "canary" not in caught.value.message


def test_quotes_as_a_word_processor_of_one_byte_a_character_writes_them_are_quotes() -> None:
    with pytest.raises(InvalidKey, match=QUOTED):
        parse_flowstack_auth([b"Bearer \x93" + TOKEN.encode() + b"\x94"])


def test_a_key_of_another_form_in_quotes_is_told_so_and_one_with_odd_characters_is_unknown() -> None:
    assert QUOTED in unknown_key(b'"my-own-key"').message
    for odd in (b"a=b", b"key,1", b"~", b"my.key/1"):
        assert "not known here" in unknown_key(odd).message


@given(st.binary(max_size=80))
@example(b"fsk-")
def test_whatever_stands_in_the_header_is_told_without_being_repeated(value: bytes) -> None:
    told = unknown_key(value).message
    assert told.isascii() and "Flowstack-Auth" in told
