"""A bounded memory of what clients made: the oldest goes when the place runs out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from flowstack.testing.standin.values import Refused

T = TypeVar("T")


def _no_size(value: object) -> int:
    return 0


class Store(Generic[T]):
    """Values by id.

    :param name: how OpenAI's 404 calls them.
    :param count: the most values kept.
    :param size: the most bytes kept, by ``measure``.
    """

    def __init__(self, name: str, count: int, size: int = 1 << 28, measure: Callable[[T], int] = _no_size) -> None:
        self._name = name
        self._count = count
        self._size = size
        self._measure = measure
        self._held = 0
        self._values: OrderedDict[str, T] = OrderedDict()

    def put(self, identity: str, value: T) -> None:
        """Keep a value, in place of one with the same id."""
        if identity in self._values:
            self.remove(identity)
        self._values[identity] = value
        self._held += self._measure(value)
        while self._values and (len(self._values) > self._count or self._held > self._size):
            self.remove(next(iter(self._values)))

    def __contains__(self, identity: object) -> bool:
        return identity in self._values

    def get(self, identity: str) -> T:
        """The value.

        :raises Refused: OpenAI's 404 where there is none.
        """
        if identity not in self._values:
            raise Refused(404, f"{self._name} with id '{identity}' not found.", param="id")
        return self._values[identity]

    def remove(self, identity: str) -> T:
        """Forget the value.

        :raises Refused: as :meth:`get`.
        """
        value = self.get(identity)
        del self._values[identity]
        self._held -= self._measure(value)
        return value

    def newest_first(self) -> Iterator[T]:
        """All values, in the order in which OpenAI lists them."""
        return reversed(self._values.values())
