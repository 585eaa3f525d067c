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
    :ivar pre_drain: after SIGTERM, while new requests are still served and ``/readyz`` says that none should come.
    :ivar drain: for the streams in flight, after that.
    :ivar tcp_keepalive: of silence after which the kernel asks the other side, client or upstream, whether it is still
        there; 0 means never.
    """

    connect: float = 5.0
    response_head: float = 1200.0
    stream_idle: float = 600.0
    request_head: float = 15.0
    request_idle: float = 60.0
    client_idle: float = 60.0
    keepalive: float = 75.0
    queue: float = 5.0
    pre_drain: float = 0.0
    drain: float = 600.0
    tcp_keepalive: int = 60


@frozen(slots=True)
class UpstreamLimits:
    """Limits that stand for each key which sets none of its own; None means that there is no such limit.

    :ivar rpm: the most requests that a key may begin in any 60 seconds.
    :ivar tpm: the most tokens that a key may use in any 60 seconds.
    :ivar max_parallel: the most requests of a key under way at once.
    :ivar budget: as in the keystore file, ``<amount>usd/<day|month|total>``.
    """

    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget: str | None = None


@frozen(slots=True)
class Limits(UpstreamLimits):
    """Those of all upstreams together.

    :ivar budget_status: of the answer to a request that a budget does not cover, whosever budget it is.
    """

    budget_status: int = 429


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
    :ivar idle: seconds after which an unused pooled connection carries no request any more, before the upstream
        closes it.
    :ivar retry_post: whether a POST whose reused connection died before any answer byte is sent again.
    :ivar api_key_file: holds the provider's key that takes the place of the client's; None means that clients send it.
    :ivar api_key_header: the field in which it goes; ``Authorization`` says ``Bearer`` before it.
    :ivar inject_usage: whether streams are asked for their usage there: False where it does not know how, whatever keys
        and ``[ledger]`` say; None leaves it to these.
    :ivar limits: what stands for a key's requests to this upstream, in place of ``[limits]``, where it sets any.
    """

    name: str = "openai"
    base_url: str = "https://api.openai.com/v1"
    hosts: tuple[str, ...] = ()
    default: bool = True
    ca_file: Path | None = None
    max_connections: int = 1024
    idle: float = 30.0
    retry_post: bool = False
    api_key_file: Path | None = None
    api_key_header: str = "Authorization"
    inject_usage: bool | None = None
    limits: UpstreamLimits = field(factory=UpstreamLimits)


@frozen(slots=True)
class Server:
    """What Flowstack listens on and serves.

    :ivar listen: Twisted endpoint strings.
    :ivar keys: the keystore file.
    :ivar state: the directory for reload.json and what else must outlive a process; None means none is kept.
    :ivar workers: how many processes; 0 means one for each core that this process may use.
    :ivar admin: endpoint string of the admin listener; None means there is none.
    :ivar cors_origins: origins such as ``https://app.example``, or ``*``.
    :ivar forwarded: what becomes of ``X-Forwarded-*``, ``Via``, ``CF-*`` and all else that says who the client is:
        ``remove``, ``pass``, or ``append`` (pass, and append the client's address to ``X-Forwarded-For``).
    :ivar remove_headers: names of request fields that do not reach an upstream, in lower case; one that ends in ``*``
        is a beginning.
    :ivar server_timing: whether ``Server-Timing`` is added to responses.
    :ivar trusted_proxies: networks (CIDR) whose ``X-Forwarded-For`` is believed about the client's address.
    :ivar proxy_protocol: whether each connection begins with a PROXY protocol header, v1 or v2.
    :ivar docs_url: where the manual is, for links in errors; None means there are none.
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
    remove_headers: tuple[str, ...] = ()
    server_timing: bool = False
    trusted_proxies: tuple[str, ...] = ()
    proxy_protocol: bool = False
    docs_url: str | None = None


@frozen(slots=True)
class Log:
    """Where the one line a request goes.

    :ivar requests: ``-`` for standard output, ``none``, or a file's path, reopened on SIGHUP.
    :ivar format: ``json`` or ``text``.
    """

    requests: str = "-"
    format: str = "json"


@frozen(slots=True)
class Ledger:
    """The ledger below ``state``; without a state directory there is none.

    :ivar on_ledger_failure: ``serve`` on while rows cannot be written, or ``refuse`` new requests.
    :ivar queue_bytes: rows that wait, at most, in each worker while they cannot be written.
    :ivar fsync: ``never`` (the kernel writes when it likes), ``second`` (at most a second of rows is lost when the
        machine, not the process, fails), or ``row``.
    :ivar max_file_bytes: a day's file is continued in another from this size on.
    :ivar retention_days: journal files older than this are removed; 0 means never.
    :ivar index: whether the service keeps the SQLite index up to date.
    :ivar inject_usage: whether streams are asked for their usage, for keys that do not say.
    :ivar refusals_per_minute: rows of each key's refused requests in each worker; those beyond share one.
    """

    on_ledger_failure: str = "serve"
    queue_bytes: int = 8 * 1024 * 1024
    fsync: str = "second"
    max_file_bytes: int = 256 * 1024 * 1024
    retention_days: int = 0
    index: bool = True
    inject_usage: bool = False
    refusals_per_minute: int = 60


@frozen(slots=True)
class Admin:
    """What the admin listener gives.

    :ivar token_file: a file with the bearer token that all but the health checks ask for; None means that none is.
    :ivar hosts: the ``Host`` names, in lower case and without a port, by which it may be asked, beside ``localhost``
        and every IP address.
    """

    token_file: Path | None = None
    hosts: tuple[str, ...] = ()


@frozen(slots=True)
class Price:
    """Prices of a model in US dollars for a million tokens; None means not known, which is not free.

    :ivar model: a pattern of model names, ``*`` stands for any run of characters.
    :ivar cache_write: for tokens that the provider keeps for later requests; None means as much as ``input``.
    :ivar cache_write_hour: for those that it keeps for an hour.
    :ivar image_input: None means as much as ``input``, and ``image_output`` as much as ``output``.
    :ivar audio_minute: in US dollars a minute, where the length of the sound is billed and not its tokens.
    :ivar web_search_call: in US dollars each, as ``file_search_call`` and ``container``; None leaves it to the table.
    """

    model: str
    input: float | None = None
    cached_input: float | None = None
    output: float | None = None
    audio_input: float | None = None
    cached_audio_input: float | None = None
    audio_output: float | None = None
    image_input: float | None = None
    cached_image_input: float | None = None
    image_output: float | None = None
    cache_write: float | None = None
    cache_write_hour: float | None = None
    audio_minute: float | None = None
    web_search_call: float | None = None
    file_search_call: float | None = None
    container: float | None = None


@frozen(slots=True)
class Estimates:
    """What is reserved for a request that does not say what it may use.

    :ivar output_tokens: where no most is declared; None leaves it to the model.
    :ivar price: a million tokens in US dollars, for models without a price; None refuses these to keys with a budget.
    """

    output_tokens: int | None = None
    price: float | None = None


@frozen(slots=True)
class Reconcile:
    """Whether Flowstack itself asks what became of work whose usage is known late.

    :ivar enabled: it does, at the upstreams that have an ``api_key_file``.
    :ivar every: seconds between two rounds of asking.
    """

    enabled: bool = False
    every: float = 60.0


@frozen(slots=True)
class Settings:
    """All of it."""

    server: Server = field(factory=Server)
    timeouts: Timeouts = field(factory=Timeouts)
    upstreams: tuple[Upstream, ...] = (Upstream(),)
    log: Log = field(factory=Log)
    ledger: Ledger = field(factory=Ledger)
    admin: Admin = field(factory=Admin)
    limits: Limits = field(factory=Limits)
    estimates: Estimates = field(factory=Estimates)
    prices: tuple[Price, ...] = ()
    reconcile: Reconcile = field(factory=Reconcile)
