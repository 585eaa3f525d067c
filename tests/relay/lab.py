"""The whole proxy in memory: clients on one side, upstreams on the other, rows and reservations in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from twisted.internet.defer import Deferred

from flowstack.config import Ledger as LedgerSettings
from flowstack.config import Server, Settings, Timeouts, Upstream
from flowstack.http.headers import lines_of
from flowstack.http.replies import Cors
from flowstack.keys import Key, Networks, digest
from flowstack.keys.client_secrets import ClientSecrets
from flowstack.keys.provider import KeyRing
from flowstack.ledger.open_work import OpenWork
from flowstack.prices.table import load_prices
from flowstack.process.courses import SharedHealth, courses_of, labels_of
from flowstack.relay.behind import Backlog
from flowstack.relay.client import RelayClient
from flowstack.relay.heard import Heard
from flowstack.relay.holding import Room
from flowstack.relay.ids import request_ids
from flowstack.relay.late import LateWork
from flowstack.relay.leaving import Leaving
from flowstack.relay.permission import Permission
from flowstack.relay.resource import Relay
from flowstack.relay.services import Services
from flowstack.relay.sideband import Calls
from flowstack.relay.tunnel import Sockets
from flowstack.upstream.routes import Origin, Routes
from flowstack.upstream.targets import Notes
from tests.harness import Listener, Provider, Transport, Turns

KEY = b"a-key-of-others-that-is-long-enough"
AUTH = b"Flowstack-Auth: Bearer " + KEY
DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"
NOW = 1_700_000_000.0
PRICES = load_prices()


class Keys:
    """A keystore."""

    generation = 1

    def __init__(self) -> None:
        self.keys: dict[bytes, Key] = {}

    def add(self, token: bytes, **options: Any) -> Key:
        key = Key(id=options.pop("id", "k1"), digest=digest(token), **options)
        self.keys[key.digest] = key
        return key

    def lookup(self, digest: bytes) -> Key | None:
        return self.keys.get(digest)


class Reservation:
    """What the limiter below gave."""

    def __init__(self, limiter: Limiter, number: int) -> None:
        self._limiter = limiter
        self.number = number
        self.at_once = False
        self.claimed: list[tuple[int, float | None]] = []

    def kept(self) -> dict[str, Any]:
        return {"number": self.number}

    def claim(self, tokens: int, cost_usd: float | None, least_usd: float | None = None) -> Any:
        self.claimed.append((tokens, cost_usd))
        if self._limiter.claim_fault is not None:
            raise self._limiter.claim_fault

    @property
    def lines(self) -> bytes:
        return lines_of(self._limiter.figures)


class Limiter:
    """Counts what it gives and what it gets back."""

    reservation = Reservation

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.given: list[Reservation] = []
        self.settled: list[Any] = []
        self.owed: list[tuple[int | None, float | None]] = []
        self.settled_later: list[tuple[int, Any]] = []
        self.charged: list[tuple[int | None, float | None]] = []
        self.fault: Exception | None = None
        self.claim_fault: Exception | None = None
        self.figures_fault: Exception | None = None
        self.metered = False
        self.priced = True
        self.figures: tuple[tuple[bytes, bytes], ...] = ()
        self.stood: list[Any] = []

    @property
    def reserved(self) -> int:
        return len(self.given)

    def plan(self, key: Key, upstream: str) -> Limiter:
        return self  # which says whether it is metered and priced

    def parts(self, plan: Limiter) -> tuple[Limiter, Limiter, Limiter]:
        return self, self, self

    def reserve(
        self,
        plan: Limiter,
        tokens: int | None = None,
        cost_usd: float | None = None,
        least_usd: float | None = None,
        looks: bool = False,
    ) -> Reservation:
        if self.fault is not None and not looks:
            raise self.fault
        reservation = self.reservation(self, len(self.given) + 1)
        if tokens is not None:
            reservation.at_once = True
            reservation.claimed.append((tokens, cost_usd))
        self.given.append(reservation)
        self.open.add(reservation.number)
        return reservation

    def fields(self, key: Key, upstream: str) -> tuple[tuple[bytes, bytes], ...]:
        if self.figures_fault is not None:
            raise self.figures_fault
        return self.figures

    def standings(self, key: Key) -> list[Any]:
        return self.stood

    def settle(
        self, reservation: Reservation, row: Any, tokens: int | None = None, cost_usd: float | None = None
    ) -> None:
        self.open.remove(reservation.number)  # raises where it comes twice
        self.settled.append(row)
        self.owed.append((tokens, cost_usd))

    def settle_later(self, kept: dict[str, Any], row: Any) -> None:
        self.settled_later.append((kept["number"], row))

    def charge(self, plan: Limiter, tokens: int | None, cost_usd: float | None) -> None:
        assert plan is self
        self.charged.append((tokens, cost_usd))


class SlowLimiter(Limiter):
    """Answers when the test says so, as one does that asks another machine."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    @property
    def waiting(self) -> int:
        return len(self._asked)

    def reserve(self, *asked: Any, **options: Any) -> Any:
        return self.wait_for(partial(self.take, *asked, **options))

    def wait_for(self, act: Callable[[], Any]) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        self._asked.append((waiting, act))
        return waiting

    def take(self, *asked: Any, **options: Any) -> Any:
        return super().reserve(*asked, **options)

    def answer(self) -> None:
        tell(*self._asked.pop(0))


def tell(waiting: Deferred[Any], act: Callable[[], Any]) -> None:
    """Have a Deferred fire with what a call gives, or raises."""
    try:
        outcome = act()
    except Exception:
        waiting.errback()
    else:
        waiting.callback(outcome)


class SlowReservation(Reservation):
    def claim(self, *asked: Any) -> Any:
        assert isinstance(self._limiter, SlowLimiter)
        return self._limiter.wait_for(partial(super().claim, *asked))


class SlowClaims(SlowLimiter):
    """The same, but to reserve takes no time."""

    reservation = SlowReservation
    reserve = SlowLimiter.take


class Ledger:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.watch: Any = None
        self.accepting = True
        self.flushed = 0

    def flush(self) -> None:
        self.flushed = len(self.rows)

    def record(self, row: Any, operation: str = "") -> None:
        self.rows.append(dict(row))
        if self.watch is not None:
            self.watch()


class Lab:
    """One site, its relay, and as many upstreams as are configured.

    :param real: gives the services that are to stand in place of the fakes, by name.
    """

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        upstreams: tuple[Upstream, ...] = (Upstream(base_url="http://upstream.example/v1"),),
        clients: dict[str, Any] | None = None,
        ledger: LedgerSettings | None = None,
        open_work: OpenWork | None = None,
        default_price: float | None = None,
        limiter: Limiter | None = None,
        provider_keys: Mapping[str, tuple[bytes, ...]] = MappingProxyType({}),
        real: Callable[[Lab], Mapping[str, Any]] = lambda lab: {},
        **server: Any,
    ) -> None:
        self.settings = settings = Settings(
            server=Server(**server), upstreams=upstreams, ledger=ledger or LedgerSettings()
        )
        self.turns = Turns(timeouts or Timeouts())
        self.keys, self.limiter, self.ledger = Keys(), limiter or Limiter(), Ledger()
        self.key = self.keys.add(KEY, owner="alice@example.com")
        self.providers = {
            Origin.of(upstream, target).label: Provider(
                turns=self.turns,
                target=target,
                **{name: getattr(upstream, name) for name in ("name", "base_url", "max_connections", "retry_post")},
            )
            for upstream in upstreams
            for target in upstream.targets or (None,)
        }
        made_clients = {label: RelayClient(made.agent) for label, made in self.providers.items()}
        self.rings = {label: KeyRing(keys) for label, keys in provider_keys.items()}
        self.courses = courses_of(settings, made_clients, self.rings, SharedHealth(labels_of(settings)))
        self.room = Room(settings.server.retry_body_bytes, settings.server.retry_memory_bytes)
        Notes(self.courses.values(), self.turns.ticker, self.turns.clock.seconds)
        self.failed_attempts: list[tuple[str, str]] = []
        self.leaving: set[Leaving] = set()
        self.streams: set[Any] = set()
        self.unauthenticated: list[str] = []
        self.observed: list[tuple[str, str]] = []
        self.open_work = open_work or OpenWork(None, 0, self.turns.clock.seconds)
        self.held_turns: list[Callable[[], None]] | None = None  # a list: they happen when the test says so
        made: dict[str, Any] = dict(
            limiter=self.limiter,
            ledger=self.ledger,
            clients=clients or {name.partition("/")[0]: client for name, client in made_clients.items()},
            cors=Cors.of(settings.server.cors_origins),
            wall_clock=self.wall,
            monotonic=self.turns.clock.seconds,
            date=lambda: DATE,
            prices=PRICES,
            permission=Permission(
                PRICES, settings.estimates.output_tokens, default_price, settings.ledger.inject_usage
            ),
            backlog=Backlog(self._later),
            late=LateWork(self.open_work, self.limiter, self.ledger, PRICES, self._observed, self.wall, default_price),
            observers=(self.ledger.record, self._observed),
            observe_unauthenticated=self.unauthenticated.append,
            upstream=upstreams[0].name,
            routes=Routes.of(settings.server.prefixes, upstreams),
            ticker=self.turns.ticker,
            room=self.room,
            later=self.turns.clock.callLater,
            uniform=lambda least, most: most,
            observe_failed_attempt=lambda *failed: self.failed_attempts.append(failed),
            courses=self.courses,
            on_client_gone={one.name: one for one in upstreams if one.on_client_gone == "drain"} or None,
            leaving=self.leaving,
            streams=self.streams,
            trusted=Networks(() if settings.server.proxy_protocol else settings.server.trusted_proxies),
            server_timing=settings.server.server_timing,
            docs_url=settings.server.docs_url,
        )
        self._count = 0
        next_id = request_ids(self._random, self.turns.clock.seconds, self.wall).__next__
        self.socket_ends: list[str] = []
        self.socket_room = Room(settings.server.websocket_message_bytes, settings.server.websocket_memory_bytes)
        self.sockets = Sockets(
            ticker=self.turns.ticker,
            timeouts=self.turns.timeouts,
            keystore=self.keys,
            max_message=settings.server.websocket_message_bytes,
            room=self.socket_room,
            wall_clock=self.wall,
            next_id=next_id,
            random=lambda size: b"\x0f\xf0\x55\xaa" * (size // 4),
            observe_end=self.socket_ends.append,
        )
        self.secrets = ClientSecrets(None, self.wall, self.turns.clock.seconds)
        self.calls = Calls(
            {one.name for one in upstreams if one.meter_calls},
            made_clients,
            {label.partition("/")[0]: ring.keys[0] for label, ring in self.rings.items()},
            {one.name: one.api_key_header.encode("ascii") for one in upstreams},
            Heard(None),
            lambda size: b"\x0f\xf0\x55\xaa" * (size // 4),
        )
        made |= dict(next_id=next_id, sockets=self.sockets, calls=self.calls, secrets=self.secrets)
        services = Services(**(made | dict(real(self))))
        self.relay = Relay(settings, self.keys, services)
        self.relay.provider_keys = {label.partition("/")[0]: ring.keys[0] for label, ring in self.rings.items()}
        self.listener = Listener(self.relay, turns=self.turns)
        self.listener.site.refuse = self.relay.refusal

    def _later(self, call: Callable[[], None]) -> None:
        if self.held_turns is None:
            self.turns.later(call)
        else:
            self.held_turns.append(call)

    def turn(self) -> None:
        """The next turn of the meters that are behind, where these are held."""
        assert self.held_turns is not None
        self.held_turns.pop(0)()
        self.turns.settle()

    def _observed(self, row: Any, operation: str) -> None:
        self.observed.append((row["request_id"], operation))

    def wall(self) -> float:
        return NOW + self.turns.clock.seconds()

    def _random(self, size: int) -> bytes:
        self._count += 1
        return b"".join((self._count * 1000 + number).to_bytes(10, "big") for number in range(size // 10))

    @property
    def upstreams(self) -> list[Transport]:
        (provider,) = self.providers.values()
        return provider.peers

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.ledger.rows

    @property
    def row(self) -> dict[str, Any]:
        """The one row there is; what was reserved has been given back."""
        assert len(self.rows) == 1, self.rows
        assert self.limiter.open == set()
        return self.rows[0]

    def client(self) -> Transport:
        return self.listener.connect()

    def ask(
        self, line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"", auth: bytes | None = AUTH
    ) -> Transport:
        client = self.client()
        client.send(request(line, *fields, body=body, auth=auth))
        return client


def request(
    line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"", auth: bytes | None = AUTH
) -> bytes:
    lines = [line, b"Host: flowstack.example", *([auth] if auth is not None else []), *fields]
    return b"\r\n".join([*lines, b"", body])


class Answer:
    """What a client got."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split(b" ")[1]) if first else 0
        self.fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]

    def __getitem__(self, name: str) -> bytes | None:
        wanted = name.encode().lower()
        return next((value for other, value in self.fields if other.lower() == wanted), None)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after a look at what every error of Flowstack's own has."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert (self["flowstack-error"] or b"").decode() == error["code"]
        assert self["content-length"] == b"%d" % len(self.body)
        assert self["date"] == DATE
        assert self["flowstack-request-id"] is not None
        return error


def answer(client: Transport) -> Answer:
    return Answer(client.take())
