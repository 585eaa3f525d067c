"""The systemd units: sound, locked down, and in step with the program that they run."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flowstack.config import Settings
from tests.packaging.installed import ANY_PORT, CLEAN, ROOT, Installed, ask, eventually, run, unit_settings
from tests.rights import needs_root
from tests.short import short_folder

UNITS = ROOT / "etc/systemd"
PROGRAM = "/opt/flowstack/bin/twistd"


@pytest.fixture
def units(installed: Installed, tmp_path: Path) -> Path:
    """Copies with the program's path filled in: ``verify`` wants it to exist."""
    for name in ("flowstack.service", "flowstack.socket"):
        text = (UNITS / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace(PROGRAM, str(installed.bin / "twistd")), "utf-8")
    return tmp_path


def test_systemd_finds_no_fault_in_the_units(units: Path) -> None:
    both = (units / "flowstack.service", units / "flowstack.socket")
    assert "flowstack" not in run(["systemd-analyze", "verify", "--man=no", *both]).stdout


def test_systemd_would_find_a_fault(units: Path) -> None:
    unit = units / "flowstack.service"
    unit.write_text(unit.read_text("utf-8").replace("ProtectSystem=strict", "ProtectSystem=very"), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert "flowstack.service" in done.stderr


def test_the_service_s_exposure_is_at_most_3(units: Path) -> None:
    run(["systemd-analyze", "security", "--offline=true", "--threshold=30", units / "flowstack.service"])


def test_the_unit_starts_the_program_that_the_manual_installs() -> None:
    settings = unit_settings(UNITS / "flowstack.service")
    options = "--config /etc/flowstack/flowstack.toml --state /var/lib/flowstack"
    assert settings["ExecStart"] == [f"{PROGRAM} -n --pidfile= flowstack {options}"]
    assert settings["StateDirectory"] == ["flowstack"]
    assert "/opt/flowstack" in (ROOT / "docs/howto/service.rst").read_text("utf-8")


def test_systemd_waits_longer_than_flowstack_drains() -> None:
    settings = unit_settings(UNITS / "flowstack.service")
    assert int(settings["TimeoutStopSec"][0]) > Settings().timeouts.drain


def test_the_request_log_that_the_manual_names_lies_where_the_service_may_write() -> None:
    settings = unit_settings(UNITS / "flowstack.service")
    assert settings["ProtectSystem"] == ["strict"]
    folder = f"/var/log/{settings['LogsDirectory'][0]}"
    for place in ("docs/howto/service.rst", "docs/reference/settings.rst", "etc/flowstack.toml"):
        named = set(re.findall(r"/var/[a-z/]+\.[a-z]+", (ROOT / place).read_text("utf-8")))
        assert named == {f"{folder}/requests.jsonl"}, place


def test_the_keystore_is_read_where_it_lies() -> None:
    # LoadCredential= is copied once, at the start: SIGHUP would read the old keys for ever.
    assert not {"LoadCredential", "SetCredential", "DynamicUser"} & unit_settings(UNITS / "flowstack.service").keys()


@needs_root
def test_sysusers_and_tmpfiles_make_the_user_and_a_config_folder_that_hands_its_group_down(tmp_path: Path) -> None:
    for kind in ("sysusers", "tmpfiles"):
        target = tmp_path / f"usr/lib/{kind}.d/flowstack.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(UNITS / f"flowstack.{kind}.conf", target)
    (tmp_path / "etc").mkdir()
    run(["systemd-sysusers", f"--root={tmp_path}", "flowstack.conf"])
    user = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (user[0], user[-1]) == (unit_settings(UNITS / "flowstack.service")["User"][0], "/usr/sbin/nologin")
    run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", "flowstack.conf"])
    made = (tmp_path / "etc/flowstack").stat()
    assert (made.st_mode & 0o7777, made.st_uid, str(made.st_gid)) == (0o2750, 0, user[3])


SANDBOX = ROOT / "tests/packaging/sandbox.py"


def sandboxed(unit: Path, *command: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SANDBOX), str(unit), *command]
    return subprocess.run(words, cwd="/", capture_output=True, text=True, check=False, timeout=60)


def test_it_serves_under_the_unit_s_system_call_rules(
    installed: Installed, units: Path, folder: Path, upstream: str
) -> None:
    key = installed.add_key(folder / "keys")
    flags = ("--listen", ANY_PORT, "--upstream", upstream, "--keys", folder / "keys", "--state", folder)
    before = (sys.executable, str(SANDBOX), str(units / "flowstack.service"))
    with installed.proxy(folder, *flags, before=before) as proxy:
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{proxy.process.pid}/status").read_text()
        assert ask(proxy.url, key)[0] == 200
        reloaded = folder / "reload.json"
        # A rename brings another inode, even within one tick of the clock.
        before = reloaded.stat().st_ino if reloaded.exists() else None
        proxy.process.send_signal(signal.SIGHUP)
        eventually(lambda: reloaded.exists() and reloaded.stat().st_ino != before, "the keystore is read anew")
        assert ask(proxy.url, key)[0] == 200


def test_tls_works_under_the_unit_s_system_call_rules(units: Path) -> None:
    # pyOpenSSL makes its callbacks at run time, which MemoryDenyWriteExecute= would not let it.
    program = (
        "from OpenSSL import SSL\n"
        "SSL.Context(SSL.TLS_METHOD).set_verify(SSL.VERIFY_PEER, lambda *found: True)\n"
        "print('made')"
    )
    unit = units / "flowstack.service"
    done = sandboxed(unit, sys.executable, "-c", program)
    assert done.stdout == "made\n", done.stderr
    unit.write_text(unit.read_text("utf-8").replace("MemoryDenyWriteExecute=no", "MemoryDenyWriteExecute=yes"), "utf-8")
    assert "MemoryError" in sandboxed(unit, sys.executable, "-c", program).stderr


def test_the_unit_s_system_call_rules_refuse_what_a_proxy_has_no_use_for(units: Path) -> None:
    program = "import os, socket\n{}"
    for refused in ("os.chroot('/')", "os.sched_setaffinity(0, {0})", "socket.socket(socket.AF_NETLINK)"):
        done = sandboxed(units / "flowstack.service", sys.executable, "-c", program.format(refused))
        assert "PermissionError" in done.stderr, f"{refused}: {done.stderr}"


def test_systemd_is_told_of_the_start_the_reload_and_the_end_and_the_watchdog_is_fed(
    installed: Installed, folder: Path, upstream: str
) -> None:
    keys = folder / "keys"
    key = installed.add_key(keys)
    with short_folder() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(short / "notify"))
        notices.setblocking(False)
        told: list[str] = []

        def heard(word: str) -> bool:
            try:
                while True:
                    told.extend(notices.recv(4096).decode().splitlines())
            except BlockingIOError:
                return word in told

        environment = CLEAN | {"NOTIFY_SOCKET": str(short / "notify"), "WATCHDOG_USEC": "1000000"}
        flags = ("--listen", ANY_PORT, "--upstream", upstream, "--keys", keys)
        with installed.proxy(folder, *flags, env=environment) as proxy:
            eventually(lambda: heard("READY=1"), "READY=1")
            assert ask(proxy.url, key)[0] == 200
            eventually(lambda: heard("WATCHDOG=1"), "WATCHDOG=1")
            told.clear()
            proxy.process.send_signal(signal.SIGHUP)
            eventually(lambda: heard("RELOADING=1"), "RELOADING=1")
            eventually(lambda: heard("READY=1"), "READY=1 once it is done")
        assert heard("STOPPING=1")
