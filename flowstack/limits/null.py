"""No limits: what stands behind ``ILimiter`` where nothing is counted."""

from __future__ import annotations

from zope.interface import implementer

from flowstack.interfaces import ILimiter
from flowstack.policy.keys import Key
from flowstack.policy.rows import Row


@implementer(ILimiter)
class NullLimiter:
    """Lets every request pass."""

    def reserve(self, key: Key, upstream: str) -> None:
        """Nothing to take."""

    def settle(self, reservation: None, row: Row) -> None:
        """Nothing to give back."""
