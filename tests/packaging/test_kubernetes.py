"""The manifests for Kubernetes: what ``kubectl apply -k`` would send, held to Kubernetes' schemas and to Flowstack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions
from packaging.version import Version

from flowstack import __version__
from flowstack.config import Settings, parse
from flowstack.metrics.families import FAMILIES
from tests.packaging.containers import instructions, secrets_of, with_secrets
from tests.packaging.installed import ROOT, run

FOLDER = ROOT / "etc/kubernetes"
PAGE = (ROOT / "docs/howto/kubernetes.rst").read_text("utf-8")
RELEASES = [release for release in all_versions() if Version(release) >= Version("1.29")]
LABEL = {"app.kubernetes.io/name": "flowstack"}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return list(yaml.safe_load_all(run(["kubectl", "kustomize", FOLDER]).stdout))


@pytest.fixture(scope="module")
def by_kind(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Each by its kind and, of services, its name."""
    return {m["kind"] if m["kind"] != "Service" else m["metadata"]["name"]: m for m in manifests}


@pytest.fixture(scope="module")
def pod(by_kind: dict[str, Manifest]) -> Manifest:
    spec: Manifest = by_kind["StatefulSet"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Manifest) -> Manifest:
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def settings(by_kind: dict[str, Manifest], tmp_path: Path) -> Settings:
    """What the file in the ConfigMap says, where the Secret has its files."""
    return parse(with_secrets(by_kind["ConfigMap"]["data"]["flowstack.toml"], tmp_path).encode(), "flowstack.toml")


@pytest.mark.parametrize("release", RELEASES)
def test_each_manifest_is_one_of_kubernetes(manifests: list[Manifest], release: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, release, strict=True)


def test_a_misspelt_field_would_be_found(by_kind: dict[str, Manifest]) -> None:
    wrong = {**by_kind["PodDisruptionBudget"], "spec": {"maxUnavailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailible"):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


def test_each_file_of_the_folder_is_sent(manifests: list[Manifest]) -> None:
    written = [part["kind"] for path in FOLDER.glob("*.yaml") for part in yaml.safe_load_all(path.read_text("utf-8"))]
    written[written.index("Kustomization")] = "ConfigMap"
    assert sorted(manifest["kind"] for manifest in manifests) == sorted(written)


def test_all_that_has_a_namespace_is_in_the_one_that_is_made(manifests: list[Manifest]) -> None:
    (namespace,) = (manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "Namespace")
    others = {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"}
    assert others == {namespace}


def test_everything_selects_the_pods(by_kind: dict[str, Manifest], pod: Manifest) -> None:
    assert by_kind["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items() >= LABEL.items()
    assert by_kind["StatefulSet"]["spec"]["selector"]["matchLabels"] == LABEL
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == LABEL
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == LABEL
    for service in ("flowstack", "flowstack-pods"):
        assert by_kind[service]["spec"]["selector"] == LABEL
    assert by_kind["StatefulSet"]["spec"]["serviceName"] == by_kind["flowstack-pods"]["metadata"]["name"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == LABEL
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", by_kind["StatefulSet"]["metadata"]["name"])


def test_the_image_is_of_this_release(container: Manifest) -> None:
    assert container["image"].rpartition(":")[2] == __version__


def test_ports_are_those_at_which_flowstack_listens(
    by_kind: dict[str, Manifest], container: Manifest, settings: Settings
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [str(endpoint) for endpoint in settings.server.listen] == [f"tcp:{ports['http']}"]
    assert str(settings.server.admin) == f"tcp:{ports['admin']}"
    assert by_kind["flowstack"]["spec"]["ports"][0]["targetPort"] == "http"
    assert by_kind["flowstack-pods"]["spec"]["ports"][0] == {
        "name": "admin", "port": ports["admin"], "targetPort": "admin",
    }  # fmt: skip
    annotations = by_kind["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(ports["admin"])}
    assert [int(port) for said in instructions("EXPOSE") for port in said.split()] == list(ports.values())


def test_probes_ask_the_admin_listener(container: Manifest) -> None:
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert asked == {
        "startup": {"path": "/healthz", "port": "admin"},
        "readiness": {"path": "/readyz", "port": "admin"},
        "liveness": {"path": "/healthz", "port": "admin"},
    }


def test_a_pod_has_the_time_that_a_drain_may_take(pod: Manifest, container: Manifest, settings: Settings) -> None:
    workers_end = 10
    times = settings.timeouts
    assert pod["terminationGracePeriodSeconds"] >= times.pre_drain + times.drain + workers_end + 5
    assert "lifecycle" not in container, "pre_drain is what a preStop would be for"
    ready = container["readinessProbe"]
    assert times.pre_drain > ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]


def test_scaling_down_leaves_a_pod_the_time_to_end(by_kind: dict[str, Manifest], pod: Manifest) -> None:
    spec = by_kind["HorizontalPodAutoscaler"]["spec"]
    (policy,) = spec["behavior"]["scaleDown"]["policies"]
    assert policy["value"] == 1
    assert policy["periodSeconds"] >= pod["terminationGracePeriodSeconds"]
    assert spec["minReplicas"] > by_kind["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert "replicas" not in by_kind["StatefulSet"]["spec"], "each kubectl apply would undo what the scaler did"


def test_scaling_goes_by_a_metric_that_there_is(by_kind: dict[str, Manifest]) -> None:
    (metric,) = by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {series.name for family in FAMILIES.values() for series in family.series}
    assert name in PAGE, "the adapter's rule is in the manual"


def test_a_pod_has_no_right_that_it_could_do_without(pod: Manifest, container: Manifest) -> None:
    # As the "restricted" standard, which the namespace enforces, and a root that nothing writes to.
    of_pod, of_container = pod["securityContext"], container["securityContext"]
    assert of_pod["runAsNonRoot"] and of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert instructions("USER") == [f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}"]
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert pod["automountServiceAccountToken"] is False


def test_what_the_settings_name_is_mounted(
    by_kind: dict[str, Manifest], pod: Manifest, container: Manifest, settings: Settings
) -> None:
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert not [name for name, mount in mounts.items() if "subPath" in mount], "such a file stays as it was"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts["settings"]["mountPath"] == "/etc/flowstack"
    assert volumes["settings"]["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]
    assert mounts["secrets"]["mountPath"] == "/run/secrets/flowstack"
    assert settings.server.watch_keys
    assert volumes["secrets"]["secret"]["defaultMode"] & 0o007 == 0
    (claim,) = by_kind["StatefulSet"]["spec"]["volumeClaimTemplates"]
    state = mounts[claim["metadata"]["name"]]["mountPath"]
    assert settings.server.state is not None and settings.server.state.parent == Path(state)
    assert instructions("WORKDIR") == [state]


def test_the_secret_that_the_manual_makes_has_each_file_that_the_settings_name(by_kind: dict[str, Manifest]) -> None:
    named = secrets_of(by_kind["ConfigMap"]["data"]["flowstack.toml"])
    assert sorted(re.findall(r"--from-file=([\w.]+)", PAGE)) == sorted(named)


def test_memory_is_enough_for_what_may_be_held(container: Manifest, settings: Settings) -> None:
    server, workers = settings.server, settings.server.workers
    held = workers * (server.websocket_memory_bytes + server.retry_memory_bytes + settings.ledger.queue_bytes)
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert held < 1 << 30, "as much again is for the rest"
    assert int(container["resources"]["requests"]["cpu"]) == workers
    assert "cpu" not in container["resources"]["limits"]


def test_the_network_lets_through_what_the_settings_need(by_kind: dict[str, Manifest], settings: Settings) -> None:
    spec = by_kind["NetworkPolicy"]["spec"]
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == ["http", "admin"]
    assert "from" not in spec["ingress"][0] and "from" in spec["ingress"][1]
    out = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert settings.shared.redis is not None
    assert out == {53, 443, *stores(settings)}


def stores(settings: Settings) -> set[int]:
    return {int(re.search(r":(\d+)/", str(url))[1]) for url in (settings.shared.redis, settings.shared.postgres)}  # type: ignore[index]
