"""What the bench knows of a proxy under test."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from bench.procs import ROOT

ENVIRONMENTS = ROOT / ".envs"


@frozen(slots=True)
class Setup:
    """One configuration that a subject is started with.

    :ivar directory: where its files go.
    :ivar port: of 127.0.0.1, for it to listen on.
    :ivar upstream_port: of the bench upstream on 127.0.0.1.
    :ivar authority: PEM file of the upstream's authority, which must be verified; None means no TLS.
    :ivar key: the Flowstack key that requests show and that must be checked.
    :ivar provider_key: the ``Authorization`` token of requests.
    :ivar workers: processes, or threads, that serve.
    """

    directory: Path
    port: int
    upstream_port: int
    authority: Path | None
    key: str
    provider_key: str
    workers: int = 1

    @property
    def upstream(self) -> str:
        """The upstream's base URL, without a path."""
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.upstream_port}"

    def write(self, name: str, text: str) -> Path:
        """Write a file of the configuration; returns its path."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return path


@frozen(slots=True)
class Command:
    """How to start a subject.

    :ivar ready: seconds that it may take until it relays a request.
    """

    argv: tuple[str | Path, ...]
    environment: dict[str, str] = field(factory=dict)
    ready: float = 15.0


class Subject(Protocol):
    """A proxy under test.

    :ivar name: in tables and on the command line.
    :ivar transparent: whether an answer's body must come through byte for byte.
    :ivar checks_key: whether it answers 401 to a request with a wrong Flowstack key.
    :ivar bulk: whether it relays file uploads and downloads.
    :ivar chunk_interval: ms between a stream's chunks under a load that it can bear.
    :ivar streams: the most streams that it is loaded with.
    """

    name: str
    transparent: bool
    checks_key: bool
    bulk: bool
    chunk_interval: int
    streams: int

    def install(self) -> None:
        """Fetch what is missing; raises :exc:`bench.procs.BenchError` saying what to do by hand if that fails."""

    def version(self) -> str:
        """One line that names the very build."""

    def command(self, setup: Setup) -> Command:
        """Write the configuration and say how to start with it."""

    def headers(self, setup: Setup) -> dict[str, str]:
        """Header fields that its requests need besides those of :func:`bench.traffic.request_headers`."""


class Defaults:
    """The ordinary answers of a :class:`Subject`."""

    transparent = True
    checks_key = True
    bulk = True
    chunk_interval = 20
    streams = 100_000

    def headers(self, setup: Setup) -> dict[str, str]:
        """None."""
        return {}
