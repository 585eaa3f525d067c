"""Twisted's TLS transport, carried by uvloop's, which runs the standard library's :mod:`ssl`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet import main
from twisted.internet.interfaces import INegotiated, ISSLTransport
from zope.interface import implementer

from flowstack.transport.connection import Build, Connection, Lost
from flowstack.transport.kernel import remains

SHUTDOWN_TIMEOUT = 5.0
"""Seconds that a closing connection waits for its peer's ``close_notify``."""


class _Heeding(asyncio.BufferedProtocol):
    """Stands between uvloop's transport and its TLS, and gives TLS what is unread before it is told of the end.

    :ivar tls: uvloop's protocol. With another in its place each read takes a way through Python, so it gets it back.
    """

    def __init__(self, raw: Any, tls: Any) -> None:
        self._raw = raw
        self.tls = tls
        for name in ("get_buffer", "buffer_updated", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(tls, name))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Read on as far as there is something, then end."""
        tls, self.tls = self.tls, None
        if isinstance(exc, OSError):
            for data in remains(self._raw.get_extra_info("socket").fileno()):
                while data:
                    buffer = tls.get_buffer(len(data))
                    size = min(len(buffer), len(data))
                    buffer[:size] = data[:size]
                    tls.buffer_updated(size)
                    data = data[size:]
        tls.connection_lost(exc)


@implementer(INegotiated, ISSLTransport)
class TlsConnection(Connection):
    """One connection under the standard library's TLS.

    It is connected when the handshake is done. The peer's ``close_notify`` is ``ConnectionDone``; a FIN without it, by
    which an attacker could have cut the stream (RFC 8446 §6.1), is ``ConnectionLost``. TLS here cannot be half closed:
    ``loseWriteConnection`` closes.
    """

    __slots__ = ("_begun", "raw", "waited")

    _drain_limits = (1, 0)  # its buffer counts as full at the mark, not above it

    def __init__(self, loop: asyncio.AbstractEventLoop, build: Build, lost: Lost | None = None) -> None:
        super().__init__(loop, build, lost)
        self.raw: Any = None
        """uvloop's transport beneath TLS, where that was put on an open connection."""
        self._begun = loop.time()

    def connection_made(self, uv: Any) -> None:
        """Build the protocol and connect it."""
        self.waited = self._loop.time() - self._begun
        # While the reader is paused, a FIN behind undelivered bytes would throw them away: with these limits the
        # socket is not read while any are left.
        uv.set_read_buffer_limits(1, 0)
        super().connection_made(uv)

    def eof_received(self) -> bool:
        """``close_notify`` came; uvloop answers it and closes when this returns."""
        self._outbox.flush()
        self._end(main.CONNECTION_DONE)
        if self._uv is not None and self._uv.get_write_buffer_size():
            self._uv.abort()
        return False

    @property
    def negotiatedProtocol(self) -> bytes | None:  # noqa: N802
        """What ALPN agreed on."""
        chosen = self._ssl_object().selected_alpn_protocol() if self._uv is not None else None
        return chosen.encode("ascii") if chosen else None

    @property
    def version(self) -> str | None:
        """The protocol's version, such as ``TLSv1.3``."""
        return self._ssl_object().version() if self._uv is not None else None

    def getPeerCertificate(self) -> bytes | None:  # noqa: N802
        """Return the peer's certificate, DER."""
        return self._ssl_object().getpeercert(binary_form=True) if self._uv is not None else None

    def pauseProducing(self) -> None:
        """Read no more."""
        super().pauseProducing()
        if self.connected and not self.disconnecting:
            # The handshake's last flight is sent with the first read or write; a pause must not hold it back.
            self._uv.writelines(())

    def heed_remains(self, heed: bool) -> None:
        """See :func:`flowstack.transport.kernel.heed_remains`."""
        raw = self.raw
        if raw is None or raw.is_closing():
            return
        below = raw.get_protocol()
        if heed:
            raw.set_protocol(_Heeding(raw, below))
        elif isinstance(below, _Heeding):
            raw.set_protocol(below.tls)

    def loseWriteConnection(self) -> None:
        """Close."""
        self.loseConnection()

    def _ssl_object(self) -> ssl.SSLObject:
        return cast(ssl.SSLObject, self._uv.get_extra_info("ssl_object"))

    def _write_sequence(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))  # uvloop would make a TLS record of each piece

    def _hold(self) -> None:
        """Nothing: uvloop's TLS heeds a pause in ``connectionMade``."""

    def _reason(self, exc: BaseException | None) -> BaseException:
        if self._why is main.CONNECTION_DONE and isinstance(exc, ssl.SSLError | TimeoutError):
            return self._why  # the peer was impolite about a closing that was ours
        return super()._reason(exc)
