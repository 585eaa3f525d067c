"""The image's entry as a container has it, with the settings that are offered for Compose and for Kubernetes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from attrs import frozen

from tests.ledger import servers
from tests.packaging.containers import (
    CONTAINER,
    Container,
    ask,
    chat,
    contained,
    copied,
    instructions,
    probe,
    with_changes,
    words_of,
)
from tests.packaging.installed import CLEAN, PATIENCE, ROOT, Installed, eventually, run
from tests.ports import free_port
from tests.rights import needs_root

pytestmark = needs_root

USER, GROUP = map(int, instructions("USER")[0].split(":"))
CONFIG = "/etc/flowstack/flowstack.toml"
SECRETS = "/run/secrets/flowstack"
STATE = "/var/lib/flowstack"
PROXY = b"PROXY TCP4 192.0.2.7 192.0.2.1 51000 443\r\n"
"""What HAProxy writes before a client's own bytes."""


@pytest.fixture(scope="module")
def image(public_folder: Path, installed: Installed) -> Installed:
    """The environment that the image has, made from what is copied into it.

    What the wheel depends on is there already, from its own installation: pip brings what the extras want beside it.
    """
    source = copied(public_folder / "context")
    make, install, *others = (said.split() for said in instructions("RUN"))
    assert make == ["python", "-m", "venv", "/opt/flowstack"]
    assert install[:2] == ["/opt/flowstack/bin/pip", "install"]
    made = Installed(public_folder / "image", install[-1].strip("'").replace("/src", str(source)), like=installed)
    for words in others:
        if words[0].startswith("/opt/flowstack"):
            run([word.replace("/opt/flowstack", str(made.folder)) for word in words])
    return made


@pytest.fixture
def secrets(folder: Path) -> Path:
    """What ``secrets.sh`` makes."""
    script = folder / "secrets.sh"
    script.write_text((CONTAINER / "secrets.sh").read_text("utf-8"))
    run(["sh", script])
    return folder / "secrets"


@pytest.fixture
def redis(secrets: Path, folder: Path) -> Iterator[int]:
    """The port of a Redis by the file that is offered, with the users that the script makes."""
    port, data = free_port(), folder / "redis"
    data.mkdir()
    places = {
        "bind * -::*": f"bind 127.0.0.1\nport {port}",
        "dir /data": f"dir {data}",
        "/etc/redis/users.acl": f"{secrets}/redis/users.acl",
    }
    file = folder / "redis.conf"
    file.write_text(with_changes((CONTAINER / "redis.conf").read_text("utf-8"), places))
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(["redis-server", str(file)], stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or connects(port), "Redis takes connections")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def postgres(secrets: Path, folder: Path) -> Iterator[int]:
    """The port of a PostgreSQL in which the offered file made the database."""
    text = with_changes(
        (CONTAINER / "postgres.sql").read_text("utf-8"), {"/run/secrets/postgres/": f"{secrets}/postgres/"}
    )
    file = written(folder / "postgres.sql", text)
    with servers.server() as server:
        reach = f"host=127.0.0.1 port={server.port} user=postgres password=postgres dbname=postgres"
        run([servers.program("psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={file}", reach])
        yield server.port


def connects(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def added_key(image: Installed, folder: Path, mounts: list[tuple[Path, str, str]], *words: str) -> str:
    """The key that the container of the command prints, between what it says beside."""
    service = yaml.safe_load((CONTAINER / "compose.yaml").read_text("utf-8"))["services"]["flowstack"]
    folder.mkdir()
    with contained(image, folder, mounts, [*service["entrypoint"], *words]) as container:
        assert container.process.wait(PATIENCE) == 0, container.output()
    (key,) = re.findall(r"(?m)^fsk-\w+$", container.output())
    assert isinstance(key, str)
    return key


def assert_confined(container: Container) -> None:
    """See that it is the first process, of the image's user, without rights, on a root that is read-only."""
    status = Path(f"/proc/{container.first}/status").read_text()
    assert re.search(r"NSpid:\s+\d+\s+1\n", status)
    assert re.search(rf"Uid:\s+{USER}\s+{USER}\s", status) and re.search(rf"Gid:\s+{GROUP}\s+{GROUP}\s", status)
    assert re.search(r"CapPrm:\s+0+\n", status) and re.search(r"NoNewPrivs:\s+1\n", status)
    (root,) = [line.split() for line in Path(f"/proc/{container.first}/mountinfo").read_text().splitlines()
               if line.split()[4] == "/"]  # fmt: skip
    assert "ro" in root[5].split(",")


def test_compose_s_settings_serve_count_limits_in_redis_and_end_in_order(
    image: Installed, secrets: Path, redis: int, postgres: int, folder: Path, upstream: str
) -> None:
    admin = free_port()
    places = {
        '"tcp:8080"': '"tcp:0:interface=127.0.0.1"',
        '"tcp:9110"': f'"tcp:{admin}:interface=127.0.0.1"',
        "pre_drain = 5": "pre_drain = 2",
        '"10.20.30.10"': '"127.0.0.1"',
        "@redis:6379": f"@127.0.0.1:{redis}",
        "@postgres:5432": f"@127.0.0.1:{postgres}",
    }
    text = with_changes((CONTAINER / "flowstack.toml").read_text("utf-8"), places)
    config = written(folder / "etc/flowstack.toml", f'{text}\n[upstreams.openai]\nbase_url = "{upstream}"\n')
    state = folder / "state"
    state.mkdir(mode=0o750)
    os.chown(state, USER, GROUP)
    mounts = [(config, CONFIG, "ro"), (secrets / "flowstack", SECRETS, "rw")]
    key = added_key(image, folder / "command", mounts, "keys", "add", "--config", CONFIG, "--rpm", "2")

    mounts = [(config, CONFIG, "ro"), (secrets / "flowstack", SECRETS, "ro"), (state, STATE, "rw")]
    with contained(image, folder, mounts, words_of("ENTRYPOINT")) as container:
        port = eventually(container.port, "it listens")
        assert_confined(container)
        assert health(image, admin) == 0
        # Without Redis each would be 503: the user's rights are enough, and both requests were counted.
        eventually(lambda: b"flowstack_redis_up 2.0" in metrics(admin), "Redis is there for both workers")
        assert [ask(port, chat(key), PROXY)[0] for _ in range(3)] == [200, 200, 429]
        assert [path.name for path in (state / "ledger").glob("*.jsonl")] != []
        eventually(lambda: b"flowstack_ledger_shipped_rows_total 3.0" in metrics(admin), "PostgreSQL has the rows")
        container.signal()
        eventually(lambda: probe(admin, "/readyz") == 503, "it says that it ends")
        assert probe(admin, "/healthz") == 200
        assert ask(port, chat(key), PROXY)[0] == 429, "it serves for pre_drain"
        assert container.process.wait(PATIENCE) == 0, container.output()
        assert health(image, admin) != 0
    rows = "".join(path.read_text() for path in (state / "ledger").glob("*.jsonl"))
    assert rows.count('"client_addr":"192.0.2.7"') >= 3
    assert "Traceback" not in container.output() and "dropin" not in container.output(), container.output()


def health(image: Installed, admin: int) -> int:
    """The status of the image's own check."""
    python, *words = words_of("HEALTHCHECK")
    assert python == "/opt/flowstack/bin/python"
    words[-1] = with_changes(words[-1], {"127.0.0.1:9110": f"127.0.0.1:{admin}"})
    done = subprocess.run(
        [image.bin / "python", *words], cwd="/", env=CLEAN, check=False, capture_output=True, timeout=60
    )
    return done.returncode


def metrics(admin: int) -> bytes:
    return ask(admin, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")[1].encode()


@frozen
class Projected:
    """A Secret as the kubelet has it in a pod: links to a folder that it switches over in one step."""

    folder: Path

    def bring(self, files: Mapping[str, bytes]) -> None:
        """Have these files there."""
        self.folder.mkdir(exist_ok=True)
        before = [path for path in self.folder.glob("..2*") if path.is_dir()]
        made = self.folder / f"..2026_{len(before)}_{os.urandom(4).hex()}"
        made.mkdir()
        for name, data in files.items():
            (made / name).write_bytes(data)
            os.chown(made / name, 0, GROUP)
            (made / name).chmod(0o440)
        (self.folder / "..data_new").symlink_to(made.name)
        (self.folder / "..data_new").rename(self.folder / "..data")
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        for old in before:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()


def test_kubernetes_settings_serve_in_a_pod_and_take_a_secret_that_the_kubelet_switches_over(
    image: Installed, secrets: Path, redis: int, postgres: int, folder: Path, upstream: str
) -> None:
    admin = free_port()
    places = {
        '"tcp:8080"': '"tcp:0:interface=127.0.0.1"',
        '"tcp:9110"': f'"tcp:{admin}:interface=127.0.0.1"',
        "pre_drain = 15": "pre_drain = 0.5",
        "rediss://flowstack@redis.example.com:6380": f"redis://flowstack@127.0.0.1:{redis}",
        '@postgres.example.com:5432/flowstack"': f'@127.0.0.1:{postgres}/flowstack"\npostgres_tls = false',
        "[upstreams.openai]": f'[upstreams.openai]\nbase_url = "{upstream}"',
    }
    text = with_changes((ROOT / "etc/kubernetes/flowstack.toml").read_text("utf-8"), places)
    config = written(folder / "etc/flowstack.toml", text)
    state = folder / "state"
    state.mkdir()
    os.chown(state, 0, GROUP)
    state.chmod(0o2775)
    old = image.add_key(folder / "old")
    new = image.add_key(folder / "new")
    others = {
        "postgres.secret": (secrets / "flowstack/postgres.secret").read_bytes(),
        "openai.secret": b"sk-of-the-operator\n",
        "redis.secret": (secrets / "flowstack/redis.secret").read_bytes(),
    }
    secret = Projected(folder / "secret")
    secret.bring({"keys": (folder / "old").read_bytes(), **others})
    mounts = [(config.parent, "/etc/flowstack", "ro"), (secret.folder, SECRETS, "ro"), (state, STATE, "rw")]
    with contained(image, folder, mounts, words_of("ENTRYPOINT")) as container:
        port = eventually(container.port, "it listens")
        assert_confined(container)
        statefulset = yaml.safe_load((ROOT / "etc/kubernetes/statefulset.yaml").read_text("utf-8"))
        (pod,) = statefulset["spec"]["template"]["spec"]["containers"]
        for kind in ("startup", "readiness", "liveness"):
            assert probe(admin, pod[f"{kind}Probe"]["httpGet"]["path"]) == 200
        assert statuses(port, old, new) == (200, 401)
        secret.bring({"keys": (folder / "new").read_bytes(), **others})
        eventually(lambda: statuses(port, old, new) == (401, 200), "each worker has the other keys")
        container.signal()
        assert container.process.wait(PATIENCE) == 0, container.output()
    assert (state / "state/ledger").is_dir()
    assert "Traceback" not in container.output() and "dropin" not in container.output(), container.output()


def statuses(port: int, *keys: str) -> tuple[int, ...]:
    return tuple(ask(port, chat(key).replace("Authorization: Bearer sk-of-the-client\r\n", ""))[0] for key in keys)
