"""Which keys may be used when."""

from __future__ import annotations

import pytest

from flowstack.errors import KeyDisabled, KeyExpired
from flowstack.keys import Key, check_usable, expires_text

DIGEST = bytes(range(32))
NOON = 1_814_356_800.0  # 2027-06-30T12:00:00Z


def test_a_key_without_expiry_may_be_used() -> None:
    check_usable(Key("k", DIGEST), NOON)


def test_a_key_may_be_used_up_to_its_expiry_and_not_at_it() -> None:
    key = Key("k", DIGEST, expires_at=NOON)
    check_usable(key, NOON - 0.001)
    with pytest.raises(KeyExpired) as caught:
        check_usable(key, NOON)
    assert "expired: it was valid through 2027-06-30T12:00:00Z" in caught.value.message


def test_a_disabled_key_is_told_so_also_when_it_has_expired() -> None:
    with pytest.raises(KeyDisabled) as caught:
        check_usable(Key("k7Qm", DIGEST, disabled=True, expires_at=1.0, owner="alice"), NOON)
    assert "k7Qm is disabled" in caught.value.message
    assert "alice" not in caught.value.message


def test_a_keys_repr_hides_its_digest() -> None:
    text = repr(Key("k", DIGEST))
    assert DIGEST.hex() not in text
    assert repr(DIGEST)[2:10] not in text


@pytest.mark.parametrize(
    ("expires_at", "text"),
    [
        (1_814_400_000.0, "2027-06-30"),
        (1_814_356_800.0, "2027-06-30T12:00:00Z"),
        (1_814_356_800.5, "2027-06-30T12:00:00.500000Z"),
        (253_402_300_800.0, "9999-12-31"),
        (86_400.0, "1970-01-01"),
    ],
)
def test_an_expiry_is_written_as_the_last_valid_day_or_as_the_instant(expires_at: float, text: str) -> None:
    assert expires_text(expires_at) == text


def test_the_secret_that_a_rotation_replaced_is_told_so_when_the_grace_is_over() -> None:
    key = Key("k7", DIGEST, owner="alice", rpm=5, previous=bytes(32), previous_until=NOON)
    old = key.as_superseded()
    assert (old.id, old.owner, old.rpm, old.digest, old.previous) == ("k7", "alice", 5, bytes(32), None)
    check_usable(key, NOON)
    check_usable(old, NOON - 0.001)
    with pytest.raises(KeyExpired) as caught:
        check_usable(old, NOON)
    assert "The secret of the Flowstack key k7 was replaced" in caught.value.message


def test_a_replaced_secret_outlives_its_key_no_more_than_any_other_and_is_disabled_with_it() -> None:
    key = Key("k", DIGEST, expires_at=NOON - 10, previous=bytes(32), previous_until=NOON)
    with pytest.raises(KeyExpired):
        check_usable(key.as_superseded(), NOON - 10)
    with pytest.raises(KeyDisabled):
        check_usable(Key("k", DIGEST, disabled=True, previous=bytes(32), previous_until=NOON).as_superseded(), 0.0)
