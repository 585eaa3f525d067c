"""The place where a run happens: the bench upstream, the subjects as they run, the load clients."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import frozen

from bench import fast, traffic
from bench.certs import make_certificates
from bench.procs import ROOT, BenchError, Child, Cores, aside, running, tree
from bench.subjects.base import Setup, Subject
from tests.ports import free_port

#: The subject of a run that has none between client and upstream.
DIRECT = "direct"


@frozen(slots=True)
class Running:
    """A subject that is up, or the upstream itself under the name :data:`DIRECT`.

    :ivar port: where it takes plain HTTP.
    :ivar headers: of each request to it.
    :ivar chunk_interval: ms between the chunks of a stream through it.
    :ivar upstream: which of the upstreams it has: plain, tls or fast.
    :ivar state: where its ledger is, if it has one.
    """

    name: str
    port: int
    headers: dict[str, str]
    chunk_interval: int
    child: Child | None = None
    upstream: str = "plain"
    state: Path | None = None

    def pids(self) -> list[int]:
        """Its processes now on requests' way; none for the upstream itself, which is not weighed."""
        return [pid for pid in self._all() if not aside(pid)]

    def aside(self) -> list[int]:
        """Its other processes."""
        return [pid for pid in self._all() if aside(pid)]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run, and stand still again."""
        if self.child is not None:
            self.child.resume()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Let it stand still."""
        if self.child is not None:
            self.child.pause()

    def _all(self) -> list[int]:
        return [] if self.child is None else tree(self.child.pid)


class Lab:
    """A context: on entering, the bench upstream is up; on leaving, nothing is."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.cores = Cores.of_this_machine()
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="flowstack-bench-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            certificates = make_certificates(self.directory)
            self._authority = certificates.authority
            argv = (sys.executable, "-m", "bench.upstream", certificates.certificate, certificates.key)
            log = self.directory / "upstream.log"
            child = stack.enter_context(
                running("bench upstream", argv, cores=self.cores.load, log=log, cwd=ROOT, piped=True)
            )
            assert child.process.stdout is not None
            words = child.process.stdout.readline().split()
            if not words or words[0] != b"ready":
                raise BenchError(f"the bench upstream did not start:\n{child.tail()}")
            self.ports = {"plain": int(words[1]), "tls": int(words[2]), "fast": free_port()}
            argv = fast.command(self.directory, self.ports["fast"])
            log = self.directory / "fast.log"
            stack.enter_context(running("fast upstream", argv, cores=self.cores.load, log=log))
            fast.await_ready(self.ports["fast"])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def direct(self, upstream: str = "plain") -> Running:
        """No proxy at all."""
        return Running(DIRECT, self.ports[upstream], traffic.request_headers(self.key), 20, upstream=upstream)

    @contextlib.contextmanager
    def start(self, subject: Subject, upstream: str, *, workers: int = 1, wide: bool = False) -> Iterator[Running]:
        """Start a subject, and see that it relays an answer whole and refuses a wrong key.

        :param upstream: which one: plain, tls (the same by TLS) or fast.
        :param wide: whether it gets the cores for two workers.
        :raises BenchError: if it does not come up, or does not do what it is there for.
        """
        directory = Path(tempfile.mkdtemp(prefix=f"{subject.name}-", dir=self.directory))
        setup = Setup(
            directory=directory,
            port=free_port(),
            upstream_port=self.ports[upstream],
            authority=self._authority if upstream == "tls" else None,
            key=self.key,
            provider_key=traffic.PROVIDER_KEY,
            workers=workers,
        )
        command = subject.command(setup)
        cores = self.cores.pair if wide else self.cores.subject
        with running(
            subject.name,
            command.argv,
            cores=cores,
            log=directory / "output.log",
            environment=command.environment,
            cwd=directory,
        ) as child:
            headers = {**traffic.request_headers(self.key), **subject.headers(setup)}
            self._await_ready(subject, setup.port, headers, child, command.ready)
            if any(os.sched_getaffinity(pid) != set(cores) for pid in tree(child.pid)):
                raise BenchError(f"{subject.name} does not run on core {', '.join(map(str, cores))} alone")
            state = directory / "state"
            yield Running(
                *(subject.name, setup.port, headers, subject.chunk_interval, child, upstream),
                state if state.exists() else None,
            )

    def _await_ready(self, subject: Subject, port: int, headers: dict[str, str], child: Child, patience: float) -> None:
        deadline = time.monotonic() + patience
        seen = "nothing listens"
        while time.monotonic() < deadline:
            if child.process.poll() is not None:
                raise BenchError(f"{subject.name} ended with {child.process.returncode}:\n{child.tail()}")
            try:
                status, body = ask(port, headers)
            except OSError:
                time.sleep(0.02)
                continue
            if status == 200:
                break
            seen = f"it answers {status} {body[:300]!r}"
            time.sleep(0.2)
        else:
            raise BenchError(f"{subject.name} does not relay within {patience:.0f} s: {seen}\n{child.tail()}")
        if subject.transparent and body != traffic.ANSWER_BODY:
            raise BenchError(f"{subject.name} changes the answer: {body[:200]!r}")
        wanted = json.loads(traffic.ANSWER_BODY)["choices"][0]["message"]["content"]
        if json.loads(body)["choices"][0]["message"]["content"] != wanted:
            raise BenchError(f"{subject.name} changes the answer's text: {body[:200]!r}")
        if subject.checks_key:
            status, _ = ask(port, {**headers, "Flowstack-Auth": "Bearer wrong"})
            if status != 401:
                raise BenchError(f"{subject.name} answers {status} to a wrong key, where 401 is due")

    def upstream_requests(self, upstream: str) -> int:
        """How many chat requests that upstream has had so far; the fast one counts each such question too."""
        if upstream == "fast":
            return fast.requests(self.ports["fast"])
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["plain"], timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/bench/requests")
            return int(connection.getresponse().read())

    def numbers(self, count: int) -> range:
        """Numbers for requests that no other request of this run has."""
        first = next(self._numbers)
        self._numbers = itertools.count(first + count)
        return range(first, first + count)

    def client(self, kind: str, *, patience: float = 240.0, **order: Any) -> dict[str, float]:
        """Run a load client of :mod:`bench.client` to its end.

        :raises BenchError: with the client's own words, if any answer was wrong.
        """
        argv = (sys.executable, "-m", "bench.client", kind, json.dumps(order))
        log = self.directory / "client.log"
        with running(kind, argv, cores=self.cores.load, log=log, cwd=ROOT, piped=True) as child:
            try:
                output, _ = child.process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                raise BenchError(f"the load client took over {patience:.0f} s") from None
            if child.process.returncode:
                raise BenchError(f"the load client failed:\n{child.tail()}")
        values: dict[str, Any] = json.loads(output)
        if "error" in values:
            raise BenchError(values["error"])
        return values


def ask(port: int, headers: dict[str, str], body: bytes | None = None) -> tuple[int, bytes]:
    """One chat request on a connection of its own; returns status and body.

    :raises OSError: if no whole answer came.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("POST", traffic.PATH, body or traffic.request_body(), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as fault:
            raise OSError(f"no answer: {fault!r}") from None


