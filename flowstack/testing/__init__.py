"""Not for production: the stand-in upstream and the in-memory fakes, for tests, demonstrations and benchmarks.

:class:`StandIn` is an HTTP/1.1 server that answers as the OpenAI API does, without a model behind it: its text is an
echo. :class:`MemoryKeystore` and :class:`MemoryLedger` stand behind the seams of :mod:`flowstack.interfaces`.
"""

from flowstack.testing.memory import MemoryKeystore, MemoryLedger
from flowstack.testing.standin import StandIn

__all__ = ["MemoryKeystore", "MemoryLedger", "StandIn"]
