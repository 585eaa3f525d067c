"""``flowstack keys … --reload`` against a running service: what it says is in force, is, in every worker."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from flowstack.keys import make_token
from tests.e2e.live import LIMIT, PROVIDER_KEY
from tests.e2e.processes import Proxy, StartProxy, eventually, invoke
from tests.e2e.raw import Client, request
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

MANY = 100_000


def keys(proxy: Proxy, *arguments: str, stdin: str = "", of: str = "keys") -> subprocess.CompletedProcess[str]:
    """Run ``flowstack keys``, or ``groups``, with the proxy's configuration."""
    return invoke("flowstack", of, *arguments, "--config", proxy.config_path, given=stdin)


def reloaded(proxy: Proxy, *arguments: str, stdin: str = "", of: str = "keys") -> str:
    """Run a command with ``--reload``; it must say that the service took the change over. Give what it printed."""
    result = keys(proxy, *arguments, "--reload", stdin=stdin, of=of)
    assert result.returncode == 0, result.stderr
    assert f"The service, process {proxy.pid}, has loaded it: " in result.stderr
    return result.stdout


def asking(key: str) -> bytes:
    return request(key, b"GET /v1/models HTTP/1.1", b"Authorization: Bearer " + PROVIDER_KEY.encode())


def statuses(proxy: Proxy, key: str, count: int = 12) -> set[int]:
    """The statuses that requests with this key get, each on a new connection, so that every worker is asked."""
    found = set()
    for _ in range(count):
        with Client(proxy.port) as client:
            found.add(client.ask(asking(key)).status)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_is_made_rotated_disabled_enabled_and_removed_and_each_holds_at_once(
    start_proxy: StartProxy, workers: int
) -> None:
    proxy = start_proxy(server={"workers": workers})
    first = reloaded(proxy, "add", "--owner", "alice").strip()
    proxy.keystore.tokens.add(first)
    key_id = first[4:16]
    assert statuses(proxy, first) == {200}
    second = reloaded(proxy, "rotate", key_id).strip()
    proxy.keystore.tokens.add(second)
    assert statuses(proxy, first) == statuses(proxy, second) == {200}
    reloaded(proxy, "set", key_id, "--unset", "previous")
    assert (statuses(proxy, first), statuses(proxy, second)) == ({401}, {200})
    reloaded(proxy, "disable", key_id)
    assert statuses(proxy, second) == {401}
    reloaded(proxy, "enable", key_id)
    assert statuses(proxy, second) == {200}
    reloaded(proxy, "remove", key_id)
    assert statuses(proxy, second) == {401}
    third = make_token(os.urandom)[1]
    proxy.keystore.tokens.add(third)
    reloaded(proxy, "import", stdin=f"{third}\n")
    assert statuses(proxy, third) == statuses(proxy, proxy.key) == {200}


def test_a_replaced_secret_is_refused_when_its_grace_is_over_without_another_reload(start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    first = reloaded(proxy, "add").strip()
    second = reloaded(proxy, "rotate", first[4:16], "--grace", "3s").strip()
    proxy.keystore.tokens |= {first, second}
    deadline = time.monotonic() + LIMIT
    while statuses(proxy, first, 1) == {200}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (statuses(proxy, first), statuses(proxy, second)) == ({401}, {200})


def test_a_file_with_a_fault_is_refused_and_the_command_says_so(start_proxy: StartProxy, tmp_path: Path) -> None:
    proxy = start_proxy()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch(0o600)
    proxy.keystore.replace("nonsense\n")
    result = keys(proxy, "add", "--keys", str(elsewhere), "--reload")
    assert result.returncode == 1
    assert "did not load it; its 1 keys of before stay in force" in result.stderr
    assert f"{proxy.keys_path}:1:9: hash: found none" in result.stderr
    assert statuses(proxy, proxy.key, 1) == {200}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_changes_is_in_force_without_a_signal_and_is_told_from_others(
    start_proxy: StartProxy, workers: int
) -> None:
    proxy = start_proxy(server={"workers": workers, "watch_keys": True, "admin": "tcp:0:interface=127.0.0.1"})
    added = proxy.keystore.add()
    eventually(lambda: statuses(proxy, added) == {200}, "the key is in force in every worker")
    digest = hashlib.sha256(proxy.keys_path.read_bytes()).hexdigest()
    report = proxy.state_path / "reload.json"
    eventually(lambda: json.loads(report.read_bytes())["sha256"] == digest, "the report is written")

    def seen(path: bytes) -> str:
        with Client(admin_port(proxy)) as client:
            return client.ask(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path).body.decode()

    def shown() -> float:
        found = re.search(r"(?m)^flowstack_keystore_hash (\S+)$", seen(b"/metrics"))
        assert found is not None
        return float(found[1])

    assert f"ok\nkeystore sha256:{digest}, 2 keys, generation 2\n" == seen(b"/readyz")
    eventually(lambda: shown() == int(digest[:12], 16), "the metric is of that file")
    proxy.keystore.replace("no key\n")
    eventually(lambda: "was not reloaded; the 2 keys of generation 2 stay" in proxy.log_text(), "the fault is told")
    assert statuses(proxy, added) == {200}
    assert f"sha256:{digest}, 2 keys" in seen(b"/readyz")
    proxy.keystore.remove(added)
    eventually(lambda: statuses(proxy, added) == {401}, "it is refused everywhere")


def test_an_ended_service_is_not_found_and_nothing_is_written(start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    proxy.stop()
    before = proxy.keys_path.read_bytes()
    result = keys(proxy, "add", "--reload")
    assert result.returncode == 1
    assert "no service runs with the state directory" in result.stderr
    assert proxy.keys_path.read_bytes() == before


def test_with_100_000_keys_a_reload_under_traffic_stops_nobody_for_long_and_a_revocation_holds(
    start_proxy: StartProxy,
) -> None:
    proxy = start_proxy()
    lines = (f"k{n} sha256:{hashlib.sha256(b'%d' % n).hexdigest()} owner=u{n} rpm=6000\n" for n in range(MANY))
    own = f"own sha256:{hashlib.sha256(proxy.key.encode()).hexdigest()}\n"
    goes = proxy.keystore.add()
    gone = f"gone sha256:{hashlib.sha256(goes.encode()).hexdigest()}\n"
    text = "".join(lines)
    proxy.keystore.replace(text + own + gone)
    assert proxy.reload()["keys"] == MANY + 2
    assert statuses(proxy, goes, 1) == {200}
    proxy.keystore.replace(text + own)

    async def traffic() -> tuple[list[float], float]:
        """Ask on one connection without a pause; give how long each answer took, and the reload."""
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        took: list[float] = []
        began = time.monotonic()
        reload = asyncio.create_task(asyncio.to_thread(proxy.reload))
        while not reload.done():
            asked = time.monotonic()
            writer.write(asking(proxy.key))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b" 200 " in head.splitlines()[0]
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            took.append(time.monotonic() - asked)
        whole = time.monotonic() - began
        writer.close()
        assert (await reload)["keys"] == MANY + 1
        return took, whole

    took, whole = asyncio.run(traffic())
    assert statuses(proxy, goes, 1) == {401}
    # Were the file read at one go, one answer would take nearly all of the reload's time. On a busy machine each takes
    # longer, and so does the reload; and any one of them may have to wait for the processor.
    assert len(took) > 5
    assert max(took) < max(0.1, whole / 2), f"{max(took):.3f} s of {whole:.3f} s"
