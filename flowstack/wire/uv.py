"""Transports for whichever reactor runs: uvloop's where it can be, Twisted's own elsewhere. Others ask here.

- :mod:`flowstack.wire.uv_reactor`: the reactor on uvloop, and the object that stands for it in endpoints.
- :mod:`flowstack.wire.uv_transport`, :mod:`flowstack.wire.uv_tls`: the connections; :mod:`flowstack.wire.uv_socket`,
  :mod:`flowstack.wire.uv_pull` and :mod:`flowstack.wire.uv_outbox` are parts of them.
- :mod:`flowstack.wire.server_endpoints`: what listens.
- :mod:`flowstack.wire.client_endpoints`: what connects to an upstream.
- :mod:`flowstack.wire.tls`: certificates, contexts, the words for their faults.
"""

from flowstack.wire.client_endpoints import client_endpoint
from flowstack.wire.server_endpoints import reload_certificates, server_endpoint
from flowstack.wire.tls import CertificateFault, TlsError
from flowstack.wire.uv_reactor import before_writes, install, uv_loop, uv_reactor

__all__ = [
    "CertificateFault",
    "TlsError",
    "before_writes",
    "client_endpoint",
    "install",
    "reload_certificates",
    "server_endpoint",
    "uv_loop",
    "uv_reactor",
]
