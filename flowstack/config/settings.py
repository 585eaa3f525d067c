"""The settings, frozen. The defaults suit one small machine; times are in seconds, sizes in bytes.

A value made here by hand is taken as it is: only :mod:`flowstack.config.parse` checks.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen


@frozen(slots=True)
class Timeouts:
    """How long Flowstack waits, each in seconds.

    :ivar connect: for a connection to the upstream, TLS included.
    :ivar response_head: from the request's last byte to the head of the upstream's answer.
    :ivar stream_idle: between two pieces of an answer; stands still while Flowstack itself pauses the upstream.
    :ivar request_head: for a request's head, from its first byte.
    :ivar request_idle: between two pieces of an upload.
    :ivar client_idle: for a client that accepts no byte while output waits.
    :ivar keepalive: for a client's next request on an open connection.
    :ivar queue: for a pooled connection to the upstream to come free.
    :ivar drain: for the streams in flight, after SIGTERM.
    """

    connect: float = 5.0
    response_head: float = 1200.0
    stream_idle: float = 600.0
    request_head: float = 15.0
    request_idle: float = 60.0
    client_idle: float = 60.0
    keepalive: float = 75.0
    queue: float = 5.0
    drain: float = 600.0


@frozen(slots=True)
class Prefix:
    """A served path prefix.

    :ivar path: begins and ends with ``/``.
    :ivar base_path: what takes its place upstream, begins and ends with ``/``; None means the path of the upstream's
        ``base_url``.
    """

    path: str = "/v1/"
    base_path: str | None = None


@frozen(slots=True)
class Upstream:
    """A provider behind Flowstack.

    :ivar base_url: ``http`` or ``https``, host, optional port, path without a trailing ``/``; no userinfo, query or
        fragment.
    :ivar hosts: the ``Host`` names that select it, in lower case, without a port. No two upstreams share one.
    :ivar default: whether it gets the requests whose host selects none. Exactly one upstream is the default.
    :ivar ca_file: PEM file of the only authorities trusted for it; None means the system's.
    :ivar max_connections: the most connections that one worker keeps open to it.
    :ivar idle: seconds after which an unused pooled connection is closed, before the upstream does so.
    :ivar retry_post: whether a POST whose reused connection died before any answer byte is sent again.
    """

    name: str = "openai"
    base_url: str = "https://api.openai.com/v1"
    hosts: tuple[str, ...] = ()
    default: bool = True
    ca_file: Path | None = None
    max_connections: int = 1024
    idle: float = 30.0
    retry_post: bool = False


@frozen(slots=True)
class Server:
    """What Flowstack listens on and serves.

    :ivar listen: Twisted endpoint strings.
    :ivar keys: the keystore file.
    :ivar state: the directory for reload.json and what else must outlive a process; None means none is kept.
    :ivar workers: how many processes; 0 means one for each core that this process may use.
    :ivar admin: endpoint string of the admin listener; None means there is none.
    :ivar cors_origins: origins such as ``https://app.example``, or ``*``.
    :ivar forwarded: what becomes of ``X-Forwarded-*``, ``Forwarded`` and ``Via``: ``remove``, ``pass``, or ``append``
        (pass, and append the client's address to ``X-Forwarded-For``).
    :ivar server_timing: whether ``Server-Timing`` is added to responses.
    """

    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    keys: Path = Path("keys")
    state: Path | None = None
    workers: int = 0
    admin: str | None = None
    prefixes: tuple[Prefix, ...] = (Prefix(),)
    max_request_bytes: int = 512 * 1024 * 1024
    max_head_bytes: int = 64 * 1024
    cors_origins: tuple[str, ...] = ()
    forwarded: str = "remove"
    server_timing: bool = False


@frozen(slots=True)
class Log:
    """Where the one line a request goes.

    :ivar requests: ``-`` for standard output, ``none``, or a file's path, reopened on SIGHUP.
    """

    requests: str = "-"


@frozen(slots=True)
class Settings:
    """All of it."""

    server: Server = field(factory=Server)
    timeouts: Timeouts = field(factory=Timeouts)
    upstreams: tuple[Upstream, ...] = (Upstream(),)
    log: Log = field(factory=Log)
