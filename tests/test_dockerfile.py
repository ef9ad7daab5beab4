"""The image's steps, run without Docker: the same files, the same pip command, the same settings, and no torch."""

import asyncio
import re
import shutil
import subprocess
import venv
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def copied(stage: str) -> list[tuple[list[str], str]]:
    return [
        (parts[:-1], parts[-1])
        for parts in (line.split()[1:] for line in stage.splitlines() if line.startswith("COPY"))
    ]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The virtual environment that the build stage makes, from the files that it copies."""
    build, _ = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[1:]
    source, target = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("opt") / "ctm"
    for names, _ in copied(build):
        for name in names:
            ignored = shutil.ignore_patterns("__pycache__")
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
    venv.create(target, with_pip=True)
    (install,) = re.findall(r"/opt/ctm/bin/pip (install .*)", build)
    arguments = [argument.strip("'") for argument in install.split() if argument != "--no-cache-dir"]
    subprocess.run([target / "bin" / "pip", "--quiet", *arguments], cwd=source, check=True, timeout=280)
    return target


def settings() -> dict[str, str]:
    (block,) = re.findall(r"^ENV (.*)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.split())


def test_the_image_has_no_torch_and_no_training(environment):
    listed = subprocess.run(
        [environment / "bin" / "pip", "list"], capture_output=True, text=True, check=True
    ).stdout.lower()
    assert "onnxruntime" in listed
    for absent in ("torch", "scikit-learn", "matplotlib", "pytest"):
        assert not re.search(rf"^{absent}\b", listed, re.MULTILINE)


async def test_the_image_serves_from_its_environment_variables(environment, tmp_path):
    shutil.copytree(ROOT / "model_store", tmp_path / "model_store")
    given = settings() | {"PATH": f"{environment}/bin", "CTM_SERVE_STORE": str(tmp_path / "model_store")}
    assert given["CTM_SERVE_ADDRESS"] == "0.0.0.0:50051"
    given |= {
        "CTM_SERVE_ADDRESS": "127.0.0.1:0",
        "CTM_SERVE_HTTP_ADDRESS": "127.0.0.1:0",
    }  # the ports may be taken here
    process = await asyncio.create_subprocess_exec(
        environment / "bin" / "ctm-serve", env=given, cwd=tmp_path, stderr=-1
    )
    try:
        async with asyncio.timeout(60):
            async for line in process.stderr:
                if b'"serving"' in line:
                    break
        port = re.search(rb'"http_port": (\d+)', line)[1].decode()
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def test_the_image_runs_without_root_and_checks_its_health():
    final = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[-1]
    assert re.search(r"^USER (?!root)\w+", final, re.MULTILINE)
    (check,) = re.findall(r"HEALTHCHECK .*CMD (\[.*\])", final)
    assert "/readyz" in check
