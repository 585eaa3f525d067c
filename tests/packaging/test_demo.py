"""``make demo``: what it prints works when it is pasted."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.installed import PATIENCE, ROOT, eventually, run


class Demo:
    def __init__(self, folder: Path) -> None:
        self.log = folder / "demo.log"
        command = [sys.executable, ROOT / "scripts/demo.py", folder / "demo"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def output(self) -> str:
        return self.log.read_text("utf-8")

    def requests(self) -> list[str] | None:
        """The commands to paste, once they are there."""
        assert self.process.poll() is None, self.output()
        text = self.output()
        return re.findall(r"^curl .*?\}'$", text, re.MULTILINE | re.DOTALL) if "Ctrl-C" in text else None

    def reports(self) -> list[str]:
        """The commands that show what the requests left behind: ``flowstack usage``, and curl for the metrics."""
        return re.findall(r"^(?:\S+ usage .+|curl .+/metrics)$", self.output(), re.MULTILINE)


def pasted(command: str) -> str:
    """Run a printed command as a shell does, without curl's progress bar."""
    return run(["bash", "-c", command.replace("curl ", "curl -sS ", 1)]).stdout


def listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def end(demo: Demo, ending: signal.Signals) -> None:
    """End a demo, and both its servers with it."""
    urls = re.findall(r"listening on (http://127\.0\.0\.1:\d+)", demo.output())
    assert len(urls) == 3
    assert all(listens(url) for url in urls)
    demo.process.send_signal(ending)
    assert demo.process.wait(PATIENCE) == 0, demo.output()
    assert not any(listens(url) for url in urls)
    assert "Traceback" not in demo.output()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    eventually(demo.requests, "the requests are printed")
    yield demo
    end(demo, signal.SIGTERM)


@pytest.fixture(scope="module")
def answers(demo: Demo) -> list[str]:
    """What the printed requests are answered."""
    return [pasted(request) for request in demo.requests() or []]


def test_the_printed_requests_are_answered(answers: list[str]) -> None:
    plain, streamed = answers
    answer = json.loads(plain)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    events = streamed.strip().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert events[-1] == "data: [DONE]"


@pytest.mark.usefixtures("answers")
def test_the_printed_reports_show_what_the_requests_used(demo: Demo) -> None:
    usage, metrics = demo.reports()
    by_owner = json.loads(pasted(f"{usage} --format json"))
    (line,) = by_owner["groups"]
    assert (line["owner"], line["requests"], line["prompt_tokens"], line["completion_tokens"]) == ("demo", 2, 2, 2)
    assert re.search(r"^total +2 ", pasted(usage), re.MULTILINE)
    ((page, code),) = re.findall(r"^(http://127\.0\.0\.1:\d+/)#code=([\w-]{43})$", demo.output(), re.MULTILINE)
    assert "<title>Flowstack</title>" in pasted(f"curl {page}")
    body = f"-H 'Content-Type: application/json' -d '{{\"code\": \"{code}\"}}' {page}api/v1/session/code"
    jar = demo.log.with_name("cookies")
    assert pasted(f"curl -c {jar} {body}") == ""
    assert json.loads(pasted(f"curl {body}"))["error"]["code"] == "wrong_token"
    week = json.loads(pasted(f"curl -b {jar} '{page}api/v1/report?by=owner&since=7d'"))
    requests = {line["owner"]: line["requests"] for line in week["groups"]}
    assert requests["demo"] == 2
    assert requests["search team"] > 1000
    full = json.loads(pasted(f"curl -b {jar} {page}api/v1/budgets"))["budgets"]
    near = [one["owner"] for one in full if 0.8 < one["spent_usd"] / one["amount_usd"] < 1 and one["of"] == "key"]
    assert "support" in near
    counted = re.search(r"^flowstack_requests_total\{[^}]*\} (\S+)$", pasted(metrics), re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) == 2


@pytest.mark.usefixtures("demo")
def test_it_runs_beside_whatever_holds_its_usual_ports_and_ctrl_c_ends_both_servers(tmp_path: Path) -> None:
    second = Demo(tmp_path)
    try:
        plain, _ = eventually(second.requests, "the second demo's requests are printed")
        assert json.loads(pasted(plain))["object"] == "chat.completion"
        end(second, signal.SIGINT)
    finally:
        if second.process.poll() is None:
            second.process.send_signal(signal.SIGTERM)
            second.process.wait(PATIENCE)


def test_a_demo_that_cannot_be_set_up_says_why(tmp_path: Path) -> None:
    # A folder where the keystore should be.
    (tmp_path / "demo/keys").mkdir(parents=True)
    demo = Demo(tmp_path)
    assert demo.process.wait(PATIENCE) == 1
    assert "demo/keys" in demo.output()
    assert "Traceback" not in demo.output()
