"""What machines remember together in Redis: client secrets, and work whose usage is known late."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred

from flowstack.limits.link import Link
from flowstack.limits.told import STRANGE, Untold, numbers_of

T = TypeVar("T")

MOST_ASKED: Final = 64
"""Questions for a secret that wait for an answer. Anybody may come with one that is unknown: where Redis is behind,
limits must not wait for such questions. Answered within a millisecond, so many let 64,000 pass in a second."""


class _Told:
    """Something that Redis is told, once or more: it does not matter which.

    :param took: given the answer; None where there will be none. Raises Untold where it is none of our functions'.
    """

    __slots__ = ("_arguments", "_function", "_key", "_took")

    def __init__(
        self, function: str, key: bytes, arguments: Sequence[bytes], took: Callable[[list[Any] | None], None]
    ) -> None:
        self._function = function
        self._key = key
        self._arguments = arguments
        self._took = took

    def words(self, again: bool) -> tuple[str, Sequence[bytes], Sequence[bytes]]:
        """Of ``Owed``."""
        return self._function, [self._key], self._arguments

    def told(self, answer: list[Any]) -> None:
        """Of ``Owed``."""
        self._took(answer)

    def kept(self) -> None:
        """Of ``Owed``."""

    def lost(self) -> None:
        """Of ``Owed``."""
        self._took(None)


def _nothing(_: object) -> None:
    """It need not be known."""


class RemoteMemory:
    """What is remembered there, each for a time.

    A secret is known by its SHA-256, and nowhere in itself.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._number = count(1).__next__
        self._claims: dict[str, bytes] = {}
        self._asked = 0

    def keep_secret(self, name: bytes, text: bytes, seconds: float) -> None:
        """Remember a text under a name; the first one stays. Told later, where Redis does not answer now."""
        self._link.owe(_Told("keep", b"flowstack:secret:%b" % name.hex().encode(), (text, _ms(seconds)), _nothing))

    def find_secret(self, name: bytes) -> Deferred[bytes] | None:
        """The text under a name: nothing where there is none, or Redis does not answer in time.

        :return: None where it does not answer at all now, or has :data:`MOST_ASKED` to answer.
        """
        if not self._link.up or self._asked >= MOST_ASKED:
            return None
        self._asked += 1
        found: Deferred[bytes] = Deferred()

        def answered(answer: list[Any] | None) -> None:
            if found.called:
                return
            if answer is not None and (len(answer) != 2 or not isinstance(answer[1], bytes)):
                raise Untold(STRANGE)
            found.callback(b"" if answer is None else answer[1])

        found.addBoth(self._answered)
        self._link.ask("find", [b"flowstack:secret:%b" % name.hex().encode()], (), answered)
        return found

    def _answered(self, found: T) -> T:
        self._asked -= 1
        return found

    def begin(self, name: str, text: bytes, seconds: float) -> None:
        """Remember work."""
        self._link.owe(_Told("begin", _work(name), (text, _ms(seconds)), _nothing))

    def claim(self, name: str, text: bytes, seconds: float) -> Deferred[bytes | bool]:
        """Claim work, so that nobody else does as long as this process lives.

        :param text: what is known of it here; or nothing.
        :return: what is known of it; False where it is not this one's now, True where it was charged.
        """
        done: Deferred[bytes | bool] = Deferred()
        if not self._link.up:
            done.callback(False)
            return done
        number = b"%d" % self._number()

        def took(answer: list[Any] | None) -> None:
            if answer is None:
                done.callback(False)
                return
            if len(answer) != 3 or type(answer[1]) is not int or not isinstance(answer[2], bytes):
                raise Untold(STRANGE)
            if answer[1] == 1:
                self._claims[name] = number
            done.callback(answer[2] if answer[1] == 1 else answer[1] == 3)

        self._link.owe(_Told("claim", _work(name), (number, text, _ms(seconds)), took))
        return done

    def charged(self, name: str) -> Deferred[bool]:
        """Say that claimed work was charged. Whether that was this process's to say; waits for Redis."""
        done: Deferred[bool] = Deferred()

        def took(answer: list[Any] | None) -> None:
            done.callback(answer is not None and numbers_of(answer, 1, 1) == [1])

        self._link.owe(_Told("charged", _work(name), (self._claims.pop(name, b"0"),), took))
        return done


def _work(name: str) -> bytes:
    return b"flowstack:work:%b" % name.encode("ascii")


def _ms(seconds: float) -> bytes:
    return b"%d" % max(int(seconds * 1000), 1)
