"""compose.yaml, as far as that goes without a Docker engine: Debian's docker-compose reads it, and its parts fit."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
COMPOSE = (HERE / "compose.yaml").read_text()


def read_by_compose(**environment: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    assert program is not None, "there is no `docker-compose` here: Debian's package docker-compose brings it"
    older = re.sub(r"^name: .*$", "", COMPOSE, flags=re.MULTILINE)  # which Debian's does not know yet
    return subprocess.run(
        [program, "--file", "-", "config"],
        input=older,
        cwd=HERE,
        env={"PATH": os.environ["PATH"], **environment},
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As compose understands them."""
    done = read_by_compose(GRAFANA_PASSWORD="chosen")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where in the container -> which file or folder here."""
    return {there: here for here, there, *_ in (volume.split(":") for volume in service["volumes"])}


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = (HERE / "grafana" / "provisioning" / kind).iterdir()
    return yaml.safe_load(path.read_text())


def test_no_grafana_without_a_password():
    done = read_by_compose()
    assert done.returncode != 0
    assert "choose the password of Grafana's user admin" in done.stderr


def test_what_is_mounted_is_there_and_cannot_be_written(services):
    for name, service in services.items():
        for volume in service["volumes"]:
            here, _, mode = volume.split(":")
            if here.startswith("/"):
                assert Path(here).exists(), f"{name}: {here}"
                assert mode == "ro", volume
            else:
                assert here == name, "each keeps its own data"


def test_ports_are_open_to_this_machine_alone(services):
    ports = {name: service["ports"] for name, service in services.items()}
    assert set(ports) == {"server", "prometheus", "grafana"}
    for port in (port for of_service in ports.values() for port in of_service):
        assert port.startswith("127.0.0.1:"), port


def test_prometheus_finds_its_configuration_and_the_server(services):
    (option,) = (word for word in services["prometheus"]["command"] if word.startswith("--config.file="))
    folder = mounts(services["prometheus"])["/etc/prometheus"]
    configuration = Path(folder) / Path(option.partition("=")[2]).relative_to("/etc/prometheus")
    (job,) = yaml.safe_load(configuration.read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in services
    dockerfile = (HERE.parent / "Dockerfile").read_text()
    assert f"CTM_SERVE_HTTP_ADDRESS=0.0.0.0:{port} " in dockerfile


def test_grafana_finds_prometheus_and_the_dashboards(services):
    (source,) = provisioned("datasources")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    shipped = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == shipped["global"]["scrape_interval"], "rates are taken over enough"
    (provider,) = provisioned("dashboards")["providers"]
    folder = Path(mounts(services["grafana"])[provider["options"]["path"]])
    assert sorted(path.name for path in folder.glob("*.json")) == ["server.json", "thoughts.json"]
    assert mounts(services["grafana"])["/etc/grafana/provisioning"] == str(HERE / "grafana" / "provisioning")
