"""Draw the manual's pictures: each ``docs/diagrams/*.dot`` as an SVG beside it, by Graphviz' ``dot``.

The SVGs are committed, so that the manual builds without Graphviz. Each begins with the hash of the text that it was
drawn from.
"""

from __future__ import annotations

import re
import subprocess
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs/diagrams"


def mark(source: Path) -> str:
    """The comment that an SVG drawn from this text holds."""
    return f"<!-- {source.name} {sha256(source.read_bytes()).hexdigest()} -->"


def main() -> None:
    """Draw all of them."""
    for source in sorted(FOLDER.glob("*.dot")):
        drawn = subprocess.run(["dot", "-Tsvg", source], capture_output=True, text=True, check=True).stdout
        picture = re.sub(r"<!--.*?-->\n?", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
        source.with_suffix(".svg").write_text(f"{mark(source)}\n{picture}", "utf-8")


if __name__ == "__main__":
    main()
