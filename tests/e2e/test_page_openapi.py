"""The API answers whatever fits its own OpenAPI document, and what does not, as the document says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts.environments import ensure
from tests.e2e.pages import MANAGER, VIEWER, House
from tests.e2e.processes import StandIn
from tests.e2e.sdk_runs import HERE

pytestmark = pytest.mark.e2e

PROGRAM = HERE / "sdks/python-schemathesis/run.py"


@pytest.mark.parametrize("token", [VIEWER, MANAGER], ids=["who may look", "who may change"])
def test_whatever_is_asked_gets_an_answer_that_the_document_has(token: str, stand_in: StandIn, tmp_path: Path) -> None:
    house = House(tmp_path, f"{stand_in.url}/v1")
    python = ensure("python-schemathesis") / "bin" / "python"
    try:
        done = subprocess.run(
            [str(python), str(PROGRAM), f"{house.url}api/v1/openapi.json", token, "30"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        house.proxy.stop()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None and int(tested[1]) > 15, done.stdout
    assert "Rate limited" not in done.stdout, done.stdout
    assert "Traceback" not in house.proxy.log_text()
