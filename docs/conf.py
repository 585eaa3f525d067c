"""Sphinx: the operator's and the contributor's manual. ``make docs`` builds it; a warning is a fault."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from flowstack import __version__  # noqa: E402

project = "Flowstack"
author = "the Flowstack maintainers"
version = release = __version__

extensions: list[str] = []
exclude_patterns = ["build"]
nitpicky = True
highlight_language = "none"
html_theme = "alabaster"
html_theme_options = {"description": "One door of your own in front of the OpenAI API", "fixed_sidebar": True}
html_show_copyright = False
