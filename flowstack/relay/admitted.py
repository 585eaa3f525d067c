"""What a request's head leads to, remembered for the heads like it."""

from __future__ import annotations

from attrs import define, field

from flowstack.policy.headers import PreparedHeaders, RawHeaders, lines_of
from flowstack.policy.keys import Key
from flowstack.policy.operations import Operation
from flowstack.policy.routes import Route
from flowstack.relay.permission import Terms


@define(eq=False)
class Admitted:
    """What follows from a request's head alone, and so from each head that differs in its Content-Length only.

    :ivar generation: of the keystore that knew the key.
    :ivar provider_key: the operator's, where it takes the place of the client's.
    :ivar key: who asks.
    :ivar headers: the fields that go to the upstream.
    :ivar attributes: the request's metadata, or None.
    :ivar model: which the path names, or None.
    :ivar terms: on which its body passes.
    """

    generation: int
    provider_key: bytes | None = field(repr=False)
    key: Key
    route: Route
    operation: Operation
    headers: RawHeaders
    attributes: dict[str, str] | None
    model: str | None
    terms: Terms
    _place: int = -1  # of Content-Length
    _before: bytes = field(default=b"", repr=False)
    _after: bytes = field(default=b"", repr=False)

    def headers_for(self, length: bytes) -> RawHeaders:
        """The fields that go to the upstream with another Content-Length, which must be one of them."""
        pairs = self.headers.pairs.copy()
        place = self._place
        if place < 0:
            place = self._prepare()
        pairs[place] = (pairs[place][0], length)
        return PreparedHeaders(pairs, self._before + length + self._after)

    def _prepare(self) -> int:
        """See what stands before and behind the length's digits, and where it is among the fields."""
        pairs = self.headers.pairs
        self._place = place = [name.lower() for name, _ in pairs].index(b"content-length")
        self._before = lines_of([*pairs[:place], (pairs[place][0], b"")])
        self._after = lines_of(pairs[place + 1 :])
        return place
