"""The stand-in upstream. It generates no language, keeps nothing, and is not for production.

``server`` puts strict HTTP/1.1 on a socket, ``exchange`` takes one request through it with its faults, ``app`` finds
the endpoint, the endpoint modules turn a request into a reply, and ``journal`` remembers what was seen.

A handshake is such a request (``handshake``): its reply is a talk, ``realtime`` or ``lanes``, which knows events and no
socket. ``websocket`` carries it, with its faults.
"""

from flowstack.testing.standin.app import App
from flowstack.testing.standin.server import StandIn

__all__ = ["App", "StandIn"]
