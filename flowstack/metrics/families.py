"""Every metric that Flowstack gives: its name, type, labels and bounds. ``docs/reference/metrics.rst`` explains them.

What is counted together, under the same labels, is a family; its series lie side by side in a worker's memory. Names
that begin with ``gen_ai_`` are OpenTelemetry's (semantic conventions for generative AI metrics), put as Prometheus
writes them; so are the bounds of their buckets.
"""

from __future__ import annotations

from typing import Literal
from zlib import crc32

from attrs import field, frozen

OTHER = "other"
"""Takes the place of labels beyond the bound."""

MAX_MODELS = 64
"""Pairs of a model asked for and a model that answered that a worker tells apart."""

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
          67108864.0)  # fmt: skip
OVERHEADS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@frozen(slots=True)
class Series:
    """One number under each set of labels, or a histogram's several.

    :ivar name: as Prometheus shows it; a counter's ends with ``_total``.
    :ivar fixed: further labels with their values.
    :ivar bounds: of a histogram's buckets, in the unit that is shown.
    :ivar scale: how many of what is recorded make one of what is shown.
    :ivar merge: how several workers' gauges become one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    fixed: tuple[tuple[str, str], ...] = ()
    bounds: tuple[float, ...] = ()
    scale: float = 1.0
    merge: Literal["sum", "max"] = "sum"

    @property
    def cells(self) -> int:
        """A histogram has a cell for each bucket, one for what is above all bounds, and one for the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    @property
    def recorded_bounds(self) -> tuple[float, ...]:
        """The bounds in the unit in which is recorded."""
        return tuple(round(bound * self.scale, 6) for bound in self.bounds)


@frozen(slots=True)
class Family:
    """Series that are counted together.

    :ivar limit: sets of labels that a worker tells apart; what comes beyond is counted under :data:`OTHER`.
    """

    name: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    limit: int = 64
    offsets: tuple[int, ...] = field(init=False)

    @offsets.default
    def _offsets(self) -> tuple[int, ...]:
        return tuple(sum(series.cells for series in self.series[:index]) for index in range(len(self.series)))

    @property
    def size(self) -> int:
        """How many cells each set of labels has."""
        return sum(series.cells for series in self.series)


def _alone(
    name: str,
    kind: Literal["counter", "gauge"],
    text: str,
    *labels: str,
    limit: int = 64,
    merge: Literal["sum", "max"] = "sum",
) -> Family:
    return Family(name, labels, (Series(name, kind, text, merge=merge),), limit)


_MODEL_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")
_TOKENS_TEXT = "Input and output tokens of a request, as reported by the upstream."

USAGE = Family(
    "usage",
    _MODEL_LABELS,
    (
        Series("gen_ai_client_token_usage", "histogram", _TOKENS_TEXT, (("gen_ai_token_type", "input"),), TOKENS),
        Series("gen_ai_client_token_usage", "histogram", _TOKENS_TEXT, (("gen_ai_token_type", "output"),), TOKENS),
        Series(
            "gen_ai_server_time_to_first_token_seconds",
            "histogram",
            "Time from a request's arrival to the first byte of its streamed response.",
            bounds=FIRST_TOKENS,
            scale=1000,
        ),
        Series("flowstack_cached_tokens_total", "counter", "Input tokens read from the upstream's cache."),
        Series("flowstack_reasoning_tokens_total", "counter", "Output tokens used for reasoning."),
        Series("flowstack_cost_usd_total", "counter", "Cost in US dollars, where the price is known."),
        Series("flowstack_requests_without_usage_total", "counter", "Successful responses to POST without usage."),
        Series("flowstack_requests_without_price_total", "counter", "Responses with usage whose price is unknown."),
    ),
    limit=4 * MAX_MODELS,
)

DURATION = Family(
    "duration",
    (*_MODEL_LABELS, "error_type"),
    (
        Series(
            "gen_ai_server_request_duration_seconds",
            "histogram",
            "Time from a request's arrival to its end.",
            bounds=DURATIONS,
            scale=1000,
        ),
    ),
    limit=8 * MAX_MODELS,
)

REQUESTS = Family(
    "requests",
    ("upstream", "operation", "status", "end"),
    (Series("flowstack_requests_total", "counter", "Requests with a valid key, counted at their end."),),
    limit=512,
)

UPSTREAM = Family(
    "upstream",
    ("upstream",),
    (
        Series(
            "flowstack_overhead_seconds",
            "histogram",
            "Time that Flowstack itself added to a request.",
            bounds=OVERHEADS,
            scale=1000,
        ),
        Series("flowstack_request_body_bytes_total", "counter", "Bytes of request bodies."),
        Series("flowstack_response_body_bytes_total", "counter", "Bytes of response bodies."),
    ),
)

REFUSALS = _alone(
    "flowstack_refusals_total", "counter", "Requests with a valid key that Flowstack itself refused or failed.", "code"
)
UNAUTHENTICATED = _alone(
    "flowstack_unauthenticated_requests_total", "counter", "Requests without a valid Flowstack key.", "code"
)

IN_FLIGHT = _alone("flowstack_requests_in_flight", "gauge", "Requests in flight now.")
STREAMS = _alone("flowstack_streams_open", "gauge", "Event streams that pass to clients now.")
SOCKETS = _alone("flowstack_websockets_open", "gauge", "WebSockets open now.")
SOCKET_MESSAGES = _alone(
    "flowstack_websocket_messages_total", "counter", "Messages of WebSockets, by the side that sent them.", "sender"
)
SOCKET_BYTES = _alone(
    "flowstack_websocket_payload_bytes_total",
    "counter",
    "Bytes of the payloads of these messages, by the side that sent them.",
    "sender",
)
SOCKET_ENDS = _alone("flowstack_websockets_ended_total", "counter", "WebSockets that have ended, by how.", "end")
POOL = _alone(
    "flowstack_pool_connections",
    "gauge",
    "Upstream connections (open counts all, idle those not in use) and requests waiting for one.",
    "upstream",
    "state",
    limit=256,
)
KEYSTORE_GENERATION = _alone(
    "flowstack_keystore_generation", "gauge", "Number of successful keystore loads.", merge="max"
)
KEYSTORE_KEYS = _alone("flowstack_keystore_keys", "gauge", "Keys in force.", merge="max")
KEYSTORE_HASH = _alone(
    "flowstack_keystore_hash",
    "gauge",
    "The first 48 bits of the SHA-256 of the keystore file in force: alike on machines that have the same file.",
    merge="max",
)
KEYSTORE_AGE = _alone(
    "flowstack_keystore_age_seconds",
    "gauge",
    "Seconds since the keys in force were loaded; the oldest of all workers.",
    merge="max",
)
KEYSTORE_RELOADS = _alone("flowstack_keystore_reloads_total", "counter", "Keystore loads, by outcome.", "outcome")
LEDGER_LAG = _alone("flowstack_ledger_lag_bytes", "gauge", "Journal bytes that the index does not hold yet.")
UNSHIPPED = _alone("flowstack_ledger_unshipped_bytes", "gauge", "Journal bytes that PostgreSQL does not hold yet.")
SHIPPED = _alone("flowstack_ledger_shipped_rows_total", "counter", "Rows that were sent and PostgreSQL did not have.")
SHIPPED_AT = _alone(
    "flowstack_ledger_shipped_timestamp_seconds", "gauge", "When PostgreSQL last took what it was sent, in Unix time."
)
SHIP_FAILURES = _alone("flowstack_ledger_ship_failures_total", "counter", "Failed tries to send rows to PostgreSQL.")
OVERDUE = _alone(
    "flowstack_ledger_overdue_files",
    "gauge",
    "Journal files older than retention_days that are kept, as PostgreSQL does not hold all their rows.",
)
LEDGER_LOST = _alone("flowstack_ledger_lost_rows_total", "counter", "Ledger rows lost as they could not be written.")
LEDGER_QUEUED = _alone("flowstack_ledger_queued_bytes", "gauge", "Bytes of ledger rows waiting to be written.")
WORKERS = _alone("flowstack_workers", "gauge", "Worker processes.", "state")
RESTARTS = _alone("flowstack_worker_restarts_total", "counter", "Workers that exited unexpectedly and were restarted.")

EJECTED = _alone(
    "flowstack_target_ejected", "gauge", "Whether a target counts as down (1) or up (0).", "target", merge="max"
)
ATTEMPTS = _alone("flowstack_attempts_total", "counter", "Attempts made at a target.", "target")
FAILED_ATTEMPTS = _alone(
    "flowstack_failed_attempts_total",
    "counter",
    "Attempts after which another one was made, by fault: connect, reset, timeout or the status.",
    "target",
    "fault",
    limit=256,
)
EJECTIONS = _alone("flowstack_target_ejections_total", "counter", "How often a target went down.", "target")
RESCUED = _alone(
    "flowstack_rescued_requests_total",
    "counter",
    "Requests that were answered well after an attempt at this upstream had failed.",
    "upstream",
)
RETRY_BYTES = _alone("flowstack_retry_body_bytes", "gauge", "Bytes of request bodies held for another attempt.")
NOT_HELD = _alone(
    "flowstack_retry_bodies_not_held_total",
    "counter",
    "Request bodies that were too large, or for which there was no room, so that they were sent once.",
)
REDIS_UP = _alone(
    "flowstack_redis_up", "gauge", "Processes whose Redis answers, where limits are counted for several machines."
)
REDIS_FAILURES = _alone("flowstack_redis_failures_total", "counter", "How often Redis stopped answering a process.")
LIMITS_WITHOUT_REDIS = _alone(
    "flowstack_limits_without_redis_total",
    "counter",
    "Requests that were refused, or held to this machine's share of their limits, because Redis did not answer.",
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        USAGE, DURATION, REQUESTS, UPSTREAM, REFUSALS, UNAUTHENTICATED, IN_FLIGHT, POOL, KEYSTORE_GENERATION,
        KEYSTORE_KEYS, KEYSTORE_HASH, KEYSTORE_AGE, KEYSTORE_RELOADS, LEDGER_LAG, LEDGER_LOST, LEDGER_QUEUED, WORKERS,
        RESTARTS, EJECTED, ATTEMPTS, FAILED_ATTEMPTS, EJECTIONS, RESCUED, RETRY_BYTES, NOT_HELD,
        REDIS_UP, REDIS_FAILURES, LIMITS_WITHOUT_REDIS, UNSHIPPED, SHIPPED, SHIPPED_AT, SHIP_FAILURES, OVERDUE,
        STREAMS, SOCKETS, SOCKET_MESSAGES, SOCKET_BYTES, SOCKET_ENDS,
    )
}  # fmt: skip

LAYOUT = crc32(repr([(family.name, family.labels, family.series) for family in FAMILIES.values()]).encode())
"""Stands for what the cells mean, so that processes of two releases do not mistake each other's."""
