"""Not for production: the stand-in upstream, for tests, demonstrations and benchmarks.

:class:`StandIn` is an HTTP/1.1 server that answers as the OpenAI API does, without a model behind it: its text is an
echo.
"""

from flowstack.testing.standin import StandIn

__all__ = ["StandIn"]
