"""``python -m bench.waiting``: the shipper's memory while much of the journal waits, as after days alone."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from bench.journal import write_journal
from flowstack.config import Server, Settings
from flowstack.ledger.files import journal_path
from flowstack.process.shipped import Shipped, read_shipped
from flowstack.process.spawn import child_environ
from flowstack.process.upkeep import SHIPPER
from tests.ledger.servers import server

_ROW_BYTES = 1_000
"""About what one of :mod:`bench.journal` takes."""


def _memory(pid: int) -> dict[str, float]:
    """What a process has in memory now (``RSS``), and had at most (``HWM``), in MiB."""
    found = re.findall(r"^Vm(RSS|HWM):\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return {name: int(kilobytes) / 1024 for name, kilobytes in found}


def _said(state: Path) -> Shipped:
    return read_shipped(state) or Shipped()


@click.command()
@click.option("--megabytes", type=click.IntRange(10), default=600, show_default=True, help="That wait.")
@click.option("--seconds", type=click.IntRange(1), default=60, show_default=True, help="For which it sends.")
def main(megabytes: int, seconds: int) -> None:
    """Print how much the shipper grows, from before it sees the journal, with a PostgreSQL of its own."""
    folder = Path(tempfile.mkdtemp(prefix="flowstack-waiting-"))
    state = folder / "state"
    state.mkdir()
    try:
        write_journal(folder / "waiting", megabytes * 1_000_000 // _ROW_BYTES)
        waiting = sum(path.stat().st_size for path in (folder / "waiting").iterdir())
        journal_path(state).mkdir()
        with server() as one:
            settings = Settings(server=Server(state=state, node="bench"), shared=one.database(folder))
            process = subprocess.Popen(SHIPPER, stdin=subprocess.PIPE, env=child_environ(os.environ), bufsize=0)
            assert process.stdin is not None
            try:
                process.stdin.write(pickle.dumps(settings))
                while _said(state).succeeded_at is None:
                    assert process.poll() is None
                    time.sleep(0.1)
                before = _memory(process.pid)["RSS"]
                journal_path(state).rmdir()
                (folder / "waiting").rename(journal_path(state))
                begun = time.monotonic()
                while time.monotonic() - begun < seconds and (_said(state).lag_bytes or _said(state).rows == 0):
                    time.sleep(0.5)
                took, after, said = time.monotonic() - begun, _memory(process.pid), _said(state)
            finally:
                process.stdin.close()
                process.wait(60)
            click.echo(f"{waiting / 1e6:,.0f} MB waited; {said.rows:,} rows were sent in {took:.0f} s")
            click.echo(f"MiB before {before:.1f}, at the end {after['RSS']:.1f}, at most {after['HWM']:.1f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
