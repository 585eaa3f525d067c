"""What the packaging tests share: one wheel and one environment that it is installed in, for the whole run."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rights
from tests.packaging.installed import Installed, copy_source, run, small_upstream


@pytest.fixture(scope="session")
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with rights.public_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy of the source."""
    source = copy_source(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target)
    run([sys.executable, "-m", "pip", "wheel", *options, source])
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(public_folder: Path, wheel: Path) -> Installed:
    """The wheel in an environment of its own, as in ``/opt/flowstack``."""
    return Installed(public_folder / "opt", wheel)


@pytest.fixture
def upstream() -> Iterator[str]:
    """The base URL of an upstream that answers every POST."""
    with small_upstream() as url:
        yield url


@pytest.fixture
def folder(public_folder: Path) -> Iterator[Path]:
    """A folder for one test that every user can enter."""
    made = Path(tempfile.mkdtemp(prefix="test-", dir=public_folder))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
