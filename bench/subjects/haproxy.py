"""HAProxy, from Debian."""

from __future__ import annotations

from bench import provision
from bench.subjects.base import Command, Defaults, Setup

CONFIGURATION = """\
global
    nbthread {workers}
    maxconn 9000
    log stdout format raw local0
    ssl-default-server-options ssl-min-ver TLSv1.2
defaults
    mode http
    option httplog
    log global
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 75s
    option http-no-delay
    option abortonclose
frontend bench
    bind 127.0.0.1:{port} backlog 4096
    acl allowed req.hdr(flowstack-auth) -m str "Bearer {key}"
    http-request deny deny_status 401 unless allowed
    http-request del-header flowstack-auth
    default_backend provider
backend provider
    http-reuse always
    server provider 127.0.0.1:{upstream_port} maxconn 9000 pool-max-conn 9000 {tls}
"""


class Haproxy(Defaults):
    """Debian's HAProxy with one thread a worker."""

    name = "haproxy"

    def install(self) -> None:
        """The Debian package; its service is not used."""
        provision.debian("haproxy", "haproxy")

    def version(self) -> str:
        """As ``haproxy -v`` says."""
        return provision.first_line([provision.debian("haproxy", "haproxy"), "-v"])

    def command(self, setup: Setup) -> Command:
        """In the foreground."""
        tls = f"ssl verify required ca-file {setup.authority} sni str(localhost)" if setup.authority else ""
        text = CONFIGURATION.format(
            workers=setup.workers,
            port=setup.port,
            key=setup.key,
            upstream_port=setup.upstream_port,
            tls=tls,
        )
        return Command((provision.debian("haproxy", "haproxy"), "-db", "-f", setup.write("haproxy.cfg", text)))
