"""What this machine is called where several share a ledger."""

from __future__ import annotations

import re
from socket import gethostname

from flowstack.config.settings import Settings

_OTHER = re.compile(r"[^A-Za-z0-9._-]")


def node_of(settings: Settings) -> str | None:
    """The name by which rows tell this machine; None where one machine is all there is."""
    if settings.server.node is not None:
        return settings.server.node
    if settings.shared.redis is None and settings.shared.postgres is None:
        return None
    return _OTHER.sub("-", gethostname())[:63].lstrip("._-") or "unnamed"
