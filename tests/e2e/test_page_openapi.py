"""The page's API against its own description: schemathesis asks whatever that lets it think of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scripts.environments import ensure
from tests.e2e.pages import MANAGER, VIEWER
from tests.e2e.processes import StartProxy
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
LIMIT = 300


def test_it_answers_as_it_says_whatever_is_asked(tmp_path: Path, start_proxy: StartProxy) -> None:
    for name, text in (("view", VIEWER), ("manage", MANAGER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    proxy = start_proxy(
        server={"admin": "tcp:0:interface=127.0.0.1"},
        admin={"token_file": str(tmp_path / "view"), "manage_token_file": str(tmp_path / "manage"),
               "manage_keys": True},
    )  # fmt: skip
    # Seeded, so that a run is the next one's. Not asked: to sign in, as wrong tokens are soon refused unread.
    command = [
        ensure("python-schemathesis") / "bin" / "schemathesis", "run",
        f"http://127.0.0.1:{admin_port(proxy)}/api/v1/openapi.json", "--header", f"Authorization: Bearer {MANAGER}",
        "--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", "3", "--seed", "1",
        "--generation-database", "none", "--exclude-operation-id", "session.begin",
        "--exclude-operation-id", "link.follow", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
