"""Every table and key of the configuration, with what each takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowstack.config.settings import (
    Admin,
    Estimates,
    Ledger,
    Limits,
    Log,
    Price,
    Reconcile,
    Server,
    Timeouts,
    Upstream,
    UpstreamLimits,
)
from flowstack.config.values import (
    Reader,
    array,
    authorities_from,
    base_url,
    budget,
    choice,
    dollars,
    endpoint,
    flag,
    host,
    key_field,
    network,
    one_number,
    optional,
    origin,
    path_from,
    prefix,
    removed_field,
    requests_log_from,
    seconds,
    seconds_or_none,
    secret_file_from,
    table,
    whole,
    workers,
)

TABLES = {
    "server": Server,
    "timeouts": Timeouts,
    "upstreams": Upstream,
    "log": Log,
    "ledger": Ledger,
    "admin": Admin,
    "limits": Limits,
    "estimates": Estimates,
    "reconcile": Reconcile,
    "prices": Price,
}
"""``upstreams`` and ``prices`` hold tables, one for each upstream and pattern; the others are tables themselves."""

_INNER = {"upstreams": "NAME", "prices": "'MODEL'"}


def written(table: str) -> str:
    """A table's heading as a file has it."""
    return f"[{table}.{_INNER[table]}]" if table in _INNER else f"[{table}]"


def readers_from(directory: Path) -> Mapping[str, Mapping[str, Reader]]:
    """Every key of every table, with what it takes; relative paths are taken from *directory*."""
    path = path_from(directory)
    secret_file = secret_file_from(directory)
    limits = {
        "rpm": optional(whole(1, 10**15 - 1, "requests a minute")),
        "tpm": optional(whole(1, 10**15 - 1, "tokens a minute")),
        "max_parallel": optional(whole(1, 10**6, "requests at once")),
        "budget": optional(budget),
    }
    return {
        "server": {
            "listen": array(endpoint, least=1),
            "keys": path,
            "state": optional(path),
            "workers": workers,
            "admin": optional(endpoint),
            "prefixes": array(prefix, least=1, once=lambda prefix: prefix.path),
            "max_request_bytes": whole(1, 2**63 - 1, "bytes"),
            "max_head_bytes": whole(1024, 2**24, "bytes"),
            "cors_origins": array(origin),
            "forwarded": choice("remove", "pass", "append"),
            "remove_headers": array(removed_field, once=lambda name: name),
            "server_timing": flag,
            "trusted_proxies": array(network, once=lambda network: network),
            "proxy_protocol": flag,
            "docs_url": optional(base_url),
        },
        "timeouts": {
            "connect": seconds,
            "response_head": seconds,
            "stream_idle": seconds,
            "request_head": seconds,
            "request_idle": seconds,
            "client_idle": seconds,
            "keepalive": seconds,
            "queue": seconds,
            "pre_drain": seconds_or_none,
            "drain": seconds,
            "tcp_keepalive": whole(0, 32767, "seconds"),  # the most that Linux takes
        },
        "upstreams": {
            "base_url": base_url,
            "hosts": array(host, once=lambda host: host),
            "default": flag,
            "ca_file": optional(authorities_from(directory)),
            "max_connections": whole(1, 2**20, "connections"),
            "idle": seconds,
            "retry_post": flag,
            "api_key_file": optional(secret_file),
            "api_key_header": key_field,
            "inject_usage": optional(flag),
            "limits": table(limits, UpstreamLimits),
        },
        "log": {"requests": requests_log_from(directory), "format": choice("json", "text")},
        "ledger": {
            "on_ledger_failure": choice("serve", "refuse"),
            "queue_bytes": whole(0, 2**40, "bytes"),
            "fsync": choice("never", "second", "row"),
            "max_file_bytes": whole(4096, 2**40, "bytes"),
            "retention_days": whole(0, 36500, "days"),
            "index": flag,
            "inject_usage": flag,
            "refusals_per_minute": whole(0, 10**6, "rows"),
        },
        "admin": {"token_file": optional(secret_file), "hosts": array(host, once=lambda host: host)},
        "limits": limits | {"budget_status": one_number(429, 402, 403, 422)},
        "estimates": {"output_tokens": optional(whole(1, 10**9, "tokens")), "price": optional(dollars)},
        "reconcile": {"enabled": flag, "every": seconds},
        "prices": {
            "input": dollars,
            "cached_input": dollars,
            "output": dollars,
            "audio_input": dollars,
            "cached_audio_input": dollars,
            "audio_output": dollars,
            "image_input": dollars,
            "cached_image_input": dollars,
            "image_output": dollars,
            "cache_write": dollars,
            "cache_write_hour": dollars,
            "audio_minute": dollars,
            "web_search_call": dollars,
            "file_search_call": dollars,
            "container": dollars,
        },
    }
