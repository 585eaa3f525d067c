"""Ports for servers that are started a while after they were chosen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_CHOSEN_BY_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port on 127.0.0.1 at which nothing listens.

    None of those that the system itself gives to connections: one might take it before the server is started, or while
    it is stopped.
    """
    first = int(_CHOSEN_BY_SYSTEM.read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(first // 2, first)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
