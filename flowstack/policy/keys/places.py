"""Where in a text each of very many words stands: a table that the garbage collector has nothing to look at in."""

from __future__ import annotations

from array import array

MOST_BYTES = 2**30
"""Of a text whose places are kept; they are numbers of 32 bits."""

_ENDS = b' \t\r\n"'
"""What may follow a word; the text's end may, too."""


class Places:
    """Open addressing with linear probing over offsets; a word is compared where it stands, in the text.

    It takes 8 to 16 bytes for a word, at most half of its slots are used, and it is never resized, so no single
    insertion is slow.

    :param text: which must not change.
    :param most: words that will be added, at most.
    :param fold: whether words are in lower case, and the text in either.
    """

    __slots__ = ("_fold", "_mask", "_slots", "_text")

    def __init__(self, text: bytes | bytearray, most: int, fold: bool = False) -> None:
        size = 1 << max(4, (2 * most).bit_length())
        self._text = text
        self._mask = size - 1
        self._slots = array("I", (0,)) * size
        self._fold = fold

    def find(self, word: str) -> int:
        """Return where the word, of ASCII, stands, or -1."""
        slots, mask = self._slots, self._mask
        slot = hash(word) & mask
        while at := slots[slot]:
            if self._stands(at - 1, word):
                return at - 1
            slot = (slot + 1) & mask
        return -1

    def add(self, word: str, at: int) -> int:
        """Remember where a word stands, unless it stands in an earlier place.

        :return: that earlier place, or -1.
        """
        slots, mask = self._slots, self._mask
        slot = hash(word) & mask
        while there := slots[slot]:
            if self._stands(there - 1, word):
                return there - 1
            slot = (slot + 1) & mask
        slots[slot] = at + 1
        return -1

    def _stands(self, at: int, word: str) -> bool:
        end = at + len(word)
        found = self._text[at:end]
        wanted = word.encode("ascii")
        return (found == wanted or (self._fold and found.lower() == wanted)) and self._text[end : end + 1] in _ENDS
