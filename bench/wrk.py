"""wrk, the load generator for whole requests."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import provision, traffic
from bench.lab import Lab, Running
from bench.procs import BenchError, running

SCRIPT = """\
wrk.method = "POST"
wrk.path = "{path}"
wrk.body = [==[{body}]==]
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nBENCH {{"requests":%d,"failed":%d,"p50_us":%d,"p99_us":%d}}\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


def install() -> None:
    """The Debian package."""
    provision.debian("wrk", "wrk")


def load(
    lab: Lab, subject: Running, connections: int, seconds: int, settle: float, look: Callable[[], Any]
) -> tuple[Any, Any, dict[str, float]]:
    """Ask ``subject`` over so many kept-alive connections, each waiting for its answer, for so many seconds.

    :param look: called ``settle`` seconds after the begin, and again shortly before the end.
    :returns: what ``look`` returned each time, and wrk's own count of ``requests``, ``p50_us`` and ``p99_us``.
    :raises BenchError: if a single request failed or was answered with anything but 2xx.
    """
    script = lab.directory / "wrk.lua"
    _write_script(script, subject.headers)
    argv = (
        provision.debian("wrk", "wrk"),
        *("-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "20s", "-s", script),
        f"http://127.0.0.1:{subject.port}{traffic.PATH}",
    )
    with running("wrk", argv, cores=lab.cores.load[-1:], log=lab.directory / "wrk.log", piped=True) as child:
        begin = time.monotonic()
        _sleep_until(begin + settle)
        first = look()
        _sleep_until(begin + seconds - 0.15)
        last = look()
        try:
            output, _ = child.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            raise BenchError("wrk does not end") from None
    report = next((line[6:] for line in output.decode().splitlines() if line.startswith("BENCH ")), None)
    if report is None:
        raise BenchError(f"wrk gave no report:\n{child.tail()}")
    counted: dict[str, float] = json.loads(report)
    if counted["failed"] or not counted["requests"]:
        raise BenchError(f"{counted['failed']} of {counted['requests']} requests failed")
    return first, last, counted


def _write_script(path: Path, headers: dict[str, str]) -> None:
    fields = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    body = traffic.request_body().decode()
    path.write_text(SCRIPT.format(path=traffic.PATH, body=body, headers=fields))


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
