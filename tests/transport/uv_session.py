"""A pytest plugin: the session's reactor is Twisted's on uvloop. Load it with ``-p``, before pytest-twisted looks."""

from flowstack.transport.uv import install

install()
