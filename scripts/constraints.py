"""Write ``requirements/constraints.txt`` from this environment: the versions that the tests ran with.

Only what ``flowstack[test,lint,docs]`` needs is written, not what else somebody installed here.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).parent.parent / "requirements/constraints.txt"
HEADER = """\
# The versions that the tests ran with: a fresh machine gets the same.
# Written by scripts/constraints.py from a working environment; edit setup.py, then run "make constraints".
"""
ALSO = ("pip", "setuptools")
"""What builds the rest; nothing requires it by name."""


def needed(name: str, extras: frozenset[str], seen: dict[str, str], done: set[tuple[str, frozenset[str]]]) -> None:
    """Collect a distribution and all that it requires here, by name and version."""
    key = (canonicalize_name(name), extras)
    if key in done:
        return
    done.add(key)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise SystemExit(f"{name} is required but not installed here; run: make setup") from None
    seen[key[0]] = f"{found.metadata['Name']}=={found.version}"
    for line in found.requires or ():
        requirement = Requirement(line)
        contexts = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
            needed(requirement.name, frozenset(requirement.extras), seen, done)


def main() -> None:
    """Rewrite the file."""
    seen: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    needed("flowstack", frozenset({"test", "lint", "docs"}), seen, done)
    for name in ALSO:
        needed(name, frozenset(), seen, done)
    del seen["flowstack"]
    lines = sorted(seen.values(), key=lambda line: re.split("==", line)[0].lower())
    TARGET.write_text(HEADER + "".join(f"{line}\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
