"""An upstream on bare sockets: it keeps every byte, reads strictly, and answers with the bytes that a test gives it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
from attrs import Factory, define, field

from tests.e2e.processes import Proxy
from tests.e2e.raw import LIMIT, Client, Closed, Connected, Link, Pairs, Unframed, framing, request, values

_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1")


@define
class Seen:
    """A request as the upstream read it.

    :ivar link: the connection on which it came.
    :ivar connection: that connection's number, counted from 1.
    :ivar body: None until it was read.
    :ivar framed: the body as it was on the wire.
    """

    link: Link
    connection: int
    line: bytes
    pairs: Pairs
    raw_head: bytes
    body: bytes | None = None
    framed: bytes = b""

    @property
    def method(self) -> str:
        """The method."""
        return self.line.split(b" ")[0].decode()

    @property
    def target(self) -> bytes:
        """The request's target."""
        return self.line.split(b" ")[1]

    def all(self, name: bytes) -> list[bytes]:
        """The values of a field, in order."""
        return values(self.pairs, name)

    def read_body(self) -> bytes:
        """Read the body, once."""
        if self.body is None:
            length = framing(self.pairs)
            if length is None:
                self.framed, chunks = self.link.chunked()
                self.body = b"".join(chunks)
            else:
                self.framed = self.body = self.link.exactly(max(length, 0))
        return self.body


Script = Callable[[Seen], None]
"""What an upstream does with a request whose head has come."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def reply(*pieces: bytes, close: bool = False, pause: float = 0.0) -> Script:
    """Read the whole request, then send these bytes as they are.

    :param close: close in order after them.
    :param pause: seconds between two pieces, so that they are two reads for whoever reads.
    """

    def script(seen: Seen) -> None:
        seen.read_body()
        for number, piece in enumerate(pieces):
            if number and pause:
                time.sleep(pause)
            seen.link.offer(piece)
        if close:
            seen.link.close()

    return script


@define
class Upstream:
    """An upstream that keeps every byte and answers by script.

    :ivar script: what it does with the next requests.
    :ivar requests: those whose head came, oldest first.
    :ivar faults: what came that is no request.
    :ivar total: how many requests there ever were; :meth:`forget` keeps it.
    """

    script: Script = field(factory=lambda: reply(OK))
    requests: list[Seen] = Factory(list)
    faults: list[str] = Factory(list)
    links: list[Link] = Factory(list)
    total: int = 0
    context: ssl.SSLContext | None = None
    _lock: threading.Lock = Factory(threading.Lock)
    _listener: socket.socket = field(init=False)
    _threads: list[threading.Thread] = Factory(list)

    def __attrs_post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._threads.append(threading.Thread(target=self._accept, daemon=True))
        self._threads[0].start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def authority(self) -> bytes:
        """The Host field that it should get."""
        return b"127.0.0.1:%d" % self.port

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        sock: Connected = plain
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.context is not None:
                sock = self.context.wrap_socket(plain, server_side=True)
        except OSError as error:
            self.faults.append(f"handshake: {error}")
            plain.close()
            return
        # An idle connection is the proxy's to close.
        link = Link(sock, limit=120.0)
        with self._lock:
            self.links.append(link)
            number = len(self.links)
        begun = False
        try:
            while not link.closed:
                raw, line, pairs = link.head()
                if not _REQUEST_LINE.fullmatch(line):
                    raise Unframed(f"no request line: {line[:200]!r}")
                seen = Seen(link, number, line, pairs, raw)
                framing(pairs)
                begun = True
                with self._lock:
                    self.total += 1
                    self.requests.append(seen)
                self.script(seen)
                if not link.closed:
                    seen.read_body()
        except Closed as end:
            # Whether others were seen since the last test forgot them says nothing of this connection.
            if end.rest and not begun:
                self.faults.append(str(end))
        except OSError:
            pass  # the proxy had enough of a script
        except AssertionError as error:
            if not link.closed:
                self.faults.append(str(error))
        finally:
            if not link.closed:
                link.close()

    def forget(self) -> None:
        """Begin a new count; connections stay. What has come by now counts as what came before."""
        self._settle()
        self.script = reply(OK)
        self.requests.clear()
        self.faults.clear()

    def _settle(self) -> None:
        """Wait until nothing that has come lies unread, though a thread may be late: at two looks, and between them."""
        quiet, deadline = 0, time.monotonic() + LIMIT
        while quiet < 2 and time.monotonic() < deadline:
            poll = select.poll()
            for number in (self._listener.fileno(), *(link.sock.fileno() for link in list(self.links))):
                if number >= 0:
                    poll.register(number, select.POLLIN)
            quiet = 0 if poll.poll(0) else quiet + 1
            time.sleep(0.003)

    def last(self) -> Seen:
        """The newest request."""
        return self.requests[-1]

    def requests_by_h11(self) -> int:
        """How many requests another parser finds in all that ever came, over all connections.

        :raises h11.RemoteProtocolError: it finds something that is no request.
        """
        return sum(_count_by_h11(bytes(link.received)) for link in list(self.links))

    def stop(self) -> None:
        """Close everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self.links:
            link.close()
        for thread in self._threads:
            thread.join(LIMIT)


def _count_by_h11(received: bytes) -> int:
    machine = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 24)
    machine.receive_data(received)
    count = 0
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            return count
        if event is h11.PAUSED:
            if machine.our_state is h11.SEND_RESPONSE:
                machine.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                machine.send(h11.EndOfMessage())
            if machine.our_state is not h11.DONE:
                return count
            machine.start_next_cycle()
        elif isinstance(event, h11.Request):
            count += 1


@contextlib.contextmanager
def upstream(context: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """An :class:`Upstream` for as long as the block lasts."""
    found = Upstream(context=context)
    try:
        yield found
    finally:
        found.stop()


@define
class Front:
    """A proxy before an upstream on bare sockets.

    :ivar base: what takes the place of ``/v1`` in a target.
    """

    proxy: Proxy
    upstream: Upstream
    base: bytes

    def client(self) -> Client:
        """A new connection to the proxy."""
        return Client(self.proxy.port)

    def request(self, line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"") -> bytes:
        """See :func:`tests.e2e.raw.request`; with the proxy's own key."""
        return request(self.proxy.key, line, *fields, body=body)

    def assert_serves(self) -> None:
        """The very process that was started answers a new client, with the upstream's bytes."""
        os.kill(self.proxy.pid, 0)
        self.upstream.script = reply(OK)
        with self.client() as client:
            answer = client.ask(self.request(b"GET /v1/alive HTTP/1.1"))
        assert (answer.status, answer.body) == (200, b"ok"), answer
        assert self.upstream.last().target == self.base + b"/alive"


@contextlib.contextmanager
def front(folder: Path, base: str = "/api/base", **settings: Any) -> Iterator[Front]:
    """A :class:`Front` for as long as the block lasts; the proxy must then end well.

    :param settings: tables of the configuration, as :class:`tests.e2e.processes.Proxy` takes them.
    """
    with upstream() as behind:
        proxy = Proxy(folder, f"http://127.0.0.1:{behind.port}{base}", settings=settings)
        try:
            yield Front(proxy, behind, base.encode())
        except BaseException:
            proxy.kill()
            raise
        proxy.stop()
        log = proxy.log_text()
        assert "Traceback" not in log and "Unhandled" not in log, log
