"""Asks upstreams what became of open work, where no client does; off unless the operator says otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, DeferredSemaphore, ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from flowstack.http.headers import replace_credentials
from flowstack.ledger.late import Begun
from flowstack.relay.late import LateWork
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Late
from flowstack.usage.operations import Work, operation_of

log = Logger()

AT_ONCE: Final = 4
"""Questions in flight together."""

ANSWER_SECONDS: Final = 60.0
"""For the head of an answer."""

LONGEST_WAIT: Final = 3600.0
"""Seconds between two questions about one work that goes on, and of rest for an upstream that answers with faults."""

A_DAY: Final = 86400.0
"""Seconds between two questions of which nothing new can be expected."""

_PATHS: Final[dict[Work, str]] = {
    "response": "responses/{}", "batch": "batches/{}", "message_batch": "messages/batches/{}",
}  # fmt: skip
_VERSION: Final = (b"anthropic-version", b"2023-06-01")
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]+").fullmatch


@frozen
class Asked:
    """An upstream that may be asked.

    :ivar url: its base URL, without a slash at its end.
    :ivar key: gives the operator's key of now.
    :ivar key_field: in which it goes.
    """

    url: str
    key: Callable[[], bytes] = field(repr=False)
    key_field: bytes
    client: HTTPClient


class Reconciler:
    """Asks about open work at an interval, and settles what has ended as if a client had asked.

    Of a work that goes on it asks the more seldom the older it is. An upstream that answers with faults, or not at all,
    is left alone for a time that doubles.

    :param clock: the reactor.
    :param every: seconds between two rounds.
    :param open_work: gives what is waited for.
    :param upstreams: by name; others are not asked.
    :param wall: UTC Unix seconds.
    """

    def __init__(
        self,
        clock: Any,
        every: float,
        open_work: Callable[[], Deferred[list[Begun]]],
        upstreams: Mapping[str, Asked],
        late: LateWork,
        wall: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._every = every
        self._open = open_work
        self._upstreams = upstreams
        self._late = late
        self._wall = wall
        self._next: dict[str, tuple[float, float]] = {}  # by work: when to ask, and after how long a wait that is
        self._rest: dict[str, tuple[float, float]] = {}  # the same of upstreams
        self._rounds = LoopingCall(self.round)
        self._rounds.clock = clock
        self._stopped = False

    def start(self) -> None:
        """Begin, with a first round after the interval."""
        self._rounds.start(self._every, now=False).addErrback(lambda failure: log.failure("no more is asked", failure))

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopped = True
        if self._rounds.running:
            self._rounds.stop()

    def round(self) -> Deferred[None]:
        """Ask about all whose time has come; fires when each is answered."""
        return ensureDeferred(self._round())

    async def _round(self) -> None:
        try:
            works = await self._open()
        except OSError as error:
            log.error("open work cannot be read: {error}", error=str(error))
            return
        names = {begun.name for begun in works}
        self._next = {name: then for name, then in self._next.items() if name in names}
        now = self._wall()
        due = [
            begun for begun in sorted(works, key=lambda begun: begun.begun)
            if begun.upstream in self._upstreams and _ID(begun.id) and self._next.get(begun.name, (0.0, 0.0))[0] <= now
        ]  # fmt: skip
        few = DeferredSemaphore(AT_ONCE)
        settled = await gatherResults([few.run(self._ask, one) for one in due])
        if any(settled):
            log.info("asked about open work: {count} had ended and were settled", count=sum(settled))

    async def _ask(self, begun: Begun) -> bool:
        """Ask about one work, and tell whether it was settled. Never raises."""
        now = self._wall()
        if self._stopped or self._rest.get(begun.upstream, (0.0, 0.0))[0] > now:
            return False
        path = _PATHS[begun.kind].format(begun.id)
        try:
            status, late = await self._look(begun, path)
            if late is not None and late.finished and not late.used and begun.kind == "message_batch":
                status, late = await self._look(begun, f"{path}/results")
        except Exception as error:
            self._faulty(begun.upstream, type(error).__name__)
            return False
        if status in (408, 429) or status >= 500:
            self._faulty(begun.upstream, f"status {status}")
            return False
        self._rest.pop(begun.upstream, None)
        if late is not None and late.id in (None, begun.id):
            settled = self._late.seen(begun.upstream, late, begun.id, status)
            if settled is True or (isinstance(settled, Deferred) and await settled):
                return True
        if late is None or late.finished:  # it is not there, or not for this key, or its usage is not known
            wait = min(max(2 * self._next.get(begun.name, (0.0, 0.0))[1], self._every), A_DAY)
        else:
            wait = min(max((now - begun.begun) / 10, self._every), LONGEST_WAIT)
        self._next[begun.name] = now + wait, wait
        return False

    async def _look(self, begun: Begun, path: str) -> tuple[int, Late | None]:
        """What an upstream answers.

        :raises Exception: there is no answer, or no whole one.
        """
        asked = self._upstreams[begun.upstream]
        pairs = replace_credentials([], asked.key(), asked.key_field)
        if begun.kind == "message_batch":
            pairs.append(_VERSION)
        headers = Headers()
        for name, value in pairs:
            headers.addRawHeader(name, value)
        response: Any = await asked.client.get(
            f"{asked.url}/{path}", headers=headers, allow_redirects=False, timeout=ANSWER_SECONDS, reactor=self._clock
        )
        by_name = {name.lower(): values[-1] for name, values in response.headers.getAllRawHeaders()}
        meter = meter_for(operation_of(b"GET", path.encode("ascii")), response.code, by_name)

        def take(piece: bytes) -> None:
            if meter is not None and meter.feed(piece):
                while meter.work():
                    pass

        await response.collect(take)
        shown = () if meter is None else meter.finish().late
        return response.code, shown[0] if shown else None

    def _faulty(self, upstream: str, what: str) -> None:
        """Leave an upstream alone for a while."""
        now = self._wall()
        until, wait = self._rest.get(upstream, (0.0, 0.0))
        if until > now:
            return  # another question had the same answer
        wait = min(max(2 * wait, self._every), LONGEST_WAIT)
        self._rest[upstream] = now + wait, wait
        log.warn(
            "asked about open work, the upstream {upstream} gave no usable answer ({what}); asking again in {wait:g} s",
            upstream=upstream,
            what=what,
            wait=wait,
        )
