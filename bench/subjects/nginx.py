"""nginx as a front of the provider: the measure of all things here."""

from __future__ import annotations

import os

from bench import provision
from bench.subjects.base import Command, Defaults, Setup

CONFIGURATION = """\
daemon off;
{user}
worker_processes {workers};
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    # Flowstack writes a line for each request; so does nginx, buffered likewise.
    access_log {directory}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_header_buffer_size 4k;
    client_max_body_size 0;
    map_hash_bucket_size 256;
    map $http_flowstack_auth $allowed {{
        default 0;
        "Bearer {key}" 1;
    }}
    map $http_upgrade $connection_upgrade {{
        default Upgrade;
        "" "";
    }}
    upstream provider {{
        server 127.0.0.1:{upstream_port};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096{reuseport};
        if ($allowed = 0) {{ return 401; }}
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
        proxy_set_header Flowstack-Auth "";
        proxy_read_timeout 600s;
        proxy_max_temp_file_size 0;
        proxy_request_buffering off;
        {tls}
        location /v1/ {{
            proxy_buffering off;
            proxy_pass {scheme}://provider;
        }}
        location /v1/files {{
            proxy_buffer_size 64k;
            proxy_buffers 16 64k;
            proxy_busy_buffers_size 128k;
            client_body_buffer_size 256k;
            proxy_pass {scheme}://provider;
        }}
    }}
}}
"""

TLS = """\
proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {authority};
        proxy_ssl_server_name on;
        proxy_ssl_name localhost;
        proxy_ssl_session_reuse on;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;"""


class Nginx(Defaults):
    """Debian's nginx with a pool of upstream connections, a check of the Flowstack key, and nothing buffered."""

    name = "nginx"

    def install(self) -> None:
        """The Debian package; its service is not used."""
        provision.debian("nginx", "nginx")

    def version(self) -> str:
        """As ``nginx -v`` says."""
        return provision.first_line([provision.debian("nginx", "nginx"), "-v"]).replace("nginx version: ", "")

    def command(self, setup: Setup) -> Command:
        """One process a worker and a master."""
        text = CONFIGURATION.format(
            user="user root;" if os.geteuid() == 0 else "",
            workers=setup.workers,
            files=20_000,
            connections=16_384,
            directory=setup.directory,
            key=setup.key,
            upstream_port=setup.upstream_port,
            port=setup.port,
            reuseport=" reuseport" if setup.workers > 1 else "",
            tls=TLS.format(authority=setup.authority) if setup.authority else "",
            scheme="https" if setup.authority else "http",
        )
        path = setup.write("nginx.conf", text)
        return Command((provision.debian("nginx", "nginx"), "-p", setup.directory, "-c", path))
