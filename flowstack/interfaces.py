"""The seams at which rooms meet; :mod:`flowstack.process` decides what stands behind each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from flowstack.http.headers import Pair, RawHeaders, ReceivedHeaders
from flowstack.keys import Key
from flowstack.ledger.late import Begun
from flowstack.ledger.row import Row
from flowstack.usage.operations import Work

# The keystore.


class Keystore(Protocol):
    """The set of Flowstack keys, whole and valid, as of its last good reload."""

    @property
    def generation(self) -> int:
        """How many sets were loaded, this one included."""

    def lookup(self, digest: bytes) -> Key | None:
        """Return the key whose secret has this SHA-256, or None.

        :param digest: 32 bytes. Does not grow with the number of keys; does no I/O.
        """


# The limiter.


class Plan(Protocol):
    """The limits that hold for one key's requests to one upstream."""

    @property
    def metered(self) -> bool:
        """Whether tokens or money are limited, so that it matters what a request uses."""

    @property
    def priced(self) -> bool:
        """Whether money is limited, so that it matters what a request may cost."""


class Reservation(Protocol):
    """What one request took of its key's limits, until it is settled."""

    @property
    def lines(self) -> bytes:
        """The ``Flowstack-RateLimit-*`` fields (limit, remaining, reset; requests and tokens) for its answer.

        As they stand in a head: see :func:`flowstack.http.headers.lines_of`.
        """

    def claim(
        self, tokens: int, cost_usd: float | None, least_usd: float | None = None
    ) -> Deferred[None] | None:
        """Take tokens and money too, where the request was reserved before its body could be read.

        A Deferred is as that of :meth:`Limiter.reserve`. The reservation is settled when it has fired, also where the
        client left before.

        :param tokens: as in :meth:`Limiter.reserve`; so are the others.
        :raises flowstack.errors.FlowstackError: a 429 that says which limit, and when to come back. What was taken
            before stays taken until the settlement.
        """

    def kept(self) -> dict[str, Any] | None:
        """What stays charged by estimate, for :meth:`Limiter.settle_later`: plain values, to be kept in a file.

        None where nothing was claimed. For work whose usage becomes known after its exchange was settled.
        """


class Limiter(Protocol):
    """Holds the counters of the keys' limits.

    A plan and a reservation are given back to the limiter that made them: what it takes is of its own kind (``Any``).
    """

    def plan(self, key: Key, upstream: str) -> Plan | None:
        """Where and how a key's requests are counted, to be kept until the keys are read again.

        :return: None where no limit holds for the key.
        :raises flowstack.errors.Overloaded: there is no room to count in.
        """

    def parts(self, plan: Any) -> tuple[Plan, Plan, Plan]:
        """The same limits for a WebSocket: as its connection takes of them (one in flight, and no request), as each
        response on it does (a request, tokens and money, and no more in flight), and as speech that is written down
        does (tokens and money)."""

    def reserve(
        self,
        plan: Any,
        tokens: int | None = None,
        cost_usd: float | None = None,
        least_usd: float | None = None,
        looks: bool = False,
    ) -> Reservation | Deferred[Reservation]:
        """Take one request, and one of those in flight, before the upstream hears of it.

        A Deferred is never cancelled, and must fire within a time that the limiter itself bounds: with a
        FlowstackError where it cannot tell. A reservation that comes after its client left is settled at once.

        :param tokens: the most that the request may use, by estimate; None where its body is yet to be read, or it
            uses none.
        :param cost_usd: what these may cost, or None where the model has no price, or none is asked for.
        :param least_usd: where ``cost_usd`` is the most that there can be, and the usual is less: how
            much of a budget must be left at least. All of ``cost_usd`` is taken, beyond the budget too.
        :param looks: whether it uses nothing, and looks after work that was charged before: then it may pass though
            tokens or money are used up, since what it sees may give back some.
        :raises flowstack.errors.FlowstackError: a 429 that says which limit, and when to come back; nothing is taken.
        """

    def fields(self, key: Key, upstream: str) -> tuple[tuple[bytes, bytes], ...]:
        """The ``Flowstack-RateLimit-*`` fields for the answer to a request that was refused before it took anything."""

    def standings(self, key: Key) -> Sequence[Any] | Deferred[Sequence[Any]]:
        """How each limit of a key and of its group stands, whichever upstream's requests it counts.

        :return: :class:`flowstack.limits.books.Standing`; a Deferred fails with a FlowstackError where it cannot tell.
        """

    def settle(self, reservation: Any, row: Row, tokens: int | None = None, cost_usd: float | None = None) -> None:
        """Put the upstream's figures in the estimate's place; where the row has none, the estimate stays the charge.

        Called exactly once for each reservation, however the exchange ended. Never raises.

        :param tokens: the estimate for what was attempted before it could be claimed; None where there is none.
        :param cost_usd: what these may cost; None where that is not known.
        """

    def charge(self, plan: Any, tokens: int | None, cost_usd: float | None) -> None:
        """Charge what nothing was reserved for. Never raises.

        An attempt that was given up and may be billed, once more, after its request was settled; or what was used on a
        WebSocket without being asked for.

        :param tokens: by estimate; None where that is not known. So is the other.
        """

    def settle_later(self, kept: Any, row: Row) -> None:
        """Put the figures of a row in the place of an estimate that stayed charged. Never raises.

        In the period and the counters of the request that began the work, whichever worker took them.

        :param kept: of :meth:`Reservation.kept`.
        """


# The ledger.


class Ledger(Protocol):
    """Takes one row for each request that showed a valid key."""

    @property
    def accepting(self) -> bool:
        """False while rows cannot be written and the operator wants no request without a row."""

    def record(self, row: Row, operation: str = "") -> None:
        """Write down a row. Never raises, never waits for more than one write.

        :param operation: what other observers of a row count it by.
        """

    def flush(self) -> None:
        """Write now what was recorded in this turn of the reactor, rather than at its end. Never raises."""


class OpenWork(Protocol):
    """Knows the work that was begun and whose usage is not known yet, among all workers."""

    def begin(self, begun: Begun) -> None:
        """Wait for work. Never raises: what cannot be waited for keeps its estimate as the charge."""

    def claim(self, upstream: str, kind: Work, identity: str) -> Begun | Deferred[Begun | None] | None:
        """Take work to settle it, now: of all who try, one gets it. Never raises.

        :param identity: the upstream's.
        :return: None where it is not waited for, or somebody has it; a Deferred where other machines are to be asked.
        """

    def done(self, begun: Begun) -> bool | Deferred[bool]:
        """Forget work that was claimed; whether that could be done. Never raises."""


# The upstream.


class OutgoingBody(Protocol):
    """A request's body on its way to an upstream: a Twisted ``IBodyProducer`` that may have come whole."""

    length: Any
    """Bytes, or ``UNKNOWN_LENGTH`` where it is chunked."""

    @property
    def whole(self) -> bytes | None:
        """All of it, where all of it has come and nobody has begun to take it; else None."""

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``."""

    def pauseProducing(self) -> None:
        """See ``IBodyProducer``."""

    def resumeProducing(self) -> None:
        """See ``IBodyProducer``."""

    def stopProducing(self) -> None:
        """See ``IBodyProducer``."""


class BodyReceiver(Protocol):
    """Takes a response's body, each piece in the call in which it came."""

    def data(self, piece: bytes) -> None:
        """A piece that is not the last. An empty one: the read that brought the head brought nothing of the body."""

    def last(self, piece: bytes) -> None:
        """The last piece, perhaps empty: the body ended well, and nothing follows. The pool has its connection back."""

    def lost(self, reason: BaseException) -> None:
        """The body broke off, and nothing follows.

        :param reason: ``StreamIdle`` or ``UpstreamLost`` of :mod:`flowstack.upstream.connection`; or Twisted's
            ``PotentialDataLoss`` where the connection's end was the body's, which is no fault.
        """


class UpstreamResponse(Protocol):
    """A response whose head has come. Nothing of its body is given on before :meth:`deliver`."""

    code: int
    phrase: bytes
    headers: ReceivedHeaders
    length: Any
    """Bytes of the body, or ``UNKNOWN_LENGTH``."""

    connection: Any
    """An ``IPushProducer``: pause it to pause the upstream, stop it to close it. Where the response is a 101, its
    ``take_over`` gives the transport away, and the bytes that came behind the head. None where all of the body is
    here."""

    def deliver(self, receiver: BodyReceiver) -> None:
        """Give the body to a receiver as it comes. Call once."""

    def redirect(self, receiver: BodyReceiver) -> None:
        """Give what comes of the body from now on to another receiver. The body is not at its end."""


class UpstreamCall(Protocol):
    """A request on its way: the Deferred of treq's call, and how often the request was sent."""

    attempts: int

    def addCallbacks(self, callback: Callable[[Any], None], errback: Callable[[Failure], None]) -> Any:  # noqa: N802
        """See ``Deferred``: fires with an :class:`UpstreamResponse`, or with a FlowstackError that says why not."""

    def cancel(self) -> None:
        """Close the upstream connection."""


class UpstreamClient(Protocol):
    """treq's call, as the relay uses it: nothing remembered, decoded, followed or re-quoted."""

    def request(self, method: bytes, url: bytes, *, headers: RawHeaders, data: OutgoingBody | None) -> UpstreamCall:
        """Send one request.

        :param method: the method as the client wrote it.
        :param url: origin and target, the target byte for byte as it goes on the wire.
        """


# What takes a disk, and is answered by another process.


@frozen(slots=True)
class Answered:
    """What is sent.

    :ivar kind: its media type.
    :ivar fields: further ones of the answer.
    """

    body: bytes
    kind: bytes = b"application/json"
    fields: tuple[tuple[bytes, bytes], ...] = ()


class Asks(Protocol):
    """Asks the process that reads and writes files; see :class:`flowstack.process.queries.Queries`."""

    def __call__(self, what: str, parameters: Mapping[str, Any], seconds: float) -> Deferred[Answered]:
        """Ask.

        :param what: an endpoint's name.
        :param parameters: of JSON.
        :return: fires with the answer, or fails with a FlowstackError. To cancel it gives up.
        """


class HolderPages(Protocol):
    """What the holder of a key sees on the proxy's own listener; see :class:`flowstack.admin.holder.Holder`."""

    def page(self, path: bytes, accepted: Sequence[bytes]) -> tuple[list[Pair], bytes] | None:
        """The fields and the body of the page, or of one of its files; None where there is none of this path.

        :param accepted: values of ``Accept-Encoding``.
        """

    def usage(self, key_id: str, query: bytes) -> Deferred[Answered]:
        """What a key used.

        :raises FlowstackError: it is not told.
        """
