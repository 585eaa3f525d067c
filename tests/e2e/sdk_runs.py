"""Runs the SDKs' scripts below ``sdks/``, each in its own pinned environment, and keeps what they reported.

A script is started once for many cases, so that the cost of starting it and of importing the SDK is paid once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from attrs import field, frozen

from tests.e2e.forks import Forks
from tests.e2e.processes import ROOT

P = ParamSpec("P")
T = TypeVar("T")

HERE = Path(__file__).resolve().parent
HARNESS = HERE / "sdks" / "harness"
LIMIT = 150.0
"""Seconds that one run of a script may take."""

OPENAI_KEY = "sk-a-key-that-only-the-tests-know"

SCRIPTS = {
    "python-openai": "python-openai/cases.py",
    "python-openai-0.28": "python-openai-0.28/cases.py",
    "langchain": "langchain/cases.py",
    "llamaindex": "llamaindex/cases.py",
    "node-openai": "node-openai/cases.mjs",
    "node-openai-4": "node-openai/cases.mjs",
    "node-ai-sdk": "node-ai-sdk/cases.mjs",
}
"""The cases of each SDK. Two majors of the Node SDK share theirs."""

IMPORTS = {
    "python-openai": ["openai.resources", "openai.lib.streaming"],
    "python-openai-0.28": ["openai", "aiohttp"],
    "langchain": ["langchain_openai", "openai.resources"],
    "llamaindex": ["llama_index.core.llms", "llama_index.llms.openai", "openai.resources"],
    "python-agents": ["agents", "agents.realtime"],
    "python-livekit": ["livekit.plugins.openai"],
    "python-pipecat": ["pipecat.services.openai.realtime.llm", "pipecat.services.openai.responses.llm"],
}
"""What takes long of what the programs of an SDK for Python import: each is forked from a process that has it."""


@frozen
class Outcome:
    """What became of one case.

    :ivar value: what it returned, as JSON has it; None if it raised.
    :ivar raised: what it raised, as ``describe`` in the harness tells it; None if it returned.
    :ivar pieces: how many pieces a stream gave before it ended or failed.
    """

    value: Any = None
    raised: dict[str, Any] | None = None
    pieces: int | None = None


@frozen
class Attempt:
    """One call that a test makes by an SDK, with a client of its own.

    :ivar faults: further request headers, such as the stand-in's ``Stand-In``.
    """

    name: str
    base_url: str
    headers: Mapping[str, str]
    api_key: str = field(default=OPENAI_KEY, repr=False)
    stream: bool = False
    faults: Mapping[str, str] = field(factory=dict)

    def as_job(self) -> dict[str, Any]:
        """The form in which the harness takes it."""
        return {
            "name": self.name,
            "base_url": self.base_url,
            "headers": dict(self.headers),
            "api_key": self.api_key,
            "stream": self.stream,
            "faults": dict(self.faults),
        }


class Sdks:
    """All SDKs, their environments installed.

    :param folder: where scripts are put together before they run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forks: dict[str, Forks] = {}
        made = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "environments.py")], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        self._environments = {
            name: Path(path) for name, path in (line.split(" ", 1) for line in made.stdout.splitlines())
        }

    def answers(self, sdk: str, base_url: str, headers: Mapping[str, str]) -> dict[str, Outcome]:
        """Run an SDK's cases that are to succeed."""
        client = {"base_url": base_url, "headers": dict(headers), "api_key": OPENAI_KEY}
        return self._cases(sdk, {"client": client, "answers": True})

    def attempts(self, sdk: str, attempts: Sequence[Attempt]) -> dict[str, Outcome]:
        """Make calls that are to fail."""
        return self._cases(sdk, {"attempts": [attempt.as_job() for attempt in attempts]})

    def folder(self, sdk: str) -> Path:
        """Where an environment is installed."""
        return self._environments[sdk]

    def program(
        self, sdk: str, text: str, *, stdin: str = "", env: Mapping[str, str] | None = None, harness: bool = False
    ) -> str:
        """Run a program's text in an SDK's environment and return what it prints.

        :raises AssertionError: with its standard error, unless it ends with status 0.
        """
        environment = self._environments[sdk]
        node = sdk.startswith("node-")
        folder = self._folder / sdk
        folder.mkdir(exist_ok=True)
        script = folder / ("program.mjs" if node else "program.py")
        script.write_text(text, "utf-8")
        if harness:
            shutil.copy(HARNESS / ("harness.mjs" if node else "harness.py"), folder)
        if node and not (folder / "node_modules").exists():
            # An ES module finds its packages beside itself or above, by no other setting.
            (folder / "node_modules").symlink_to(environment / "node_modules")
        if node:
            return _output(["node", str(script)], folder, stdin=stdin, env=env)
        if sdk not in self._forks:
            self._forks[sdk] = Forks(str(environment / "bin" / "python"), IMPORTS[sdk], env=_clean(), cwd=folder)
        with _in_words():
            done = self._forks[sdk].run([str(script)], cwd=folder, env=_clean(env), given=stdin, limit=LIMIT)
        return _succeeded(done)

    def _cases(self, sdk: str, job: Mapping[str, Any]) -> dict[str, Outcome]:
        text = (HERE / "sdks" / SCRIPTS[sdk]).read_text("utf-8")
        lines = self.program(sdk, text, stdin=json.dumps(job), harness=True).splitlines()
        reports = [json.loads(line) for line in lines if line.startswith('{"case"')]
        return {report.pop("case"): Outcome(**report) for report in reports}


def once(run: Callable[P, T]) -> Callable[P, T]:
    """Remember what a run gave, or how it failed.

    Many tests ask for the same run, and one that fails by its time limit must not be waited for again.
    """

    @cache
    def remembered(*args: Any) -> T | AssertionError:
        try:
            return run(*args)  # type: ignore[call-arg]
        except AssertionError as error:
            return error

    @wraps(run)
    def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        assert not kwargs, "remembered by position"
        found = remembered(*args)
        if isinstance(found, AssertionError):
            raise AssertionError(str(found))
        return found

    return ask


def shell(text: str, folder: Path) -> str:
    """Run a shell's command and return what it prints.

    :raises AssertionError: with its standard error, unless it ends with status 0.
    """
    return _output(["bash", "-euc", text], folder)


def _output(command: Sequence[str], folder: Path, *, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    with _in_words():
        done = subprocess.run(
            command,
            cwd=folder,
            env=_clean(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    return _succeeded(done)


def _clean(env: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    # Proxies and telemetry would put other hosts between the SDK and what is tested.
    clean = {name: value for name, value in clean.items() if not name.lower().endswith("_proxy")}
    clean |= {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    return clean | dict(env or {})


@contextmanager
def _in_words() -> Iterator[None]:
    """Say what a program had printed by the time that it was ended."""
    try:
        yield
    except subprocess.TimeoutExpired as error:
        got = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise AssertionError(
            f"{' '.join(error.cmd)} still ran after {LIMIT:g} s, and had printed:\n{got[-2000:]}"
        ) from None


def _succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
