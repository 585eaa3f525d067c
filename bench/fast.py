"""A fast upstream: nginx that gives the one answer, so that a proxy's core is the bottleneck and not the load's."""

from __future__ import annotations

import http.client
import os
import time
from contextlib import closing
from pathlib import Path

from bench import provision, traffic
from bench.procs import BenchError

CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
pid {directory}/fast.pid;
error_log {directory}/fast.error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/fast-body;
    proxy_temp_path {directory}/fast-proxy;
    fastcgi_temp_path {directory}/fast-fastcgi;
    uwsgi_temp_path {directory}/fast-uwsgi;
    scgi_temp_path {directory}/fast-scgi;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        {fields}
        location / {{ return 200 '{body}'; }}
        location = /bench/requests {{ stub_status; }}
    }}
}}
"""


def command(directory: Path, port: int) -> tuple[str | Path, ...]:
    """Write the configuration; say how to start it. Date and Server are nginx's own, all else is the provider's."""
    fields = "\n        ".join(
        f'add_header {name} "{value}";'
        for name, value in (line.split(": ", 1) for line in traffic.PROVIDER_HEADERS.strip().split("\r\n"))
        if name not in ("Date", "Server")
    )
    path = directory / "fast.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    body = traffic.ANSWER_BODY.decode()
    path.write_text(CONFIGURATION.format(directory=directory, port=port, fields=fields, body=body, user=user))
    return provision.debian("nginx", "nginx"), "-p", directory, "-c", path


def requests(port: int) -> int:
    """How many requests it has had so far, this one included."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/bench/requests")
        return int(connection.getresponse().read().split(b"requests\n")[1].split()[2])


def await_ready(port: int) -> None:
    """Return when it answers.

    :raises BenchError: it does not.
    """
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            requests(port)
            return
        except OSError:
            time.sleep(0.02)
    raise BenchError("the fast upstream did not start")
