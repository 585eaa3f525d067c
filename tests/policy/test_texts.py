from __future__ import annotations

from flowstack.policy.texts import MOST, Texts


class Shout:
    """Makes texts, and knows which."""

    def __init__(self) -> None:
        self.made: list[bytes] = []
        self.texts = Texts(self.make, 4)

    def make(self, value: bytes) -> str:
        self.made.append(value)
        return value.decode().upper()


def test_a_text_is_made_once() -> None:
    shout = Shout()
    assert [shout.texts[value] for value in (b"ab", b"abcd", b"ab", b"", b"abcd", b"")] == [
        "AB", "ABCD", "AB", "", "ABCD", "",
    ]  # fmt: skip
    assert shout.made == [b"ab", b"abcd", b""]


def test_of_a_long_text_only_the_beginning_is_looked_at_and_it_is_not_remembered() -> None:
    shout = Shout()
    assert shout.texts[b"abcdefg"] == shout.texts[b"abcdefg"] == "ABCD"
    assert shout.made == [b"abcd", b"abcd"]
    assert not shout.texts


def test_texts_that_others_choose_do_not_fill_the_memory() -> None:
    shout = Shout()
    for number in range(MOST + 5):
        assert shout.texts[b"%04d" % number] == f"{number:04d}"
        assert len(shout.texts) <= MOST
