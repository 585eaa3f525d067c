"""Usage that comes with the choices of one answer: whether each figure is of the answer so far, or of that choice."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from flowstack.usage.figures import add_output, merge, usage_of
from flowstack.usage.model import Usage

MAX_CHOICES: Final = 128
"""Choices counted apart: as many as OpenAI gives at most."""


class Shares:
    """Takes the usage of chunks that have one choice each, and finds out what it is of.

    No provider says which of the two it means. Figures of the whole answer come again and again, and grow with every
    chunk, whichever choice that is of: where one is no larger than the last of another choice, each is of its own
    choice. So is what comes once with each choice.
    """

    __slots__ = ("_again", "_apart", "_index", "_last", "_usages")

    def __init__(self) -> None:
        self._usages: dict[Any, Usage] | None = None  # by choice, once there is a second one
        self._index: Any = None  # of the choice whose usage came last
        self._last = 0  # how much output that said
        self._again = False  # a choice's usage came more than once
        self._apart = False  # it is known that each is of its own

    def take(self, choice: dict[str, Any], value: dict[str, Any], so_far: Usage | None, within: bool) -> None:
        """A chunk has one choice, and usage.

        :param so_far: what was known of the answer before.
        :param within: whether the usage stands in the choice, and so is its own.
        """
        self._apart = self._apart or within
        index, count = choice.get("index"), value.get("completion_tokens")
        if type(index) is not int:
            index = 0
        if type(count) is not int:
            count = 0
        usages, last = self._usages, self._last
        if usages is None:
            if self._index is None or index == self._index:
                self._again = self._again or last > 0
                self._index, self._last = index, count
                return
            usages = self._usages = {} if so_far is None else {self._index: deepcopy(so_far)}
        known = usages.get(index)
        if 0 < count <= last and (
            count < last or (index != self._index and (known is None or not choice.get("finish_reason")))
        ):
            self._apart = True
        usage = usage_of(value)
        if usage is not None:
            if known is not None:
                self._again = True
                merge(known, deepcopy(usage))
            elif len(usages) < MAX_CHOICES:
                usages[index] = deepcopy(usage)
        self._index, self._last = index, count

    def sum(self) -> Usage | None:
        """What all choices used together; None where that has been said."""
        usages = self._usages
        if usages is None or (self._again and not self._apart):
            return None
        whole = Usage()
        for usage in usages.values():
            add_output(whole, usage)
        return whole
