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


class IPlan(Interface):
    """The limits that stand for one key's requests to one upstream."""

    metered: bool = Attribute("Whether tokens or money are limited, so that it matters what a request uses.")
    priced: bool = Attribute("Whether money is limited, so that it matters what a request may cost.")


class IReservation(Interface):
    """What one request took of its key's limits, until it is settled."""

    lines: bytes = Attribute(
        "The ``Flowstack-RateLimit-*`` fields (limit, remaining, reset; requests and tokens) for its answer, as they "
        "stand in a head: see :func:`flowstack.policy.headers.lines_of`."
    )

    def claim(tokens: int, cost_usd: float | None, least_usd: float | None = None) -> None:  # noqa: N805
        """Take tokens and money too, where the request was reserved before its body could be read.

        :param tokens: as in :meth:`ILimiter.reserve`.
        :param cost_usd: likewise.
        :param least_usd: likewise.
        :raises flowstack.errors.FlowstackError: a 429 that says which limit, and when to come back. What was taken
            before stays taken until the settlement.
        """

    def kept() -> dict[str, Any] | None:
        """What stays charged by estimate, for :meth:`ILimiter.settle_later`: plain values, to be kept in a file; None
        where nothing was claimed.

        For work of which the usage becomes known after the exchange has ended and been settled.
        """


class ILimiter(Interface):
    """Holds the counters of the keys' limits."""

    def plan(key: Any, upstream: str) -> Any:  # noqa: N805
        """Where and how a key's requests are counted, to be kept until the keys are read anew.

        :return: an :class:`IPlan`, or None where no limit stands for the key.
        :raises flowstack.errors.Overloaded: there is no room to count in.
        """

    def reserve(
        plan: Any,  # noqa: N805
        tokens: int | None = None,
        cost_usd: float | None = None,
        least_usd: float | None = None,
        looks: bool = False,
    ) -> Any:
        """Take one request and one of those under way, before the upstream hears of it.

        :param plan: an :class:`IPlan`.
        :param tokens: the most that the request may use, by estimate; None where its body is yet to be read, or it
            uses none.
        :param cost_usd: what these may cost, or None where the model has no price, or none is asked for.
        :param least_usd: where ``cost_usd`` is the most that there can be, and the usual is less: how
            much of a budget must be left at least. All of ``cost_usd`` is taken, beyond the budget too.
        :param looks: whether it uses nothing, and looks after work that was charged before: then it may pass though
            tokens or money are used up, since what it sees may give back some.
        :return: an :class:`IReservation`.
        :raises flowstack.errors.FlowstackError: a 429 that says which limit, and when to come back; nothing is taken.
        """

    def fields(key: Any, upstream: str) -> tuple[tuple[bytes, bytes], ...]:  # noqa: N805
        """The ``Flowstack-RateLimit-*`` fields for the answer to a request that was refused before it took anything."""

    def standings(key: Any) -> list[Any]:  # noqa: N805
        """How each limit of a key and of its group stands, whichever upstream's requests it counts.

        :return: :class:`flowstack.limits.books.Standing`.
        """

    def settle(reservation: Any, row: Any, tokens: int | None = None, cost_usd: float | None = None) -> None:  # noqa: N805
        """Put the upstream's figures in the estimate's place; where the row has none, the estimate stays the charge.

        Called exactly once for each reservation, however the exchange ended. Never raises.

        :param tokens: the estimate for what was attempted before it could be claimed; None where there is none.
        :param cost_usd: what these may cost; None where that is not known.
        """

    def settle_later(kept: Any, row: Any) -> None:  # noqa: N805
        """Put the figures of a row in the place of an estimate that stayed charged: in the period and the counters of
        the request that began the work, whichever worker took them. Never raises.

        :param kept: of :meth:`IReservation.kept`.
        """


class IOpenWork(Interface):
    """Knows the work that was begun and whose usage is not known yet, among all workers."""

    def begin(begun: Any) -> None:  # noqa: N805
        """Wait for work. Never raises: what cannot be waited for keeps its estimate as the charge.

        :param begun: a :class:`flowstack.policy.late.Begun`.
        """

    def claim(upstream: str, kind: Any, identity: str) -> Any:  # noqa: N805
        """Take work to settle it, now: of all who try, one gets it. Never raises.

        :param kind: a :data:`flowstack.policy.operations.Work`.
        :param identity: the upstream's.
        :return: the :class:`flowstack.policy.late.Begun`, or None where it is not waited for, or somebody has it.
        """

    def done(begun: Any) -> bool:  # noqa: N805
        """Forget work that was claimed; whether that could be done. Never raises."""


class ILedger(Interface):
    """Takes one row for each request that showed a valid key."""

    accepting: bool = Attribute("False while rows cannot be written and the operator wants no request without a row.")

    def record(row: Any) -> None:  # noqa: N805
        """Write down a :class:`flowstack.policy.rows.Row`. Never raises, never waits for more than one write."""

    def flush() -> None:
        """Have written now what was recorded in this turn of the reactor, rather than at its end. Never raises."""


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
