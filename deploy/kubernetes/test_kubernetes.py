"""The objects for a cluster: valid by published schemas, and of one mind with each other and with the server."""

import asyncio
import re
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from shutil import which
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from serving.config import load_config
from serving.metrics import Metrics

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = {"check_objects.py": "kubernetes", "check_kserve.py": "inference-kserve"}
LAST_CALLS_SECONDS = 10
"""For what the server does after its grace: last events reach their readers, threads and ports close."""


def rendered(folder: str) -> str:
    """What `kubectl apply -k` would send to the cluster."""
    kubectl = which("kubectl")
    assert kubectl, "kubectl is missing: Debian's package kubernetes-client brings it"
    command = [kubectl, "kustomize", str(HERE / folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def checked(script: str, documents: str) -> tuple[int, str]:
    """What a checker makes of these documents: its exit status and its lines."""
    python = ROOT / ".venv-deploy" / ENVIRONMENTS[script] / "bin" / "python"
    requirements = f"deploy/{ENVIRONMENTS[script]}/requirements.txt"
    assert python.exists(), f"{python} is missing: `make test-deploy` installs {requirements} there"
    command = [str(python), str(HERE / script)]
    done = subprocess.run(command, input=documents, capture_output=True, text=True, timeout=280)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the cluster, by kind and name."""
    return {
        f"{document['kind']}/{document['metadata']['name']}": document for document in yaml.safe_load_all(rendered("."))
    }


@pytest.fixture(scope="module")
def deployment(objects) -> dict[str, Any]:
    return objects["Deployment/ctm-serving"]


@pytest.fixture(scope="module")
def container(deployment) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def settings(objects, container) -> dict[str, str]:
    """The environment of the container."""
    (source,) = [entry["configMapRef"]["name"] for entry in container["envFrom"]]
    return objects[f"ConfigMap/{source}"]["data"]


@pytest.mark.parametrize(
    ("folder", "script"),
    [
        pytest.param(".", "check_objects.py", id="Kubernetes"),
        pytest.param("kserve", "check_kserve.py", id="KServe"),
    ],
)
def test_the_objects_are_what_their_published_schemas_say(folder, script):
    assert checked(script, rendered(folder)) == (0, "")


@pytest.mark.parametrize(
    ("folder", "script", "right", "wrong", "complaint"),
    [
        pytest.param(
            ".", "check_objects.py", "maxSurge: 1", "maxSurges: 1", "maxSurges", id="a field that Kubernetes has not"
        ),
        pytest.param(
            ".", "check_objects.py", "minReplicas: 2", "minReplicas: two", "'two' is not", id="a word for a number"
        ),
        pytest.param(
            "kserve", "check_kserve.py", "storageUri", "storageURL", "storageURL", id="a field KServe has not"
        ),
        pytest.param("kserve", "check_kserve.py", "minReplicas: 2", "minReplicas: two", "'two'", id="KServe's number"),
        pytest.param(
            "kserve", "check_kserve.py", "supportedModelFormats", "multiModels", "multiModels", id="KServe's runtime"
        ),
    ],
)
def test_the_checks_find_what_is_wrong(folder, script, right, wrong, complaint):
    documents = rendered(folder)
    assert right in documents
    status, lines = checked(script, documents.replace(right, wrong, 1))
    assert status == 1
    assert complaint in lines


def test_the_settings_are_settings_of_the_server_and_its_ports_those_of_the_pod(settings, container, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    config = load_config([])
    for name in settings:
        place, *keys = config, *name.removeprefix("CTM_SERVE_").lower().split("__")
        for key in keys:
            place = getattr(place, key)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.address == f"0.0.0.0:{ports['grpc']}"
    assert config.http_address == f"0.0.0.0:{ports['http']}"
    assert config.backend.intra_op_threads == int(container["resources"]["requests"]["cpu"])


def test_a_pod_is_given_the_time_that_its_server_takes_to_go(settings, deployment):
    given = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    takes = int(settings["CTM_SERVE_DRAIN_DELAY_SECONDS"]) + int(settings["CTM_SERVE_GRACE_SECONDS"])
    assert given >= takes + LAST_CALLS_SECONDS


def test_so_is_a_pod_of_kserve():
    runtime, service = sorted(yaml.safe_load_all(rendered("kserve")), key=lambda document: document["kind"])[::-1]
    (container,) = runtime["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    takes = int(environment["CTM_SERVE_DRAIN_DELAY_SECONDS"]) + int(environment["CTM_SERVE_GRACE_SECONDS"])
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] >= takes + LAST_CALLS_SECONDS
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    formats = [known["name"] for known in runtime["spec"]["supportedModelFormats"]]
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] in formats


def test_every_object_means_the_same_pods_and_ports(objects, deployment, container):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for port in container["ports"]}
    for kind in ("Service/ctm-serving", "Service/ctm-serving-replicas"):
        service = objects[kind]["spec"]
        assert service["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["ports"]} <= names
    policy = objects["NetworkPolicy/ctm-serving"]["spec"]
    budget = objects["PodDisruptionBudget/ctm-serving"]["spec"]
    for selector in (deployment["spec"]["selector"], budget["selector"], policy["podSelector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= names
    target = objects["HorizontalPodAutoscaler/ctm-serving"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_envoy_looks_for_the_replicas_where_their_service_is(objects):
    document = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())
    (cluster,) = document["static_resources"]["clusters"]
    (endpoint,) = [place for group in cluster["load_assignment"]["endpoints"] for place in group["lb_endpoints"]]
    place = endpoint["endpoint"]["address"]["socket_address"]
    service = objects[f"Service/{place['address']}"]["spec"]
    assert service["clusterIP"] == "None", "one address for each replica, not one for all"
    assert [port["port"] for port in service["ports"]] == [place["port_value"]]


def test_what_the_autoscaler_reads_is_made_of_metrics_that_the_server_has(objects):
    rules = yaml.safe_load((HERE / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    made = {rule["name"]["as"]: rule for rule in rules}
    read = [
        entry["pods"]["metric"]["name"] for entry in objects["HorizontalPodAutoscaler/ctm-serving"]["spec"]["metrics"]
    ]
    assert sorted(read) == sorted(made)
    registry = CollectorRegistry()
    Metrics(registry)
    known = {f"{family.name}{end}" for family in registry.collect() for end in ("", "_sum", "_count", "_total")}
    for rule in rules:
        named = re.findall(r"\bctm_\w+", rule["seriesQuery"] + rule["metricsQuery"])
        assert named
        assert set(named) <= known


def test_the_pod_has_no_rights_that_it_does_not_need(deployment, container):
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (user,) = re.findall(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert pod["securityContext"]["runAsUser"] == int(user)


async def test_a_server_with_these_settings_answers_the_probes(settings, container):
    ports = {port["containerPort"]: port["name"] for port in container["ports"]}
    elsewhere = {
        "CTM_SERVE_ADDRESS": "127.0.0.1:0",
        "CTM_SERVE_HTTP_ADDRESS": "127.0.0.1:0",
    }  # theirs may be taken here
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.cli", "--store", str(ROOT / "model_store"), "--models", "mnist"),
        env=settings | elsewhere | {"PYTHONPATH": str(ROOT)},
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(120):
            async for line in process.stderr:
                if b'"serving"' in line:
                    break
        address = re.search(rb'"address": "([^"]+)"', line)[1].decode()
        port = re.search(rb'"http_port": (\d+)', line)[1].decode()
        async with aiohttp.ClientSession() as session:
            for probe in ("startupProbe", "livenessProbe"):
                page = container[probe]["httpGet"]
                assert page["port"] == "http"
                async with session.get(f"http://127.0.0.1:{port}{page['path']}") as response:
                    assert response.status == 200
        assert ports[container["readinessProbe"]["grpc"]["port"]] == "grpc"
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert (
                await health.Check(health_pb2.HealthCheckRequest())
            ).status == health_pb2.HealthCheckResponse.SERVING
    finally:
        process.kill()
        await process.communicate()
