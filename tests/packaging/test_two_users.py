"""Root edits the keystore, the unprivileged service reads it anew, and the removed key is refused."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.installed import ANY_PORT, Installed, ask, eventually, run
from tests.rights import needs_root

SERVICE_USER = f"flowstack-{os.getpid()}"
"""Made for one test and gone after it; the number keeps two runs apart."""


@pytest.fixture
def service(installed: Installed) -> Iterator[pwd.struct_passwd]:
    installed.assert_usable_by_anybody()
    run(["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER])
    yield pwd.getpwnam(SERVICE_USER)
    run(["userdel", SERVICE_USER])


@pytest.fixture
def config(folder: Path, service: pwd.struct_passwd) -> Path:
    """A folder as the manual has it made: ``install -d -m 2750 -g flowstack /etc/flowstack``."""
    made = folder / "etc"
    made.mkdir()
    os.chown(made, 0, service.pw_gid)
    made.chmod(0o2750)
    return made


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


@needs_root
def test_a_key_that_root_removes_is_refused_by_the_running_service_and_the_others_go_on(
    installed: Installed, folder: Path, config: Path, service: pwd.struct_passwd, upstream: str
) -> None:
    keys = config / "keys"
    removed, kept = installed.add_key(keys), installed.add_key(keys)
    assert owner_and_mode(keys) == (0, service.pw_gid, 0o640)
    state = folder / "state"
    state.mkdir()
    os.chown(state, service.pw_uid, service.pw_gid)
    flags = ("--listen", ANY_PORT, "--upstream", upstream, "--keys", keys, "--state", state)
    as_service = {"user": service.pw_uid, "group": service.pw_gid, "extra_groups": []}
    with installed.proxy(folder, *flags, **as_service) as proxy:
        process = Path(f"/proc/{proxy.process.pid}")
        assert process.stat().st_uid == service.pw_uid
        assert [ask(proxy.url, key)[0] for key in (removed, kept)] == [200, 200]

        run([installed.bin / "flowstack", "keys", "remove", "--keys", keys, removed[4:16]])
        assert owner_and_mode(keys) == (0, service.pw_gid, 0o640)
        # Not before it is told: the file is read on SIGHUP, as a whole.
        assert ask(proxy.url, removed)[0] == 200

        proxy.process.send_signal(signal.SIGHUP)
        status, answer = eventually(
            lambda: found if (found := ask(proxy.url, removed))[0] != 200 else None, "the removed key is refused"
        )
        assert (status, answer["error"]["code"]) == (401, "invalid_flowstack_key")
        assert ask(proxy.url, kept)[0] == 200


@needs_root
def test_the_service_itself_can_read_the_keystore_but_not_change_it(
    installed: Installed, config: Path, service: pwd.struct_passwd
) -> None:
    keys = config / "keys"
    key = installed.add_key(keys)
    as_service = {"user": service.pw_uid, "group": service.pw_gid, "extra_groups": []}
    assert key[4:16] in run([installed.bin / "flowstack", "keys", "list", "--keys", keys], **as_service).stdout
    before = keys.read_bytes()
    command = [installed.bin / "flowstack", "keys", "remove", "--keys", keys, key[4:16]]
    done = subprocess.run(command, cwd="/", check=False, capture_output=True, text=True, **as_service)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert keys.read_bytes() == before
