"""The pieces of configuration that the manual and the README show are taken, each by itself."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from flowstack.config import parse

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    pytest.param(dedent(block), id=f"{page.stem}-{index}")
    for page in (ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst")))
    if page.name != "settings.rst"  # test_reference.py has these
    for index, block in enumerate(
        re.findall(r"(?m)^ *\.\. code-block:: toml\n\n((?: +.*\n|\n)+)", page.read_text("utf-8"))
    )
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_manual_is_taken(example: str, tls: Path, secret_file: Path) -> None:
    if "[upstreams.local]" in example:  # an addition to what is there
        example = f"[upstreams.openai]\ndefault = true\n{example}"
    example = re.sub(r"/etc/flowstack/[a-z]+\.secret", str(secret_file), example)
    parse(example.replace("/etc/flowstack/tls", str(tls)).encode(), "flowstack.toml")


def test_the_manual_has_its_examples() -> None:
    assert len(EXAMPLES) > 9
