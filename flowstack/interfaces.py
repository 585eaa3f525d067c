"""The seams at which rooms meet; ``flowstack.tap`` decides what stands behind each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.web.iweb import IResponse


class IKeystore(Interface):
    """The set of Flowstack keys, whole and valid, as of its last good reload."""

    generation: int = Attribute("How many times a set was taken over, the first counting 1.")

    def lookup(digest: bytes) -> Any:  # noqa: N805
        """Return the :class:`flowstack.policy.keys.Key` whose secret has this SHA-256, or None.

        :param digest: 32 bytes. Does not grow with the number of keys; does no I/O.
        """


class ILimiter(Interface):
    """Holds the counters of a key's limits."""

    def reserve(key: Any, upstream: str) -> Any:  # noqa: N805
        """Take what the request may use, before the upstream hears of it.

        :return: a token for :meth:`settle`, or None where the key has no limits.
        :raises flowstack.errors.FlowstackError: a 429 that says which limit, and when to come back.
        """

    def settle(reservation: Any, row: Any) -> None:  # noqa: N805
        """Give back what was not used. Called exactly once for each reservation, however the exchange ended."""


class ILedger(Interface):
    """Takes one row for each request that showed a valid key."""

    def record(row: Any) -> None:  # noqa: N805
        """Write down a :class:`flowstack.policy.rows.Row`. Never raises, never waits."""


class IRelayClient(Interface):
    """treq's call, as the relay uses it: nothing remembered, decoded, followed or re-quoted."""

    def request(method: bytes, url: bytes, *, headers: Any, data: Any) -> Deferred[IResponse]:  # noqa: N805
        """Send one request.

        :param method: the method as the client wrote it.
        :param url: origin and target, the target byte for byte as it goes on the wire.
        :param headers: :class:`flowstack.policy.headers.RawHeaders`.
        :param data: an ``IBodyProducer`` or None.
        :return: fires with the response when its head has come; cancelling it closes the upstream connection.
        """
