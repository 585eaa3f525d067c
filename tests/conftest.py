"""What holds for all tests."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# Hypothesis fails an example that took 200 ms, and a test whose data took a second to make. Both say how busy the
# machine is, and nothing of the code: what is to be quick has a test of its own, in processor time.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")

# Whatever the mask of who runs the tests, files and directories get the modes that these expect, and other users can
# read what they are given to read.
os.umask(0o022)

# Interpreters start here by the hundred: without compiled modules each would compile all of Flowstack, and pytest the
# tests, however the machine is set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
