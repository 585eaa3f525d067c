"""Requests that showed no valid key: counted, and sampled in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import Factory, define
from twisted.logger import Logger

from flowstack.util import Throttle

log = Logger()

LOG_SECONDS = 10.0
"""At most one line in this many seconds: who has no key must not fill a disk."""


@define
class Unauthenticated:
    """Counts requests that showed no valid key, and says so in the log now and then."""

    monotonic: Callable[[], float]
    observe: Callable[[str], None]
    _unlogged: Counter[str] = Factory(Counter)
    _preflights: int = 0
    _last: str = ""
    _throttle: Throttle = Factory(lambda self: Throttle(self.monotonic, LOG_SECONDS), takes_self=True)

    def note(self, code: str, client: str, preflight: bool = False) -> None:
        """One more.

        :param preflight: whether a browser asked that, of a page whose origin may not.
        """
        self._preflights += preflight
        self.observe(code)
        self._unlogged[code] += 1
        self._last = client
        self.tell()

    def tell(self, at_once: bool = False) -> None:
        """Log them, if a line is due: called now and then, so that the last ones are told of too.

        :param at_once: whether it is due in any case.
        """
        if self._unlogged and (at_once or self._throttle.ready()):
            counts, self._unlogged = self._unlogged, Counter()
            preflights, self._preflights = self._preflights, 0
            log.info(
                "refused without a valid key: {counts}, the last from {client}{preflights}",
                counts=", ".join(f"{code} {count}" for code, count in sorted(counts.items())),
                client=self._last,
                preflights=f"; {preflights} are preflights of pages that are none of [server] cors_origins"
                if preflights
                else "",
            )
