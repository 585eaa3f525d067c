"""Other people's parsers, in long-lived processes of their own: what a handler behind each finds in a body."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.processes import ROOT
from tests.go import built

HERE = Path(__file__).resolve().parent / "sdks"

Readings = dict[str, list[tuple[str, str]] | None]
"""By parser the names and values that it found, of JSON with the values as JSON text; None where it refused."""


class Parsers:
    """The parsers of Go, Node and Python.

    :param folder: where the scripts run.
    """

    def __init__(self, folder: Path) -> None:
        node = _environment("node-parsers")
        python = _environment("python-parsers")
        # An ES module finds its packages beside itself.
        (folder / "node_modules").symlink_to(node / "node_modules")
        script = shutil.copy(HERE / "node-parsers" / "parsers.mjs", folder)
        commands: Sequence[Sequence[str | Path]] = (
            ("node", script),
            (python / "bin" / "python", HERE / "python-parsers" / "parsers.py"),
            (built(HERE / "go-parsers" / "parsers.go"),),
        )
        self._children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder) for command in commands
        ]

    def read(self, content_type: bytes, body: bytes) -> Readings:
        """What each finds."""
        asked = {"type": content_type.decode("latin-1"), "body": base64.b64encode(body).decode()}
        line = json.dumps(asked).encode() + b"\n"
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(line)
            child.stdin.flush()
        found: Readings = {}
        for child in self._children:
            assert child.stdout is not None
            answer = child.stdout.readline()
            assert answer, f"{child.args!r} ended at {content_type!r}, {body!r}"
            found |= json.loads(answer)
        return found

    def stop(self) -> None:
        """End the processes."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            assert child.wait(timeout=60) == 0, child.args


def _environment(name: str) -> Path:
    command = [sys.executable, str(ROOT / "scripts" / "environments.py"), name]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip().split(" ", 1)[1])
