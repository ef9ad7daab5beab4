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

from serving.config import ServerConfig, load_config
from serving.config import settings as known_settings
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
    ("folder", "script", "slips"),
    [
        pytest.param(
            ".",
            "check_objects.py",
            {"maxSurge: 1": "maxSurges: 1", "minReplicas: 2": "minReplicas: two"},
            id="Kubernetes",
        ),
        pytest.param(
            "kserve",
            "check_kserve.py",
            {"storageUri": "storageURL", "minReplicas: 2": "minReplicas: two", "supportedModelFormats": "modelFormats"},
            id="KServe",
        ),
    ],
)
def test_the_checks_find_what_is_wrong(folder, script, slips):
    documents = rendered(folder)
    for right, wrong in slips.items():
        assert right in documents
        documents = documents.replace(right, wrong, 1)
    status, lines = checked(script, documents)
    assert status == 1
    for wrong in slips.values():
        assert re.split(r": ?", wrong)[-1 if "two" in wrong else 0] in lines


def test_the_settings_are_settings_of_the_server_and_its_ports_those_of_the_pod(settings, container, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert set(settings) <= {setting.variable for setting in known_settings()}, "others would be ignored"
    config = load_config([])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.address == f"0.0.0.0:{ports['grpc']}"
    assert config.http_address == f"0.0.0.0:{ports['http']}"
    assert config.backend.intra_op_threads == int(container["resources"]["requests"]["cpu"])


def test_a_pod_is_given_the_time_that_its_server_takes_to_go(settings, deployment, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    given = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert given >= seconds_to_go(load_config([]))


def test_kserve_runs_the_server_as_it_can_be_run_and_gives_it_as_long(monkeypatch):
    objects = {document["kind"]: document["spec"] for document in yaml.safe_load_all(rendered("kserve"))}
    runtime, predictor = objects["ServingRuntime"], objects["InferenceService"]["predictor"]
    (container,) = runtime["containers"]
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    config = load_config(container["args"])
    assert str(config.store) == "/mnt/models", "where KServe puts what storageUri names"
    assert [config.address] == [f"0.0.0.0:{port['containerPort']}" for port in container["ports"]]
    assert predictor["terminationGracePeriodSeconds"] >= seconds_to_go(config)
    assert predictor["model"]["modelFormat"] in runtime["supportedModelFormats"]
    assert predictor["model"]["protocolVersion"] in runtime["protocolVersions"]


def seconds_to_go(config: ServerConfig) -> float:
    """From SIGTERM to the end of the process, at most."""
    return config.drain_delay_seconds + config.grace_seconds + LAST_CALLS_SECONDS


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


def test_prometheus_computes_what_the_adapter_will_ask_it(tmp_path):
    promtool = which("promtool")
    assert promtool, "promtool is missing: Debian's package prometheus brings it"
    rules = yaml.safe_load((HERE / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    queries = {rule["name"]["as"]: asked(rule, 'namespace="models",pod=~"busy|idle"') for rule in rules}
    pods = {  # per minute, and scraped no more often: 600 ticks of 24 of 32 slots; and none
        "busy": {
            "ctm_thoughts_waiting": "6+0x10",
            "ctm_occupancy_ratio_sum": "0+450x10",
            "ctm_occupancy_ratio_count": "0+600x10",
        },
        "idle": dict.fromkeys(
            ["ctm_thoughts_waiting", "ctm_occupancy_ratio_sum", "ctm_occupancy_ratio_count"], "0+0x10"
        ),
        "somebody else's": {"ctm_thoughts_waiting": "99+0x10"},
    }
    series = [
        {"series": f'{name}{{namespace="models",pod="{pod}",model="{model}"}}', "values": values}
        for pod, names in pods.items()
        for name, values in names.items()
        for model in ("one", "other")
    ]
    expected = {
        "ctm_thoughts_waiting": {"busy": 12, "idle": 0},
        "ctm_occupancy": {"busy": 0.75, "idle": 0},
    }
    tests = [
        {
            "expr": queries[name],
            "eval_time": "4m30s",
            "exp_samples": [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in values.items()],
        }
        for name, values in expected.items()
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def asked(rule: dict[str, Any], matchers: str) -> str:
    """The query that the adapter sends for the pods of a Deployment."""
    query = rule["metricsQuery"].replace("<<.Series>>", re.match(r"\w+", rule["seriesQuery"])[0])
    return query.replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")


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
