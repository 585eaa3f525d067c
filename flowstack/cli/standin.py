"""``flowstack stand-in``: the command of :mod:`flowstack.testing.command`, among the operator's."""

from flowstack.testing.command import stand_in

__all__ = ["stand_in"]
