"""The image's and Compose's files: read by the programs that they are for, and in step with each other."""

from __future__ import annotations

import os
import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowstack.config import Settings, parse
from tests.packaging.containers import CONTAINER, instructions, with_changes, with_secrets, words_of
from tests.packaging.installed import ROOT, run
from tests.rights import needs_root

HAPROXY = ROOT / "etc/haproxy/flowstack.cfg"
NODES = ("one", "two")
STORES = {"redis", "postgres"}
OURS = (*NODES, "flowstack")
PAGE = (ROOT / "docs/howto/compose.rst").read_text("utf-8")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((CONTAINER / "compose.yaml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    found = compose["services"]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return parse(with_secrets((CONTAINER / "flowstack.toml").read_text("utf-8"), tmp_path).encode(), "flowstack.toml")


def mounts(service: Service) -> dict[str, tuple[str, str]]:
    """What is where in a container: the path or the volume, and ``ro`` or ``rw``."""
    found: dict[str, tuple[str, str]] = {}
    for said in service.get("volumes", []):
        source, target, *mode = said.split(":")
        path = os.path.normpath(CONTAINER / source) if source.startswith(".") else source
        found[target] = (path, *(mode or ["rw"]))
    return found


def addresses(services: dict[str, Service]) -> dict[str, str]:
    """The services with an address of their own, and the addresses."""
    fixed = {
        name: service["networks"] for name, service in services.items() if isinstance(service.get("networks"), dict)
    }
    return {name: networks["front"]["ipv4_address"] for name, networks in fixed.items()}


def test_compose_finds_no_fault() -> None:
    run(["docker-compose", "--file", CONTAINER / "compose.yaml", "config", "--quiet"])


def test_compose_would_find_a_fault(tmp_path: Path) -> None:
    wrong = with_changes((CONTAINER / "compose.yaml").read_text("utf-8"), {"internal: true": "interal: true"})
    (tmp_path / "compose.yaml").write_text(wrong)
    command = ["docker-compose", "--file", str(tmp_path / "compose.yaml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "interal" in done.stderr


def test_each_file_that_is_mounted_is_there_or_made_by_the_script(services: dict[str, Service]) -> None:
    made = CONTAINER / "secrets"
    paths = [Path(source) for service in services.values() for source, _ in mounts(service).values()]
    files = [path for path in paths if path.is_absolute()]
    assert len(files) > 5
    assert [path for path in files if not path.is_file() and made not in path.parents] == []
    script = (CONTAINER / "secrets.sh").read_text("utf-8")
    needed = {path.relative_to(CONTAINER) for path in files if made in path.parents}
    assert {str(path) for path in needed if str(path) not in script} == set()


def test_each_volume_and_network_that_is_used_is_named(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    volumes = {source for service in services for source, _ in mounts(service).values() if not source.startswith("/")}
    assert volumes == set(compose["volumes"])
    assert {network for service in services for network in service.get("networks", ())} == set(compose["networks"])


def test_what_needs_no_rights_has_none(services: dict[str, Service]) -> None:
    assert services
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service


def test_only_haproxy_is_reached_from_outside(services: dict[str, Service]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"haproxy", "prometheus"}
    assert "127.0.0.1" in str(published["prometheus"])


def test_the_stores_are_reached_by_the_flowstacks_alone(compose: dict[str, Any]) -> None:
    there = {name for name, service in compose["services"].items() if "stores" in service.get("networks", ())}
    assert there == {*NODES, *STORES}
    assert compose["networks"]["stores"]["internal"] is True
    assert {tuple(compose["services"][name]["networks"]) for name in STORES} == {("stores",)}


def test_the_flowstacks_differ_by_name_address_and_volume(services: dict[str, Service]) -> None:
    one, two = (dict(services[name]) for name in NODES)
    assert mounts(one).pop("/var/lib/flowstack") != mounts(two).pop("/var/lib/flowstack")
    for differs in ("hostname", "networks", "volumes"):
        assert one.pop(differs) != two.pop(differs)
    assert one == two


def test_haproxy_s_file_has_the_addresses_that_compose_gives(
    compose: dict[str, Any], services: dict[str, Service], settings: Settings
) -> None:
    found = addresses(services)
    assert found.keys() == {*NODES, "haproxy"}
    (block,) = compose["networks"]["front"]["ipam"]["config"]
    assert all(ip_address(address) in ip_network(block["subnet"]) for address in found.values())
    front = HAPROXY.read_text("utf-8")
    port = {str(endpoint).partition(":")[2] for endpoint in settings.server.listen}.pop()
    assert re.findall(r"(?m)^ +server (\w+) (\S+)$", front) == [(name, f"{found[name]}:{port}") for name in NODES]
    assert str(settings.server.admin) == f"tcp:{re.findall('check port (.+?) ', front)[0]}"
    assert settings.server.proxy_protocol and "send-proxy-v2" in front
    assert settings.server.trusted_proxies == (f"{found['haproxy']}/32",)
    assert mounts(services["haproxy"])["/usr/local/etc/haproxy/haproxy.cfg"] == (str(HAPROXY), "ro")


def test_prometheus_takes_its_file_and_asks_both(services: dict[str, Service], settings: Settings) -> None:
    file = CONTAINER / "prometheus.yml"
    run(["promtool", "check", "config", file])
    (job,) = yaml.safe_load(file.read_text("utf-8"))["scrape_configs"]
    port = str(settings.server.admin).partition(":")[2]
    asked = {group["labels"]["node"]: group["targets"] for group in job["static_configs"]}
    assert asked == {name: [f"{addresses(services)[name]}:{port}"] for name in NODES}


def test_a_flowstack_has_the_time_that_a_drain_may_take(services: dict[str, Service], settings: Settings) -> None:
    workers_end, inter, fall = 10, 1, 2
    assert f"inter {inter}s fall {fall}" in HAPROXY.read_text("utf-8")
    times = settings.timeouts
    assert times.pre_drain > inter * fall
    for name in (*NODES, "haproxy"):
        grace = int(re.fullmatch(r"(\d+)s", services[name]["stop_grace_period"])[1])  # type: ignore[index]
        assert grace >= times.pre_drain + times.drain + workers_end + 5, name


def test_what_is_used_ends_last(services: dict[str, Service]) -> None:
    assert set(services["haproxy"]["depends_on"]) == set(NODES)
    stores = set(re.findall(r'"\w+://\w+@(\w+)[:/]', (CONTAINER / "flowstack.toml").read_text("utf-8")))
    assert stores == set(services["one"]["depends_on"]) == STORES


def test_what_the_settings_name_is_mounted(services: dict[str, Service], settings: Settings) -> None:
    assert settings.server.watch_keys
    (working,) = instructions("WORKDIR")
    assert str(settings.server.state) == working
    config = words_of("ENTRYPOINT")[-1]
    assert words_of("ENTRYPOINT")[-2] == "--config"
    for name in OURS:
        found = mounts(services[name])
        assert found[config] == (str(CONTAINER / "flowstack.toml"), "ro")
        mode = "rw" if name == "flowstack" else "ro"
        assert found["/run/secrets/flowstack"] == (str(CONTAINER / "secrets/flowstack"), mode)
    assert mounts(services["one"])[working] == ("one", "rw")


def test_the_image_holds_what_the_settings_need() -> None:
    (install,) = [said for said in instructions("RUN") if "pip install" in said]
    assert "'/src[postgres,redis]'" in install


@needs_root
def test_the_script_makes_each_secret_for_its_container_alone_and_changes_none(
    services: dict[str, Service], tmp_path: Path
) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text((CONTAINER / "secrets.sh").read_text("utf-8"))
    run(["sh", script])
    made = {path: path.stat() for path in (tmp_path / "secrets").rglob("*")}
    assert {status.st_mode & 0o077 for status in made.values()} == {0}
    owners = {path.name: path.stat().st_uid for path in (tmp_path / "secrets").iterdir()}
    assert owners == {
        "flowstack": int(instructions("USER")[0].partition(":")[0]),
        **{name: int(services[name]["user"].partition(":")[0]) for name in STORES},
        "haproxy": 99,
    }
    texts = {path: path.read_bytes() for path in made if path.is_file()}
    run(["sh", script])
    assert {path: path.read_bytes() for path in made if path.is_file()} == texts
    for name, expected in {"redis": 1, "postgres": 2}.items():
        password = (tmp_path / f"secrets/flowstack/{name}.secret").read_bytes().strip()
        assert len(password) == 64
        assert len([text for text in texts.values() if password in text]) == expected, name
    told = run(["openssl", "x509", "-in", tmp_path / "secrets/haproxy/llm.example.com.pem", "-noout", "-text"]).stdout
    assert "DNS:llm.example.com" in told


@needs_root
def test_haproxy_takes_its_file_with_the_certificate_that_the_script_makes(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text((CONTAINER / "secrets.sh").read_text("utf-8"))
    run(["sh", script])
    file = tmp_path / "haproxy.cfg"
    file.write_text(with_changes(HAPROXY.read_text("utf-8"), {"/etc/haproxy/": f"{tmp_path}/secrets/haproxy/"}))
    run(["haproxy", "-c", "-f", file], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
