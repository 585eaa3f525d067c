"""What every exchange needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowstack.config import Upstream
from flowstack.http.replies import Cors
from flowstack.interfaces import HolderPages, Ledger, Limiter, UpstreamClient
from flowstack.keys import Networks
from flowstack.keys.client_secrets import ClientSecrets
from flowstack.ledger.row import Row
from flowstack.prices.cost import Prices
from flowstack.relay.behind import Backlog
from flowstack.relay.holding import Room
from flowstack.relay.late import LateWork
from flowstack.relay.leaving import Leaving
from flowstack.relay.permission import Permission
from flowstack.relay.sideband import Calls
from flowstack.relay.tunnel import Sockets
from flowstack.transport.ticker import Ticker
from flowstack.upstream.routes import Routes
from flowstack.upstream.targets import Course


@dataclass(frozen=True)
class Services:
    """Made once, by :mod:`flowstack.process`.

    :ivar clients: by the upstream's name.
    :ivar courses: by the upstream's name, of those at which more than one attempt may be made, or whose answers wait
        for their first byte.
    :ivar on_client_gone: by the upstream's name, the settings of those whose answers are read on after their clients
        left; None where there is none.
    :ivar leaving: the answers that are.
    :ivar room: how much is held of requests' bodies for that.
    :ivar streams: the exchanges whose answers are event streams, while these pass.
    :ivar later: calls a function after so many seconds, unless what it returns is cancelled.
    :ivar uniform: draws a number between two others.
    :ivar observe_failed_attempt: given the target's label and the fault of an attempt after which another one follows.
    :ivar wall_clock: UTC Unix seconds.
    :ivar monotonic: seconds on a clock that never steps.
    :ivar upstream: the name of the default one, whose limits are shown where a request's own is not known.
    :ivar trusted: the proxies that are believed about what came before them.
    :ivar date: the ``Date`` field's value for now.
    :ivar next_id: makes the id of a request, and of what has a row of its own.
    :ivar sockets: the WebSockets.
    :ivar calls: hears what is said in calls whose media pass by.
    :ivar secrets: the client secrets that were made here.
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
    ticker: Ticker
    room: Room
    later: Callable[[float, Callable[[], None]], Any]
    uniform: Callable[[float, float], float]
    observe_failed_attempt: Callable[[str, str], None]
    courses: Mapping[str, Course]
    on_client_gone: Mapping[str, Upstream] | None
    leaving: set[Leaving]
    streams: set[Any]
    next_id: Callable[[], bytes]
    sockets: Sockets
    calls: Calls
    secrets: ClientSecrets
    trusted: Networks
    server_timing: bool = False
    docs_url: str | None = None
    holder: HolderPages | None = None
