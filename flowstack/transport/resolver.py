"""Names of upstreams looked up by the system, so that one slow name holds up no other.

The system's look-up (``getaddrinfo``: /etc/hosts, search domains, the order of IPv6 and IPv4) blocks, and cannot be
ended. Twisted does it in the reactor's ten threads, libuv in four; so many slow look-ups of one name, and no other name
is looked up, nor a row written by a thread. Here each has a thread of its own, of which there are few for each name.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from zope.interface import implementer

log = Logger()

MAX_LOOKUPS = 4
"""Concurrent look-ups of one name."""

Found = list[tuple[Any, ...]]
LookUp = Callable[..., Found]

_KINDS: dict[int, type[IPv4Address | IPv6Address]] = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}


@implementer(IHostResolution)
class _Wanted:
    """Somebody who waits for a name's addresses."""

    def __init__(self, name: str, port: int, kinds: Sequence[type[IAddress]] | None, receiver: Any) -> None:
        self.name = name
        self._port = port
        self._kinds = kinds
        self._receiver: Any = receiver
        receiver.resolutionBegan(self)

    def cancel(self) -> None:
        """Want them no more."""
        self._receiver = None

    def give(self, found: Found) -> None:
        """Here they are, in the system's order."""
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        for family, _, _, _, (host, _, *more) in found:
            kind = _KINDS.get(family)
            if kind is not None and (self._kinds is None or kind in self._kinds):
                receiver.addressResolved(kind("TCP", host, self._port, *more))
        receiver.resolutionComplete()


class _LookUp:
    """One look-up, and who waits for it."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.wanted: list[_Wanted] = []


@implementer(IHostnameResolver)
class Resolver:
    """Looks names up, each in threads of its own.

    Whoever asks for a name that is being looked up waits for the same answer. Once that takes longer than ``patience``
    the next who asks begins another, up to :data:`MAX_LOOKUPS`, so that a lost answer does not hold up those to come;
    the first that finds something serves all.

    :param patience: seconds.
    """

    def __init__(self, reactor: Any, patience: float, look_up: LookUp = socket.getaddrinfo) -> None:
        self._reactor = reactor
        self._patience = patience
        self._look_up = look_up
        self._under_way: dict[str, list[_LookUp]] = {}

    def resolveHostName(  # noqa: N802
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[type[IAddress]] | None = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> IHostResolution:
        """Look a name up; a receiver that gets no address is told that there is none."""
        wanted = _Wanted(hostName, portNumber, addressTypes, resolutionReceiver)
        in_flight = self._under_way.setdefault(hostName, [])
        now = self._reactor.seconds()
        if not in_flight or (now - in_flight[-1].begun >= self._patience and len(in_flight) < MAX_LOOKUPS):
            in_flight.append(_LookUp(now))
            self._begin(hostName, in_flight[-1])
        in_flight[-1].wanted.append(wanted)
        return wanted

    def _begin(self, name: str, look_up: _LookUp) -> None:
        def run() -> None:
            try:
                found = self._look_up(name, None, 0, socket.SOCK_STREAM)
            except (OSError, UnicodeError):  # gaierror is the first, a name that is none the second
                found = []
            except Exception:
                log.failure("a name could not be looked up")
                found = []
            self._reactor.callFromThread(self._ended, name, look_up, found)

        try:
            threading.Thread(target=run, name="look-up", daemon=True).start()  # an end does not wait for it
        except RuntimeError:  # there are too many threads
            self._reactor.callLater(0, self._ended, name, look_up, [])

    def _ended(self, name: str, look_up: _LookUp, found: Found) -> None:
        in_flight = self._under_way[name]
        served = list(in_flight) if found else [look_up]
        in_flight.remove(look_up)
        if not in_flight:
            del self._under_way[name]
        for one in served:
            wanted, one.wanted = one.wanted, []
            for waiting in wanted:
                waiting.give(found)
