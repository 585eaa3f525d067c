"""Transports for whichever reactor runs: uvloop's where it can be, Twisted's own elsewhere. Others ask here.

- :mod:`flowstack.wire.uv_reactor`: the reactor on uvloop, and the object that stands for it in endpoints.
- :mod:`flowstack.wire.uv_transport`, :mod:`flowstack.wire.uv_tls`: the connections.
- :mod:`flowstack.wire.endpoints`: what listens, and what connects to an upstream.
- :mod:`flowstack.wire.tls`: certificates, contexts, the words for their faults.
"""

from flowstack.wire.endpoints import client_endpoint, reload_certificates, server_endpoint
from flowstack.wire.tls import CertificateFault, TlsError
from flowstack.wire.uv_reactor import install, uv_loop, uv_reactor

__all__ = [
    "CertificateFault",
    "TlsError",
    "client_endpoint",
    "install",
    "reload_certificates",
    "server_endpoint",
    "uv_loop",
    "uv_reactor",
]
