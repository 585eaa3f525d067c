"""The tutorial, step by step in its order: what it says is printed is printed."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.examples import ROOT, Example, examples
from tests.e2e.processes import BIN, START, eventually

pytestmark = pytest.mark.e2e

TUTORIAL = ROOT / "docs/tutorial/first-report.rst"


class Terminal:
    """Runs the blocks of a page in a folder, as a reader does in terminals; free ports take the place of the page's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}
        (folder / "exported").write_text(f"export PATH={shlex.quote(str(BIN))}:$PATH\n")

    def serve(self, text: str) -> None:
        """Start a server, and wait until it listens on all that it is told to."""
        named = re.findall(r"tcp:(\d+)", text)
        command = self._with_ports(re.sub(r"tcp:\d+", "tcp:0", text))
        log = self._folder / f"server-{len(self._servers)}.log"
        with log.open("wb") as output:
            self._servers.append(
                subprocess.Popen(
                    ["bash", "-euc", f". ./exported; exec {command}"],
                    cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

        def listening() -> list[str] | None:
            assert self._servers[-1].poll() is None, log.read_text()
            found = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())
            return found if len(found) == len(named) else None

        self._ports |= dict(zip(named, eventually(listening, f"{command} listens", START), strict=True))

    def run(self, text: str) -> str:
        """Run a step; what it exports holds for the next ones."""
        script = f". ./exported\n{self._with_ports(text)}\nexport -p > exported"
        done = subprocess.run(
            ["bash", "-uc", script], cwd=self._folder, capture_output=True, text=True, check=False, timeout=START
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        """Ctrl-C in each terminal, the last one first."""
        for server in reversed(self._servers):
            server.send_signal(signal.SIGINT)
            try:
                server.wait(START)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
                raise

    def _with_ports(self, text: str) -> str:
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda found: self._ports.get(found[0], found[0]), text)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.end()


def meant(text: str) -> list[str]:
    """Text without what differs each time: ids, hashes, figures, times, and the width of columns."""
    text = re.sub(r"\b(?=\w*\d)\w{12,}\b", "ID", text)
    text = re.sub(r"\b[A-Za-z]\w{11}\b(?= )", "ID", text)
    return re.sub(r"\d[\d,./:T-]*Z?", "N", text).split()


def blocks() -> list[Example]:
    return [example for example in examples(TUTORIAL) if example.words[0] in ("server", "step", "printed")]


def test_the_tutorial_prints_what_it_says_and_ends_with_a_report(terminal: Terminal) -> None:
    printed, seen = "", 0
    for block in blocks():
        if block.words == ("server",):
            terminal.serve(block.text.strip())
        elif block.words == ("step",):
            printed = terminal.run(block.text)
        else:
            assert meant(printed) == meant(block.text), f"it printed:\n{printed}"
            seen += 1
    assert seen > 5
