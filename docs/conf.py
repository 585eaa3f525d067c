"""Sphinx: the manual. ``make docs`` builds it; a warning is a fault."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from flowstack import __version__  # noqa: E402
from scripts import reference  # noqa: E402

# What code knows is written by code, each time anew.
reference.write(ROOT / "docs/reference/generated")

project = "Flowstack"
author = "the Flowstack maintainers"
version = release = __version__

extensions = ["sphinx_copybutton"]
nitpicky = True
highlight_language = "none"
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"Flowstack {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
