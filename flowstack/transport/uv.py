"""Transports for whichever reactor runs: uvloop's where it can be, Twisted's own elsewhere. Others ask here.

- :mod:`flowstack.transport.reactor`: the reactor on uvloop, and the object that stands for it in endpoints.
- :mod:`flowstack.transport.connection`, :mod:`flowstack.transport.tls_connection`: the connections;
  :mod:`flowstack.transport.socket`, :mod:`flowstack.transport.pull`, :mod:`flowstack.transport.outbox` are their parts.
- :mod:`flowstack.transport.server_endpoints`: what listens.
- :mod:`flowstack.transport.client_endpoints`: what connects to an upstream.
- :mod:`flowstack.transport.ways`: a forward proxy's tunnel, and what a way takes of files.
- :mod:`flowstack.transport.tls`: certificates, contexts, the words for their faults.
"""

from flowstack.transport.client_endpoints import client_endpoint
from flowstack.transport.reactor import before_writes, install, uv_loop, uv_reactor
from flowstack.transport.server_endpoints import reload_certificates, server_endpoint
from flowstack.transport.tls import CertificateFault, ConnectFailed, TlsError
from flowstack.transport.ways import reload_ways

__all__ = [
    "CertificateFault",
    "ConnectFailed",
    "TlsError",
    "before_writes",
    "client_endpoint",
    "install",
    "reload_certificates",
    "reload_ways",
    "server_endpoint",
    "uv_loop",
    "uv_reactor",
]
