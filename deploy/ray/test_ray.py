"""A real Ray on this machine: Ray Serve answers as `Think` does, and Ray Data scores as `ctm-think --input` does."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from local_ray import BIN, ROOT, running_ray
from pyarrow import parquet

from deploy.ports import free_ports
from serving.client import Answer, AsyncClient, Event, InvalidRequest, Tick, UnknownModel
from serving.request import Array
from serving.server import Server
from serving.settings import ServerConfig

pytestmark = pytest.mark.timeout(1800)

STORE = ROOT / "model_store"
DIGITS = np.random.default_rng(3).random((24, 1, 28, 28), np.float32)


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, str]]:
    assert (BIN / "ray").exists(), f"{BIN} is missing: `make test-deploy` makes it of deploy/ray/requirements.txt"
    with running_ray() as environment:
        yield environment


@asynccontextmanager
async def our_server() -> AsyncIterator[AsyncClient]:
    server = Server(ServerConfig(address="127.0.0.1:0", http_address="127.0.0.1:0", store=STORE, models=("mnist",)))
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            yield client
    finally:
        await server.drain()


@asynccontextmanager
async def served_by_ray(ray: dict[str, str]) -> AsyncIterator[AsyncClient]:
    port, http_port = free_ports(2)
    command = [BIN / "python", "-m", "deploy.ray.serve_here", str(port), str(http_port), str(STORE)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ray, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = b""
        while (line := await process.stdout.readline()) and line != b"ready\n":
            said += line
        assert line, f"Ray Serve did not start:\n{said.decode()[-3000:]}"
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), 120)
        except TimeoutError:
            process.kill()
            await process.wait()


async def events(client: AsyncClient, digits: Array) -> list[list[Event]]:
    """What is told of each digit, all asked at once: each by itself, as ticks of many rows give way to newer ones."""

    async def of(digit: Array) -> list[Event]:
        inputs = {"image": digit[None]}
        async with client.think("mnist", inputs, top_k=3, threshold=0.7, predictions=True) as thinking:
            return [event async for event in thinking]

    return await asyncio.gather(*map(of, digits))


def described(told: list[Event]) -> list[tuple[object, ...]]:
    """Ticks and answer, to the bit."""
    return [
        (type(event), event.certainty, event.top, None if event.prediction is None else event.prediction.tobytes())
        for event in told
        if isinstance(event, Tick | Answer)
    ]


async def test_ray_serve_thinks_as_the_server_does(ray: dict[str, str]):
    async with our_server() as ours, served_by_ray(ray) as theirs:
        assert [(model.name, model.ticks) for model in await theirs.list_models()] == [("mnist", 20)]
        assert await theirs.get_model("mnist") == await ours.get_model("mnist")
        expected, *told = await asyncio.gather(events(ours, DIGITS), *(events(theirs, DIGITS) for _ in range(3)))
        for one in told:
            assert list(map(described, one)) == list(map(described, expected))
        with pytest.raises(InvalidRequest, match="input 'image', shape: got "):
            await theirs.answer("mnist", {"image": DIGITS[:, 0]})
        with pytest.raises(UnknownModel, match="no model 'letters'; served are mnist"):
            await theirs.answer("letters", {"image": DIGITS})
        async for event in theirs.think("mnist", {"image": DIGITS}, threshold=1.0):
            assert isinstance(event, Tick)
            break  # leaving it is no error, and the next is answered
        assert len((await theirs.answer("mnist", {"image": DIGITS})).answers) == len(DIGITS)


async def test_ray_data_scores_as_the_server_answers(ray: dict[str, str], tmp_path: Path):
    (tmp_path / "in").mkdir()
    rows = DIGITS.reshape(len(DIGITS), -1)
    for part in range(2):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(rows[part * 12 : part * 12 + 12].reshape(-1)), 784)
        names = [f"{part * 12 + index}" for index in range(12)]
        parquet.write_table(pa.table({"pixels": flat, "name": names}), tmp_path / f"in/{part}.parquet")
    command = [
        *(BIN / "python", "-m", "deploy.ray.score", "--store", STORE, "--model", "mnist", "--column", "pixels"),
        *("--input", tmp_path / "in", "--output", tmp_path / "out"),
    ]
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ray, cwd=ROOT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-3000:]
    scored = {line["name"]: line for line in parquet.read_table(tmp_path / "out").to_pylist()}
    async with our_server() as ours:
        answers = (await ours.answer("mnist", {"image": DIGITS})).answers
    assert set(scored) == {str(row) for row in range(len(DIGITS))}
    for answer in answers:
        line = scored[str(answer.row)]
        assert line["error"] is None
        assert (line["prediction"], line["ticks_used"]) == (answer.label, answer.ticks_used)
        assert line["stop_reason"] == answer.stop_reason.name
        assert line["certainty"] == pytest.approx(answer.certainty, abs=1e-6)
