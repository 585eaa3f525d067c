"""``python -m flowstack.testing``: the same as ``flowstack stand-in``."""

from flowstack.testing.command import stand_in

stand_in(prog_name="python -m flowstack.testing")
