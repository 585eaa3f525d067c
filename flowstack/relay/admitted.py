"""What a request's head leads to, remembered for the heads like it."""

from __future__ import annotations

from attrs import define, field

from flowstack.policy.headers import Pair
from flowstack.policy.keys import Key
from flowstack.policy.operations import Operation
from flowstack.policy.routes import Route


@define(eq=False)
class Admitted:
    """What follows from a request's head alone, and so from each head that differs in its Content-Length only.

    :ivar generation: of the keystore that knew the key.
    :ivar provider_key: the operator's, where it takes the place of the client's.
    :ivar key: who asks.
    :ivar pairs: the fields that go to the upstream.
    :ivar attributes: the request's metadata, or None.
    """

    generation: int
    provider_key: bytes | None = field(repr=False)
    key: Key
    route: Route
    operation: Operation
    pairs: list[Pair] = field(repr=False)
    attributes: dict[str, str] | None
    _place: int = -1  # of Content-Length

    def pairs_for(self, length: bytes) -> list[Pair]:
        """The fields that go to the upstream with another Content-Length, which must be one of them."""
        pairs, place = self.pairs.copy(), self._place
        if place < 0:
            self._place = place = [name.lower() for name, _ in pairs].index(b"content-length")
        pairs[place] = (pairs[place][0], length)
        return pairs
