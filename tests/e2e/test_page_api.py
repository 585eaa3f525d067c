"""The page's API over real sockets and processes: a browser's session makes a key, the key is used, and its row, its
figures and its end are seen; beside the commands, which say the same."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.live import PROVIDER_KEY
from tests.e2e.processes import BIN, ROOT, Proxy, StartProxy, eventually, that_run
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

VIEW, MANAGE = "viewer-token-of-the-tests-01", "manager-token-of-the-tests-1"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}


class Browser:
    """A client of the API with a session of its own."""

    def __init__(self, proxy: Proxy) -> None:
        self.url = f"http://127.0.0.1:{admin_port(proxy)}/"
        self.fields: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        data = None if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        asked = Request(f"{self.url}{path}", data, {**self.fields, **kind}, method=method)
        try:
            answer = urlopen(asked, timeout=60)
        except HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in b"{[" and text else text, answer.headers

    def get(self, path: str) -> Any:
        status, answer, _ = self.ask("GET", f"api/v1/{path}")
        assert status == 200, answer
        return answer

    def sign_in(self, token: str) -> None:
        status, _, fields = self.ask("POST", "api/v1/session", {"token": token})
        assert status == 204
        self.fields["Cookie"] = fields["Set-Cookie"].partition(";")[0]
        self.fields["X-CSRF-Token"] = self.get("session")["csrf_token"]


def chat(proxy: Proxy, key: str) -> int:
    asked = Request(
        f"{proxy.base_url}/chat/completions", json.dumps(CHAT).encode(),
        {"Flowstack-Auth": f"Bearer {key}", "Authorization": f"Bearer {PROVIDER_KEY}",
         "Content-Type": "application/json"},
    )  # fmt: skip
    try:
        with urlopen(asked, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_is_made_used_seen_and_revoked(workers: int, tmp_path: Path, start_proxy: StartProxy) -> None:
    for name, token in (("view", VIEW), ("manage", MANAGE)):
        (tmp_path / name).write_text(token)
        (tmp_path / name).chmod(0o600)
    proxy = start_proxy(
        server={"admin": "tcp:0:interface=127.0.0.1", "workers": workers},
        admin={"token_file": str(tmp_path / "view"), "manage_token_file": str(tmp_path / "manage"),
               "manage_keys": True},
    )  # fmt: skip
    stranger, viewer, manager = Browser(proxy), Browser(proxy), Browser(proxy)
    assert stranger.ask("GET", "api/v1/report")[0] == 401
    viewer.sign_in(VIEW)
    manager.sign_in(MANAGE)
    tail = viewer.get("requests")["newer"]

    assert viewer.ask("POST", "api/v1/keys", {"attributes": {"owner": "eve"}})[0] == 403
    status, made, _ = manager.ask("POST", "api/v1/keys", {"attributes": {"owner": "Zoë <b>", "budget": "1usd/day"}})
    assert (status, made["reload"]["ok"]) == (201, True)
    key_id, secret = made["key"]["id"], made["secret"]
    assert chat(proxy, secret) == 200

    def new() -> Any:
        return viewer.get(f"requests?direction=newer&cursor={tail}")["requests"]

    (seen,) = eventually(new, "the row is in the live tail")
    assert (seen["key_id"], seen["owner"], seen["status"]) == (key_id, "Zoë <b>", 200)
    whole = viewer.get(f"requests/{seen['request_id']}")
    assert whole["request"]["total_tokens"] == seen["total_tokens"] is not None

    def reported() -> Any:
        found = viewer.get(f"report?by=key&where=key={key_id}")
        return found if found["total"]["requests"] else None

    report = eventually(reported, "the row is in the index")
    command = subprocess.run(
        [BIN / "flowstack", "usage", "--config", proxy.config_path, "--where", f"key={key_id}", "--format", "json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert report == json.loads(command.stdout)
    (listed,) = viewer.get(f"keys?search={key_id}")["keys"]
    assert listed["limits"][0]["spent_usd"] == report["total"]["cost_usd"] > 0
    holder = Request(f"{proxy.url}/flowstack/v1/usage?by=model", headers={"Flowstack-Auth": f"Bearer {secret}"})
    with urlopen(holder, timeout=60) as answer:
        assert json.loads(answer.read())["total"]["cost_usd"] == report["total"]["cost_usd"]
    live = viewer.get("live")
    assert (live["workers"]["ready"], live["reload"]["fault"]) == (workers, None)
    assert live["listening"] == [proxy.url]

    status, gone, _ = manager.ask("DELETE", f"api/v1/keys/{key_id}")
    assert (status, gone["reload"]["ok"]) == (200, True)
    assert chat(proxy, secret) == 401
    assert [entry["action"] for entry in viewer.get("audit")["entries"]] == ["keys.remove", "keys.add"]
    assert manager.ask("DELETE", "api/v1/session")[0] == 204
    assert manager.ask("GET", "api/v1/keys")[0] == 401
    (process,) = that_run(proxy.pid, "flowstack.process.reports")
    proxy.stop()
    assert not Path(f"/proc/{process}").exists()
    proxy.assert_no_secrets([secret, VIEW, MANAGE])
