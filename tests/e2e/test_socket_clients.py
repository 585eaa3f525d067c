"""Clients that hold WebSockets, each in an environment of its own: through Flowstack they see what they see without.

Each is started once for all its ways of bringing the key. The upstream is reached by TLS; so is Flowstack by OpenAI's
SDK for Node, whose Realtime client speaks nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from attrs import frozen

from tests.e2e.crowd import journal
from tests.e2e.processes import Process, Proxy, eventually
from tests.e2e.sdk_runs import HERE, OPENAI_KEY, Attempt, Outcome, Sdks
from tests.transport.certificates import Authority

pytestmark = pytest.mark.e2e

PROGRAMS = {
    "node-openai": "node-openai/sockets.mjs",
    "node-agents": "node-agents/sockets.mjs",
    "python-agents": "python-agents/sockets.py",
    "python-livekit": "python-livekit/sockets.py",
    "python-pipecat": "python-pipecat/sockets.py",
}
BY_HEADER = {"node-openai", "python-agents"}
"""Those that send a header of one's own with both of their handshakes."""


@frozen
class Scene:
    """Two workers of Flowstack, a stand-in behind them, and where each listens with TLS and without."""

    proxy: Proxy
    secure: str
    upstream: str
    upstream_secure: str
    stand_in: Process
    authority: Path

    def state(self) -> str:
        """All that the stand-in remembers of what came by TLS, as text: it keeps a journal for each listener."""
        ask = ["curl", "-sSf", "--cacert", str(self.authority), f"{self.upstream_secure}/stand-in/state"]
        shown = subprocess.run(ask, capture_output=True, text=True, check=True)
        return shown.stdout


def second(process: Process, pattern: str) -> str:
    """The URL of a listener that a process names in its log."""
    found: re.Match[str] = eventually(lambda: re.search(pattern, process.log_text()), pattern)
    return found[1]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("socket-clients")
    authority = Authority(folder)
    certificate, private = authority.issue("server", "localhost", "127.0.0.1")
    plain = "tcp:0:interface=127.0.0.1"
    secure = f"ssl:0:interface=127.0.0.1:privateKey={private}:certKey={certificate}"
    stand_in = Process(
        [sys.executable, "-m", "flowstack.testing", "--listen", plain, "--listen", secure],
        log=folder / "stand-in.log", ready=r"stand-in listening on (http://127\.0\.0\.1:\d+)", cwd=folder,
    )  # fmt: skip
    behind = second(stand_in, r"stand-in listening on (https://127\.0\.0\.1:\d+)")
    proxy = Proxy(
        folder / "proxy", "http://unused.example/v1",
        settings={
            "server": {"workers": 2, "listen": [plain, secure]},
            "upstreams": {
                "openai": {"base_url": f"{behind.replace('127.0.0.1', 'localhost')}/v1", "ca_file": str(authority.file)}
            },
        },
    )  # fmt: skip
    before = second(proxy, r"flowstack listening on (https://127\.0\.0\.1:\d+)")
    yield Scene(proxy, before, stand_in.url, behind, stand_in, authority.file)
    proxy.stop()
    stand_in.stop()


def run(scene: Scene, sdks: Sdks, client: str, ways: list[Attempt]) -> dict[str, Outcome]:
    path = HERE / "sdks" / PROGRAMS[client]
    job = json.dumps({"attempts": [way.as_job() for way in ways]})
    env = {"NODE_EXTRA_CA_CERTS": str(scene.authority)}
    text = sdks.program(client, path.read_text("utf-8"), stdin=job, env=env, harness=True)
    reports = [json.loads(line) for line in text.splitlines() if line.startswith('{"case"')]
    return {report.pop("case"): Outcome(**report) for report in reports}


def told(value: Any) -> Any:
    """What a client saw, less what is another each time."""
    if isinstance(value, dict):
        return {name: told(one) for name, one in value.items() if not name.endswith(("id", "_at", "sequence_number"))}
    return [told(one) for one in value] if isinstance(value, list) else value


def rows_of(proxy: Proxy, key: str, count: int) -> list[dict[str, Any]]:
    return eventually(lambda: rows if len(rows := journal(proxy, key)) >= count else None, f"{count} rows of the key")


def assert_kept_from_the_upstream(key: str, scene: Scene) -> None:
    seen = scene.state()
    assert OPENAI_KEY in seen
    assert key not in seen


@pytest.mark.parametrize("client", PROGRAMS)
def test_a_client_sees_what_it_sees_without_flowstack_and_each_response_has_its_row(
    client: str, scene: Scene, sdks: Sdks
) -> None:
    proxy, tls = scene.proxy, client == "node-openai"
    keys = {"one string": proxy.keystore.add()} | ({"header": proxy.keystore.add()} if client in BY_HEADER else {})
    proxy.reload()
    base_url = f"{scene.secure if tls else proxy.url}/v1"
    ways = [Attempt("direct", f"{scene.upstream_secure if tls else scene.upstream}/v1", {})]
    if "header" in keys:
        ways.append(Attempt("header", base_url, {"Flowstack-Auth": f"Bearer {keys['header']}"}))
    ways.append(Attempt("one string", base_url, {}, api_key=f"{keys['one string']}~{OPENAI_KEY}"))
    found = run(scene, sdks, client, ways)
    assert {name: outcome.raised for name, outcome in found.items()} == dict.fromkeys(("direct", *keys))
    direct = told(found["direct"].value)
    assert all(direct[api] for api in ("realtime", "responses"))
    for way, key in keys.items():
        assert told(found[way].value) == direct, way
        rows = rows_of(proxy, key, 4)
        sockets = {row["request_id"]: row for row in rows if row["status"] == 101}
        responses = [row for row in rows if row["parent_request_id"] is not None]
        assert sorted(row["path"] for row in sockets.values()) == ["/v1/realtime", "/v1/responses"]
        assert {row["parent_request_id"] for row in responses} == sockets.keys()
        for row in responses:
            assert (row["end"], row["status"]) == ("complete", 200)
            assert row["total_tokens"] > 0 and row["cost_usd"] is not None, row
        assert_kept_from_the_upstream(key, scene)


# Codex.

CODEX = """
model = "gpt-4o-mini"
model_provider = "flowstack"

[model_providers.flowstack]
name = "Flowstack"
base_url = "{base_url}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = true
env_http_headers = {{ "Flowstack-Auth" = "FLOWSTACK_AUTH" }}
"""


def codex(sdks: Sdks, folder: Path, base_url: str, auth: str, api_key: str = OPENAI_KEY) -> list[dict[str, Any]]:
    """What Codex tells of one turn."""
    folder.mkdir()
    (folder / "config.toml").write_text(CODEX.format(base_url=base_url), "utf-8")
    program = sdks.folder("node-codex") / "node_modules/.bin/codex"
    done = subprocess.run(
        ["node", str(program), "exec", "--skip-git-repo-check", "--json", "Say this is a test"],
        cwd=folder, env={**os.environ, "CODEX_HOME": str(folder), "OPENAI_API_KEY": api_key, "FLOWSTACK_AUTH": auth},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [event for event in events if event["type"] in ("turn.completed", "turn.failed")] + [
        event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"
    ]


@pytest.mark.parametrize("way", ["header", "one string"])
def test_codex_takes_its_turn_over_a_websocket(way: str, scene: Scene, sdks: Sdks, tmp_path: Path) -> None:
    key = scene.proxy.keystore.add()
    scene.proxy.reload()
    direct = codex(sdks, tmp_path / "direct", f"{scene.upstream}/v1", "none")
    assert direct[0]["type"] == "turn.completed"
    keys = (f"Bearer {key}", OPENAI_KEY) if way == "header" else ("", f"{key}~{OPENAI_KEY}")
    through = codex(sdks, tmp_path / "through", scene.proxy.base_url, *keys)
    assert through[1:] == direct[1:]
    # It ends by closing the connection without a word, behind its warm-up and its turn.
    rows = rows_of(scene.proxy, key, 3)
    (socket,) = [row for row in rows if row["status"] == 101]
    assert (socket["path"], socket["end"]) == ("/v1/responses", "client_gone")
    turn = [row for row in rows if row["parent_request_id"] == socket["request_id"]]
    assert [row["end"] for row in turn] == ["complete", "complete"]
    assert turn[-1]["total_tokens"] > 0 and turn[-1]["cost_usd"] is not None
    assert_kept_from_the_upstream(key, scene)


def test_codex_takes_http_where_websockets_are_switched_off(scene: Scene, sdks: Sdks, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "proxy", f"{scene.upstream}/v1", settings={"server": {"websockets": False}})
    try:
        turn = codex(sdks, tmp_path / "codex", proxy.base_url, f"Bearer {proxy.key}")
        assert turn[0]["type"] == "turn.completed"
        rows = rows_of(proxy, proxy.key, 2)
        assert sorted((row["method"], row["status"]) for row in rows)[0] == ("GET", 426)
        assert [row["end"] for row in rows if row["method"] == "POST"] == ["complete"]
    finally:
        proxy.stop()


# Browsers.

PAGE = """<script>
async function hear(url, protocols) {
  const socket = new WebSocket(url, protocols);
  const types = [];
  const over = new Promise((resolve) => { socket.onclose = ({ code, wasClean }) => resolve([code, wasClean]); });
  socket.onopen = () => socket.send('{"type": "response.create", "response": {"output_modalities": ["text"]}}');
  socket.onmessage = ({ data }) => {
    types.push(JSON.parse(data).type);
    if (types.at(-1) === "response.done") socket.close(1000);
  };
  const end = await over;
  return { protocol: socket.protocol, types, end };
}
(async () => {
  const found = {};
  for (const [way, [url, protocols]] of Object.entries(WAYS)) found[way] = await hear(url, protocols);
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""


def in_chromium(page: str, folder: Path) -> Any:
    """What a page posts when it is done."""
    posted: Queue[bytes] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(page.encode())

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             f"--user-data-dir={folder}", "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            return json.loads(posted.get(timeout=60))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()


def test_chromium_brings_its_key_among_the_subprotocols(scene: Scene, tmp_path: Path) -> None:
    proxy = scene.proxy
    keys = {"one string": proxy.keystore.add(), "own": proxy.keystore.add()}
    proxy.reload()
    target, insecure = "/v1/realtime?model=gpt-realtime", "openai-insecure-api-key."
    url = proxy.url.replace("http", "ws") + target
    ways = {
        "direct": [scene.upstream.replace("http", "ws") + target, ["realtime", insecure + OPENAI_KEY]],
        "one string": [url, ["realtime", f"{insecure}{keys['one string']}~{OPENAI_KEY}"]],
        "own": [url, ["realtime", f"flowstack-auth.{keys['own']}", insecure + OPENAI_KEY]],
    }
    found = in_chromium(PAGE.replace("WAYS", json.dumps(ways), 1), tmp_path / "browser")
    direct = found.pop("direct")
    assert (direct["protocol"], direct["end"], direct["types"][-1]) == ("realtime", [1000, True], "response.done")
    assert found == dict.fromkeys(keys, direct)
    for key in keys.values():
        response, socket = sorted(rows_of(proxy, key, 2), key=lambda row: row["status"] == 101)
        assert (response["parent_request_id"], response["end"]) == (socket["request_id"], "complete")
        assert (socket["status"], socket["end"], socket["close_code"]) == (101, "complete", 1000)
        assert_kept_from_the_upstream(key, scene)
