"""Every setting, stated once: its type, its default, what it takes, and what it does.

The parser, the frozen values, ``etc/flowstack.toml`` and the settings reference are all made from this table. Times
are in seconds, sizes in bytes; the defaults suit one small machine. A value that is made here by hand is taken as it
is: only :mod:`flowstack.config.parse` checks.
"""

from __future__ import annotations

from pathlib import Path

from attrs import Factory, frozen

from flowstack.config.values import (
    Pairs,
    Reader,
    array,
    authorities,
    base_url,
    budget,
    choice,
    dollars,
    endpoint,
    failure,
    flag,
    growth,
    host,
    host_and_port,
    key_field,
    mapping,
    model_name,
    model_pattern,
    name,
    network,
    node_name,
    optional,
    origin,
    path,
    postgres_url,
    prefix_path,
    redis_url,
    removed_field,
    requests_log,
    seconds,
    seconds_or_none,
    secret_file,
    served_path,
    setting,
    share,
    table,
    tables,
    whole,
    whole_of,
    workers,
)
from flowstack.config.ways import Way


@frozen(slots=True)
class Timeouts:
    """How long Flowstack waits. All are seconds."""

    connect: float = setting(
        5.0, seconds, "How long connecting to the upstream may take, TLS included; then 504 ``upstream_timeout``."
    )
    response_head: float = setting(
        1200.0,
        seconds,
        "How long the upstream may take from the last byte of the request to the head of the response; then 504 "
        "``upstream_timeout``. OpenAI's flex tier needs 900.",
    )
    stream_idle: float = setting(
        600.0,
        seconds,
        "How long the upstream may pause within a response. The time that Flowstack itself holds the upstream back for "
        "a slow client does not count.",
    )
    request_head: float = setting(
        15.0, seconds, "How long a client may take to send the head of a request, from its first byte."
    )
    request_idle: float = setting(60.0, seconds, "How long a client may pause within a request body.")
    client_idle: float = setting(60.0, seconds, "How long a client may accept no byte while output waits.")
    keepalive: float = setting(75.0, seconds, "How long a client connection may stay open between two requests.")
    queue: float = setting(
        5.0,
        seconds,
        "How long a request waits for a connection to the upstream while ``max_connections`` are in use; then 503 "
        "``overloaded``.",
    )
    pre_drain: float = setting(
        0.0,
        seconds_or_none,
        "How long new requests are still served after SIGTERM, while ``/readyz`` says 503, so that a load balancer has "
        "the time to send them elsewhere. 0: drain at once.",
    )
    drain: float = setting(
        600.0,
        seconds,
        "How long requests in flight may take to finish after SIGTERM and ``pre_drain``. Keep systemd's "
        "``TimeoutStopSec=`` above the sum of both.",
    )
    websocket_handshake: float = setting(
        30.0, seconds, "How long the upstream may take to answer the handshake of a WebSocket; then 504 "
        "``upstream_timeout``.",
    )
    websocket_ping: float = setting(
        30.0,
        seconds,
        "After how long a silence of either side of a WebSocket Flowstack sends it a ping, and after how long without "
        "any answer it ends both.",
    )
    websocket_close: float = setting(
        5.0, seconds, "How long either side of a WebSocket may take for its part of the end, once the other has closed."
    )
    websocket_session: float = setting(
        7200.0, seconds, "How long a WebSocket may last; then it is closed with 1001. OpenAI's end after an hour."
    )
    tcp_keepalive: int = setting(
        60,
        whole(0, 32767, "seconds"),  # what Linux takes
        "How long a TCP connection, to a client or an upstream, may be silent before the kernel probes it: four times, "
        "15 seconds apart. Probes keep the connection known to firewalls, and end one whose other side is gone. 0: "
        "never.",
    )


@frozen(slots=True)
class UpstreamLimits:
    """Limits for each key's requests to this upstream alone. Each replaces the same limit in ``[limits]``; a key's own
    limit replaces both. Empty: as in ``[limits]``."""

    rpm: int | None = setting(
        None,
        optional(whole(1, 10**15 - 1, "requests a minute")),
        "Requests that a key may begin in any 60 seconds.",
    )
    tpm: int | None = setting(
        None,
        optional(whole(1, 10**15 - 1, "tokens a minute")),
        "Tokens that a key may use in any 60 seconds.",
    )
    max_parallel: int | None = setting(
        None,
        optional(whole(1, 10**6, "requests at once")),
        "Requests that a key may have in flight.",
    )
    budget: str | None = setting(
        None,
        optional(budget),
        "What a key may spend: an amount with at most six decimals, ``usd/``, and ``day``, ``month`` or ``total``.",
        example='"50.00usd/month"',
    )


@frozen(slots=True)
class Limits(UpstreamLimits):
    """Limits of each key that sets no such limit of its own, for all its requests together. Empty: no limit."""

    budget_status: int = setting(
        429,
        whole_of(429, 402, 403, 422),
        "The status of the response when a budget is used up. 429 is OpenAI's own; some clients, such as LlamaIndex "
        "and Vercel's AI SDK, retry any 429, and need another.",
    )


@frozen(slots=True)
class Prefix:
    """A path prefix that is served. Both paths begin and end with ``/``; no ``base_path`` means the path of the
    upstream's ``base_url``."""

    path: str = setting("/v1/", served_path, "What clients ask for.")
    base_path: str | None = setting(None, optional(prefix_path), "What replaces it upstream.")


_prefix_table = table(Prefix, path="the path that clients ask for, such as /v1/")


def _read_prefix(value: object, directory: Path) -> Prefix:
    made: Prefix = _prefix_table(value) if isinstance(value, dict) else Prefix(path=served_path(value))
    return made


prefix = Reader(_read_prefix, "a path, or a table with path and base_path")


@frozen(slots=True)
class Target(Way):
    """One of several places at which an upstream's API is served, such as regions: a table each, whose name has at most
    64 letters, digits, ``-`` and ``_``. Among those that are healthy a request goes to the least busy one, by weight.
    All else of the upstream holds for each, as does the way to it where a target names none of its own: authorities, a
    certificate with its key, a socket or a proxy with its credentials."""

    name: str
    base_url: str = setting(
        "", base_url, "Where its requests go; as ``base_url`` of an upstream, which has none then. Required.",
        example='"https://my-resource.openai.azure.com/openai/v1"',
    )  # fmt: skip
    weight: int = setting(
        1,
        whole(1, 1000, "parts"),
        "Its part of the requests: of two targets with the weights 3 and 1 the first gets three of four.",
    )
    api_key_file: Path | None = setting(
        None,
        optional(secret_file),
        "As of an upstream, for this target alone. Empty: the upstream's. Either all targets have a key, or none.",
        example='"/etc/flowstack/azure-west.secret"',
    )


@frozen(slots=True)
class Retry:
    """Whether a request that failed is sent again: only where this table is. It is never sent again once the client has
    left, once a byte of an answer's body went to the client, or where its body was too large to be held
    (``retry_body_bytes``)."""

    on: tuple[str | int, ...] = setting(
        ("connect", 429, 500, 502, 503, 504),
        array(failure, unique=True),
        "After which failures. ``connect``: no connection, so that no byte was sent. ``reset``: the connection ended, "
        "or broke HTTP, before the answer's head. ``timeout``: no head within ``response_head``, or no byte of a body "
        "within ``first_byte``; the same target is not asked again then. After these two the request may have been "
        "carried out, so that it may be billed twice. Numbers are statuses, from 401 on.",
        example='["connect", "reset", "timeout", 429, 503]',
    )
    attempts: int = setting(3, whole(1, 10, "attempts"), "The most times that a request is sent to this upstream.")
    within: float = setting(60.0, seconds, "How long after the first attempt another one may begin.")
    backoff: float = setting(
        0.25,
        seconds_or_none,
        "How long to wait, at least, before a target is asked again. Another target is asked at once. The waits are "
        "drawn at random, so that clients do not come back together.",
    )
    backoff_growth: float = setting(3.0, growth, "By how much the longest such wait grows from one to the next.")
    backoff_max: float = setting(5.0, seconds, "The longest such wait.")
    retry_after_max: float = setting(
        10.0,
        seconds_or_none,
        "The longest ``Retry-After`` that is waited for. Where an upstream asks for more, another target or the "
        "fallback is asked at once; where there is none, the client gets the answer.",
    )
    budget: float = setting(
        0.2,
        share,
        "The most further attempts, as a share of the requests of the last ten seconds in each worker: a provider that "
        "is down is not asked many times as often.",
    )
    budget_least: int = setting(
        10, whole(0, 10**6, "attempts"), "How many further attempts there may be in ten seconds whatever that share is."
    )


@frozen(slots=True)
class Health:
    """When a target of this upstream counts as down: by what becomes of its requests, in all workers. The failures are
    connections that cannot be made or end early, timeouts, and the statuses 500, 502, 503, 504 and 529. It matters
    where there are several targets, or a fallback."""

    failures: int = setting(5, whole(1, 10**6, "failures"), "So many failures in a row.")
    failure_share: float = setting(0.5, share, "Or such a share of the requests of the last ten seconds. 1: never.")
    failure_share_requests: int = setting(
        20, whole(1, 10**6, "requests"), "The fewest requests in ten seconds of which that share counts."
    )
    eject: float = setting(
        1.0,
        seconds,
        "How long it is not asked then. After that one request tries it, and if that fails too, the time doubles.",
    )
    eject_max: float = setting(5.0, seconds, "The longest such time.")
    panic: float = setting(
        0.5,
        share,
        "If more than this share of the targets is down, all are asked as if none were. 0: never. Where there is a "
        "fallback, it gets the requests instead.",
    )
    slow_start: float = setting(
        0.0, seconds_or_none, "How long a target that is back gets fewer requests than its weight says. 0: not at all."
    )


@frozen(slots=True)
class Fallback:
    """Another upstream that takes the requests for inference that this one could not serve: only where this table is.
    It needs a provider key of its own (``api_key_file``), since the client's key goes to the first one alone. A key's
    ``upstreams`` and ``models`` hold for it too."""

    to: str = setting("", name, "Its name. Required.", example='"azure"')
    models: Pairs = setting(
        Pairs(),
        mapping(model_pattern, model_name, "a table of models, or patterns of them, and models"),
        "Which model to ask for there, by the model that was asked for here, or a pattern with ``*``. Nothing else in "
        "the body changes. Models that are not named keep their names.",
        example='{"gpt-4o" = "my-gpt-4o", "gpt-4.1*" = "llama-3.3-70b"}',
    )
    on: tuple[str | int, ...] = setting(
        ("connect", 429, 500, 502, 503, 504),
        array(failure, unique=True),
        "After which failures of the last attempt, as in ``retry``; and always where all targets are down.",
    )
    context_length: bool = setting(
        False,
        flag,
        "Whether also where the upstream refuses a request with 400 ``context_length_exceeded``. Any other 400, such "
        "as a content filter's, goes to the client.",
    )


@frozen(slots=True)
class Upstream(Way):
    """A provider behind Flowstack: one table each, whose name is what the request log and keys (``upstreams=``) call
    it: at most 64 letters, digits, ``-`` and ``_``. Without any there is one, ``openai``, with these defaults."""

    name: str = "openai"
    base_url: str = setting(
        "https://api.openai.com/v1",
        base_url,
        "Where requests go: http or https, a host, optionally a port, and the path that replaces the prefix. No "
        "credentials: clients send their own. Only the upstream called ``openai`` has a default.",
    )
    hosts: tuple[str, ...] = setting(
        (),
        array(host, unique=True),
        "The ``Host`` names that select this upstream, without a port. Case does not matter; there are no wildcards, "
        "and no two upstreams share a name.",
        example='["openai.flowstack.example"]',
    )
    default: bool = setting(
        True,
        flag,
        "Whether this upstream gets the requests whose ``Host`` selects none. Exactly one of several upstreams says "
        "``true``; a single one need not say so.",
    )
    max_connections: int = setting(
        1024,
        whole(1, 2**20, "connections"),
        "The most connections that each worker keeps open to this upstream. Further requests wait for ``queue`` "
        "seconds.",
    )
    idle: float = setting(
        30.0,
        seconds,
        "How long an unused connection is kept. Keep it below the upstream's own limit.",
    )
    connection_max_age: float = setting(
        300.0,
        seconds_or_none,
        "How old a connection may become, so that a change in DNS is followed; each ends at a time of its own in the "
        "last fifth of it, and none within a request. 0: as old as it may.",
    )
    retry_post: bool = setting(
        False,
        flag,
        "Whether to send a POST again when its reused connection failed before the first byte of the response. The "
        "upstream may then do, and bill, the same work twice.",
    )
    api_key_file: Path | None = setting(
        None,
        optional(secret_file),
        "A file with this provider's key, which replaces whatever clients send: they need only their Flowstack key. "
        "Several keys, one on each line, are used in turn. Not readable by others; SIGHUP reads it again. Empty: "
        "clients send their own.",
        example='"/etc/flowstack/openai.secret"',
    )
    api_key_header: str = setting(
        "Authorization",
        key_field,
        "The header for that key: ``Authorization`` (as ``Bearer``), ``api-key`` for Azure, ``x-api-key`` for "
        "Anthropic.",
    )
    inject_usage: bool | None = setting(
        None,
        optional(flag),
        "Whether to ask for usage in streams where the client did not. ``true``: for all keys that do not say "
        "``inject_usage=off``. ``false``: never, for an upstream that answers 400 to ``stream_options``; its streams "
        "are then charged by estimate. Empty: as the key, its limits and ``[ledger]`` say.",
    )
    models: tuple[str, ...] = setting(
        (),
        array(model_pattern, unique=True),
        "The models that select this upstream, or patterns with ``*``, for requests that would go to the default one. "
        "A name goes before patterns, and a longer pattern before a shorter one.",
        example='["claude-*", "my-model"]',
    )
    first_byte: float | None = setting(
        None,
        optional(seconds),
        "How long the first byte of an answer's body may take, from when the request was sent; then 504 "
        "``upstream_timeout``, or another attempt. The answer's head waits for it. It does not hold where the "
        "request's body is not held (``retry_body_bytes``). Empty: as long as it takes.",
        example="20",
    )
    on_client_gone: str = setting(
        "cancel",
        choice("cancel", "drain"),
        "What becomes of an answer whose client left. ``cancel``: its connection is closed at once, which most "
        "providers take for a reason to work no further; its usage is not known then. ``drain``: it is read on, within "
        "``drain_seconds`` and ``drain_bytes``, so that its usage is known and charged.",
    )
    drain_seconds: float = setting(60.0, seconds, "How long such an answer is read on.")
    drain_bytes: int = setting(
        16 * 1024 * 1024, whole(1, 2**40, "bytes"), "How many bytes of it are read after the client left (16 MiB)."
    )
    meter_calls: bool = setting(
        False,
        flag,
        "Whether to hear Realtime calls over WebRTC (``POST /v1/realtime/calls``), whose media pass Flowstack by, on a "
        "WebSocket beside each, and count each response in them. A call that cannot be heard is ended.",
    )
    targets: tuple[Target, ...] = setting((), tables(Target, base_url="the target's base URL"), "")
    retry: Retry | None = setting(None, table(Retry), "")
    health: Health = setting(Factory(Health), table(Health), "")
    fallback: Fallback | None = setting(None, table(Fallback, to="the name of another upstream"), "")
    limits: UpstreamLimits = setting(Factory(UpstreamLimits), table(UpstreamLimits), "")


def has_key(upstream: Upstream) -> bool:
    """Whether the operator's provider key goes there in the client's place."""
    return upstream.api_key_file is not None or any(one.api_key_file is not None for one in upstream.targets)


@frozen(slots=True)
class Server:
    """What Flowstack listens on and serves."""

    listen: tuple[str, ...] = setting(
        ("tcp:8080:interface=127.0.0.1",),
        array(endpoint, min_items=1),
        "Where clients connect: Twisted endpoint strings, at least one. No two listeners may have the same address.",
        examples=(
            ('["tcp:8080"]', "every IPv4 address of the machine"),
            ('["ssl:443:privateKey=/etc/flowstack/tls/key.pem:certKey=/etc/flowstack/tls/cert.pem"]', "TLS"),
            ('["unix:/run/flowstack/http.sock:mode=660"]', "behind another server on this machine"),
            ('["systemd:domain=INET:name=flowstack.socket"]', "a socket that systemd passes on"),
        ),
    )
    keys: Path = setting(
        Path("keys"),
        path,
        "The keystore file: who may use Flowstack. ``flowstack keys add`` writes it; SIGHUP reads it again.",
    )
    watch_keys: bool = setting(
        False,
        flag,
        "Whether a change of that file does what SIGHUP does, within three seconds: for places where nobody can send a "
        "signal, such as a container with a mounted secret. Replace the file by a rename, or switch a link over.",
    )
    state: Path | None = setting(
        None,
        optional(path),
        "The directory of what outlives a process: the ledger, what was spent of budgets, and ``reload.json``, which "
        "says how the last reload ended. A start makes it (mode 0700) if the directory above it exists. Empty: nothing "
        "is kept, and there is no ledger.",
        example='"/var/lib/flowstack"',
    )
    workers: int = setting(
        0,
        workers,
        'How many processes serve. 0 and ``"auto"`` mean one for each core that Flowstack may use. Several have a '
        "parent process, which starts and watches them; one serves alone.",
    )
    admin: str | None = setting(
        None,
        optional(endpoint),
        "Where ``/healthz``, ``/readyz``, ``/metrics`` and the page with its API are served. This listener asks for no "
        "key, and for a token only if ``[admin]`` sets ``token_file``: keep it on 127.0.0.1 or a network of your own. "
        "Empty: there is none.",
        example='"tcp:8081:interface=127.0.0.1"',
    )
    node: str | None = setting(
        None,
        optional(node_name),
        "This machine's name, in rows and reports: letters, digits, ``-``, ``.`` and ``_``. Empty: where ``[shared]`` "
        "names a service, the host's name; otherwise rows tell none.",
        example='"east-1"',
    )
    prefixes: tuple[Prefix, ...] = setting(
        (Prefix(),),
        array(prefix, min_items=1, unique=lambda prefix: prefix.path),
        "The path prefixes that are served, at least one; the longest that matches counts. The path of the upstream's "
        "``base_url`` replaces the prefix, or the ``base_path`` of a table in its place.",
        example='["/v1/", {path = "/openai/v1/", base_path = "/v1/"}]',
    )
    max_request_bytes: int = setting(
        512 * 1024 * 1024,
        whole(1, 2**63 - 1, "bytes"),
        "The largest request body (512 MiB). A larger one is refused with 413 ``request_too_large``.",
    )
    websockets: bool = setting(
        True,
        flag,
        "Whether WebSockets are relayed. If not, a client that asks for one is told so with 426 "
        "``websocket_disabled``, and most take HTTP then.",
    )
    websocket_message_bytes: int = setting(
        16 * 1024 * 1024,
        whole(1024, 2**31 - 1, "bytes"),
        "The largest message of a WebSocket (16 MiB), from either side. A larger one ends both with 1009.",
    )
    websocket_memory_bytes: int = setting(
        256 * 1024 * 1024,
        whole(0, 2**40, "bytes"),
        "How much is held in each process of clients' messages that are longer than 64 KiB, until it is known whether "
        "they may pass (256 MiB). Beyond it, such a message gets an ``error`` event with ``overloaded``.",
    )
    max_head_bytes: int = setting(
        64 * 1024, whole(1024, 2**24, "bytes"), "The largest request line and headers together (64 KiB)."
    )
    retry_body_bytes: int = setting(
        1024 * 1024,
        whole(0, 2**30, "bytes"),
        "The largest request body that is held so that it can be sent again (1 MiB), where an upstream has a "
        "``retry``, ``targets`` or a ``fallback``. A larger one is sent once, as it comes.",
    )
    retry_memory_bytes: int = setting(
        64 * 1024 * 1024,
        whole(0, 2**40, "bytes"),
        "How much of such bodies each worker holds at most (64 MiB). What comes beyond is sent once.",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        array(origin),
        "Which web pages may call Flowstack from a browser: origins exactly as browsers send them (lower case, no "
        'path, no default port), or ``"*"`` for all.',
        example='["https://app.example"]',
    )
    forwarded: str = setting(
        "remove",
        choice("remove", "pass", "append"),
        "What becomes of the headers that say who the client is (``X-Forwarded-*``, ``Forwarded``, ``Via``, ``CF-*``, "
        "``X-Real-IP`` and the like). ``append`` passes them and appends the client's address to ``X-Forwarded-For``.",
    )
    remove_headers: tuple[str, ...] = setting(
        (),
        array(removed_field, unique=True),
        "More request headers that do not reach an upstream. ``_`` in a name counts as ``-``. Headers that frame a "
        "request, say what its body is, or hold the provider's key cannot be named.",
        example='["X-Team", "X-Internal-*"]',
    )
    server_timing: bool = setting(
        False, flag, "Whether responses say in ``Server-Timing`` how long Flowstack and the upstream took."
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        array(network, unique=True),
        "Which proxies in front of Flowstack are believed about the client's address, for ``allow_ip`` and the ledger: "
        "networks or addresses. What they say in ``X-Forwarded-For``, or in the PROXY protocol, counts; what others "
        "say does not.",
        example='["10.0.0.0/8", "2001:db8::/32"]',
    )
    proxy_protocol: bool = setting(
        False,
        flag,
        "Whether each connection begins with a PROXY protocol header, version 1 or 2, as HAProxy and cloud load "
        "balancers send it. A connection that does not come from ``trusted_proxies``, or by a UNIX socket, is closed.",
    )
    docs_url: str | None = setting(
        None,
        optional(base_url),
        "Where this manual is published, as ``make docs`` builds it. The messages of Flowstack's own errors then end "
        "with a link to the section of their code. Empty: no link.",
        example='"https://docs.example.com/flowstack"',
    )


@frozen(slots=True)
class Log:
    """The request log: one line for each request with a valid key."""

    requests: str = setting(
        "-",
        requests_log,
        "Where the lines go: ``-`` for standard output, ``none``, or a file, which SIGHUP reopens.",
        example='"/var/log/flowstack/requests.jsonl"',
    )
    format: str = setting("json", choice("json", "text"), "How a line is written.")


@frozen(slots=True)
class Ledger:
    """The ledger, in the ``state`` directory: one row for each request with a valid key. Without ``state`` there is
    none."""

    on_ledger_failure: str = setting(
        "serve",
        choice("serve", "refuse"),
        "What to do while rows cannot be written (a full disk): ``serve`` on, with the rows in a queue, or ``refuse`` "
        "new requests with 503.",
    )
    queue_bytes: int = setting(
        8 * 1024 * 1024,
        whole(0, 2**40, "bytes"),
        "How much may wait in each worker (8 MiB). Rows beyond it are lost, which is counted and logged.",
    )
    fsync: str = setting(
        "second",
        choice("never", "second", "row"),
        "When rows are forced to the disk. No row is lost when Flowstack crashes; when the machine does, ``never`` "
        "loses what the kernel had not written, ``second`` at most a second, and ``row`` nothing, at the price of "
        "waiting for the disk with each request.",
    )
    max_file_bytes: int = setting(
        256 * 1024 * 1024,
        whole(4096, 2**40, "bytes"),
        "The size (256 MiB) from which a day's journal continues in another file.",
    )
    retention_days: int = setting(0, whole(0, 36500, "days"), "The age at which journal files are removed. 0: never.")
    index: bool = setting(
        True, flag, "Whether the service keeps the SQLite index up to date, which ``flowstack usage`` reads."
    )
    inject_usage: bool = setting(
        False,
        flag,
        "Whether to ask for usage in streams where the client did not, for keys that do not say ``inject_usage`` "
        "themselves. The extra chunk is taken out of the response again. Keys with ``tpm`` or ``budget`` have it on "
        "unless they say otherwise.",
    )
    refusals_per_minute: int = setting(
        60,
        whole(0, 10**6, "rows"),
        "How many of each key's refused requests have rows of their own in a minute, in each worker, in the journal "
        "and in the request log. Further ones share one row with their number.",
    )


@frozen(slots=True)
class Admin:
    """The admin listener."""

    token_file: Path | None = setting(
        None,
        optional(secret_file),
        "A file with the bearer token that ``/metrics``, the page and its API ask for. Not readable by others; SIGHUP "
        "reads it again. Empty: ``/metrics`` asks for none, and what was used is shown to this machine alone.",
        example='"/etc/flowstack/admin.token"',
    )
    hosts: tuple[str, ...] = setting(
        (),
        array(host, unique=True),
        "The ``Host`` names that the admin listener answers to, without a port, in addition to localhost and every IP "
        "address. Other names get 421: a web page could otherwise have a browser ask under the page's own name.",
        example='["flowstack-1.internal"]',
    )
    manage_token_file: Path | None = setting(
        None,
        optional(secret_file),
        "A file with another such token, which lets its holder change keys and groups too, where ``manage_keys`` is "
        "on. SIGHUP reads it again. Empty: nobody may.",
        example='"/etc/flowstack/manage.token"',
    )
    manage_keys: bool = setting(
        False,
        flag,
        "Whether keys and groups can be made, changed and removed by the page and its API. It needs "
        "``manage_token_file``, and a state directory, in which each change is written down.",
    )


@frozen(slots=True)
class Price:
    """Prices of your own, in US dollars for a million tokens: a table for each model, or pattern of models in which
    ``*`` stands for any run of characters. They replace all that the built-in table says of these models. A name
    without ``*`` goes before patterns, and a longer pattern before a shorter one. There are no defaults: a rate that
    is left out is not known, and a request that used such tokens has no cost."""

    model: str
    input: float | None = setting(
        None, dollars, "Input tokens. Required, unless ``audio_minute`` is there.", example="2.5"
    )
    cached_input: float | None = setting(
        None, dollars, "Input tokens that the provider had in its cache.", example="1.25"
    )
    output: float | None = setting(None, dollars, "Output tokens, reasoning included.", example="10")
    audio_input: float | None = setting(None, dollars, "Spoken input tokens.", example="40")
    cached_audio_input: float | None = setting(
        None, dollars, "Spoken input tokens that the provider had in its cache.", example="2.5"
    )
    audio_output: float | None = setting(None, dollars, "Spoken output tokens.", example="80")
    image_input: float | None = setting(
        None, dollars, "Input tokens of images. Left out: as much as ``input``.", example="5"
    )
    cached_image_input: float | None = setting(
        None, dollars, "Input tokens of images that the provider had in its cache.", example="1.25"
    )
    image_output: float | None = setting(
        None, dollars, "Output tokens of images. Left out: as much as ``output``.", example="40"
    )
    cache_write: float | None = setting(
        None,
        dollars,
        "Input tokens that the provider keeps for later requests. Left out: as much as ``input``.",
        example="3.125",
    )
    cache_write_hour: float | None = setting(
        None, dollars, "Input tokens that the provider keeps for an hour.", example="5"
    )
    audio_minute: float | None = setting(
        None, dollars, "One minute of sound, where its length is billed and not its tokens.", example="0.006"
    )
    web_search_call: float | None = setting(
        None, dollars, "One web search. Left out: as the built-in table says.", example="0.01"
    )
    file_search_call: float | None = setting(
        None, dollars, "One file search. Left out: as the built-in table says.", example="0.0025"
    )
    container: float | None = setting(
        None,
        dollars,
        "One container of the smallest size, in which code ran. Left out: as the built-in table says.",
        example="0.03",
    )


@frozen(slots=True)
class Estimates:
    """What is reserved of a limit before the upstream's own figures are known."""

    output_tokens: int | None = setting(
        None,
        optional(whole(1, 10**9, "tokens")),
        "Output tokens of a request that declares no maximum. Empty: for a budget the model's own maximum, or 4096 "
        "where that is not known; for ``tpm`` 4096. With a number budgets are soft: a request may use more than was "
        "reserved for it.",
        example="4096",
    )
    price: float | None = setting(
        None,
        optional(dollars),
        "The price of a million tokens, input and output, of models without a price. Empty: keys with a budget may not "
        "use these models. It is an estimate for limits alone: the cost in the ledger stays unknown.",
        example="20",
    )


@frozen(slots=True)
class Reconcile:
    """Work whose usage is known later (background responses, batches) is charged to the key that began it when any
    client sees it finished. With this Flowstack asks by itself too, so that work nobody looks at is charged as well."""

    enabled: bool = setting(
        False,
        flag,
        "Whether to ask, at each upstream that has an ``api_key_file``, with that key. It needs one such upstream and "
        "a state directory.",
    )
    every: float = setting(
        60.0,
        seconds,
        "The time between two rounds of asking. What is old is asked about more seldom: an hour apart at most while it "
        "is open, a day apart at most where the key cannot see it.",
    )


@frozen(slots=True)
class Shared:
    """What several machines share. Empty: this machine counts and keeps books alone, and needs no service beside it."""

    redis: str | None = setting(
        None,
        optional(redis_url),
        "The Redis (7 or newer) or Valkey in which all machines count the limits of keys and groups together: "
        "``redis://``, or ``rediss://`` for TLS, perhaps a user's name, a host, a port and the number of a database. "
        "With ``redis_sentinels`` the host is the name by which these know the master. The password stands in "
        "``redis_password_file``. Keys without limits never ask it.",
        examples=(
            ('"redis://127.0.0.1:6379"', ""),
            ('"rediss://flowstack@redis.internal:6380/2"', "TLS, the user flowstack, database 2"),
        ),
    )
    redis_password_file: Path | None = setting(
        None,
        optional(secret_file),
        "The file that has the password of Redis and nothing else. SIGHUP reads it again.",
        example='"/etc/flowstack/redis.secret"',
    )
    redis_ca_file: Path | None = setting(
        None,
        optional(authorities),
        "The authorities that are trusted for the certificate of Redis. Empty: those of the system.",
        example='"/etc/flowstack/tls/authority.pem"',
    )
    redis_sentinels: tuple[str, ...] = setting(
        (),
        array(host_and_port, unique=True),
        "The Sentinels that know which Redis is the master.",
        example='["10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26379"]',
    )
    on_failure: str = setting(
        "refuse",
        choice("refuse", "local"),
        "What becomes of requests that a limit holds for while Redis does not answer. ``refuse``: 503 "
        "``limits_unavailable``. ``local``: this machine holds each key to its own ``share`` of each limit.",
    )
    share: float = setting(
        0.5, share, "Which part of each limit this machine holds a key to by itself, with ``local``."
    )
    postgres: str | None = setting(
        None,
        optional(postgres_url),
        "The PostgreSQL (14 or newer) to which this machine sends its ledger's rows, and from which reports of all "
        "machines are read: a user, a host, perhaps a port, and a database. The password stands in "
        "``postgres_password_file``. Needs ``flowstack[postgres]``, and ``state`` in ``[server]``.",
        examples=(
            ('"postgresql://flowstack@db.internal/flowstack"', ""),
            ('"postgresql://flowstack@127.0.0.1:5433/flowstack"', "with postgres_tls = false"),
        ),
    )
    postgres_password_file: Path | None = setting(
        None,
        optional(secret_file),
        "The file that has the password of PostgreSQL and nothing else. Each new connection reads it again.",
        example='"/etc/flowstack/postgres.secret"',
    )
    postgres_tls: bool = setting(
        True,
        flag,
        "Whether the connection is TLS, with a certificate that is verified and names the host. ``false`` is for this "
        "machine and for networks that nobody else reads.",
    )
    postgres_ca_file: Path | None = setting(
        None,
        optional(authorities),
        "The authorities that are trusted for the certificate of PostgreSQL. Empty: those of the system.",
        example='"/etc/flowstack/tls/authority.pem"',
    )
    postgres_days: int | None = setting(
        None,
        optional(whole(1, 36500, "days")),
        "How long PostgreSQL keeps whole rows, at least; each month goes as one. Figures for reports stay. Have the "
        "same on all machines. Empty: for ever.",
        example="400",
    )


@frozen(slots=True)
class Settings:
    """All of it."""

    server: Server = Factory(Server)
    timeouts: Timeouts = Factory(Timeouts)
    upstreams: tuple[Upstream, ...] = (Upstream(),)
    log: Log = Factory(Log)
    ledger: Ledger = Factory(Ledger)
    admin: Admin = Factory(Admin)
    limits: Limits = Factory(Limits)
    estimates: Estimates = Factory(Estimates)
    prices: tuple[Price, ...] = ()
    reconcile: Reconcile = Factory(Reconcile)
    shared: Shared = Factory(Shared)


TABLES: dict[str, type] = {
    "server": Server,
    "timeouts": Timeouts,
    "upstreams": Upstream,
    "log": Log,
    "ledger": Ledger,
    "admin": Admin,
    "limits": Limits,
    "estimates": Estimates,
    "reconcile": Reconcile,
    "shared": Shared,
    "prices": Price,
}
"""``upstreams`` and ``prices`` hold tables, one for each upstream and pattern; the others are tables themselves."""

OF_UPSTREAMS: dict[str, type] = {
    "targets.TARGET": Target,
    "retry": Retry,
    "health": Health,
    "fallback": Fallback,
    "limits": UpstreamLimits,
}
"""The tables that an upstream's own holds."""

_INNER = {"upstreams": "NAME", "prices": "'MODEL'"}


def written(table: str) -> str:
    """A table's heading as a file has it."""
    return f"[{table}.{_INNER[table]}]" if table in _INNER else f"[{table}]"
