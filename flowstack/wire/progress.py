"""Whether a peer still accepts bytes, asked of the kernel."""

from __future__ import annotations

import socket
import struct
from typing import Any

_BYTES_ACKED = 120
"""Offset of ``tcpi_bytes_acked`` (u64) in Linux's ``struct tcp_info`` (linux/tcp.h, since 4.1)."""


def acknowledged_bytes(transport: Any) -> int | None:
    """How many bytes the peer has acknowledged in all; None where that cannot be known (no TCP, another system)."""
    try:
        info = transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
        return int(struct.unpack_from("<Q", info, _BYTES_ACKED)[0])
    except (AttributeError, OSError, struct.error):
        return None
