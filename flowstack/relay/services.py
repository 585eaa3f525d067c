"""What every exchange needs."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from flowstack.http.replies import Cors
from flowstack.interfaces import HolderPages, Ledger, Limiter, UpstreamClient
from flowstack.keys import Networks
from flowstack.ledger.row import Row
from flowstack.prices.cost import Prices
from flowstack.relay.behind import Backlog
from flowstack.relay.late import LateWork
from flowstack.relay.permission import Permission
from flowstack.upstream.routes import Routes


@frozen(slots=True)
class Services:
    """Made once, by :mod:`flowstack.process`.

    :ivar wall_clock: UTC Unix seconds.
    :ivar monotonic: seconds on a clock that never steps.
    :ivar upstream: the name of the default one, whose limits are shown where a request's own is not known.
    :ivar trusted: the proxies that are believed about what came before them.
    :ivar date: the ``Date`` field's value for now.
    :ivar backlog: the answers whose meters are behind.
    :ivar late: work whose usage is known later than its beginning.
    :ivar observers: each is given each row, once it is settled, and its operation's name: ledger, metrics.
    :ivar holder: what the holder of a key sees; None where there is nothing but what :mod:`flowstack.relay.own` tells.
    :ivar observe_unauthenticated: given the code of the error that a request without a valid key got.
    """

    limiter: Limiter
    ledger: Ledger
    clients: dict[str, UpstreamClient]
    cors: Cors
    wall_clock: Callable[[], float]
    monotonic: Callable[[], float]
    date: Callable[[], bytes]
    prices: Prices
    permission: Permission
    backlog: Backlog
    late: LateWork
    observers: tuple[Callable[[Row, str], None], ...]
    observe_unauthenticated: Callable[[str], None]
    upstream: str
    routes: Routes
    trusted: Networks
    server_timing: bool = False
    docs_url: str | None = None
    holder: HolderPages | None = None
