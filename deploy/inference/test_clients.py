"""Triton's and KServe's own clients, and Triton's perf_analyzer, against a real server: they see what `Think` sees."""

import asyncio
import json
import os
import re
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import served

from serving.client import AsyncClient, Result

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "model_store"
DIGITS = np.stack(
    [
        (np.asarray(Image.open(path), np.float32) / 255)[None]
        for path in sorted((ROOT / "examples/digits").glob("*.png"))
    ]
)
STRICT = {"threshold": 0.99, "max_ticks": 12, "abstain_below": 0.9}
SECONDS = 600.0

pytestmark = pytest.mark.timeout(1200)


def program(part: str, name: str) -> Path:
    """What an environment of this project's clients holds."""
    path = ROOT / ".venv-deploy" / part / "bin" / name
    assert path.exists(), f"{path} is missing: `make test-deploy` installs deploy/{part}/requirements.txt there"
    return path


async def run(*command: str | Path, **environment: str) -> str:
    """What a program prints, once it has ended well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=ROOT, env=os.environ | environment, stdin=-3, stdout=-1, stderr=-1
    )
    try:
        async with asyncio.timeout(SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{stdout.decode()[-2_000:]}\n{stderr.decode()[-4_000:]}"
    return stdout.decode()


def libraries() -> str:
    """Where perf_analyzer finds what it is linked to."""
    assert find_library("b64"), "perf_analyzer needs libb64.so.0d, which the Debian package libb64-0d brings"
    packages = ROOT / ".venv-deploy" / "inference" / "lib"
    return str(next(packages.glob("*/site-packages/nvidia/cuda_runtime/lib")))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    path = tmp_path / "digits.npy"
    np.save(path, DIGITS)
    return path


def answers(result: Result) -> dict[str, list[Any]]:
    """What Think answered, under the names that this protocol has for it."""
    return {
        "prediction": [answer.prediction.tolist() for answer in result.answers],
        "certainty": pytest.approx([answer.certainty for answer in result.answers], rel=1e-6),
        "ticks_used": [answer.ticks_used for answer in result.answers],
        "answer_tick": [answer.answer_tick for answer in result.answers],
        "stop_reason": [answer.stop_reason.name for answer in result.answers],
        "abstained": [answer.abstained for answer in result.answers],
    }


def same(told: dict[str, Any], expected: dict[str, Any]) -> bool:
    return {name: told[name] for name in expected} == expected


def row(expected: dict[str, Any], number: int) -> dict[str, Any]:
    """One row of what was expected of all."""
    one = {name: [values[number]] for name, values in expected.items() if name != "certainty"}
    return one | {"certainty": pytest.approx([expected["certainty"].expected[number]], rel=1e-6)}


async def test_triton_clients_see_what_think_sees(digits):
    async with served(STORE, "--repository-control", "--store-poll-seconds", "0") as server:
        script = Path(__file__).with_name("ask_triton.py")
        told = json.loads(await run(program("inference", "python"), script, server.address, digits))
        async with AsyncClient(server.address) as client:
            strict = answers(await client.answer("mnist", {"image": DIGITS}, **STRICT))
            plain = answers(await client.answer("mnist", {"image": DIGITS}))
            written = await client.generate(
                "kjv", ["In the beginning", "And"], max_links=6, seed=7, temperature=0.8
            ).result()
            drawn = await client.sample("digits-diffusion", [7, 2], steps=4, seed=3).result()

    assert same(told["whole"], strict)
    assert told["whole"]["id"] == "all"
    assert same(told["defaults"], plain)
    assert told["named"] == {"id": "", "final": False, "ticks_used": plain["ticks_used"]}
    assert set(strict["stop_reason"]) == {"CERTAIN", "TICK_BUDGET"}, "digits of both kinds"
    for number, alone in enumerate(told["at_once"]):
        assert same(alone, row(strict, number)), number

    for number in range(len(DIGITS)):
        *ticks, last = told["streamed"][str(number)]
        assert same(last, row(strict, number)), number
        assert [tick["tick"] for tick in ticks] == [[tick] for tick in range(1, last["ticks_used"][0] + 1)]
        assert max(tick["certainty"][0] for tick in ticks) == last["certainty"][0]
    (failure,) = told["streamed"]["failed"]
    assert failure == "stop.max_ticks: got 1000, expected 1 to 40, the tick cap of mnist/1"

    assert told["text"]["text"] == list(written.summary.texts)
    assert told["text"]["ticks_used"] == [sum(link.ticks_used for link in links) for links in written.links]
    *links, last = told["text_streamed"]["0"]
    assert last["text"] == told["text"]["text"]
    for number in (0, 1):
        tokens = [link["token"][0] for link in links if link["row"] == [number]]
        assert tokens == [answer.token for answer in written.links[number]]
    assert told["images"]["image"] == drawn.images.tolist()

    *shown, last, empty = told["async"]
    assert [one["final"] for one in told["async"]] == [False] * (len(shown) + 1) + [True]
    assert empty.keys() == {"id", "final"}
    assert same(last, plain)
    assert all(tick["tick"][0] % 4 == 0 and len(tick["prediction"][0]) == 10 for tick in shown if "tick" in tick)

    described = told["described"]
    assert (described["ready"], described["unknown"]) == ([True, True, True], False)
    assert described["server"]["name"] == "ctm-serving"
    assert {output["name"] for output in described["metadata"]["outputs"]} == plain.keys()
    assert described["config"]["max_batch_size"] == 256
    assert [status for status, _ in told["refused"]] == ["StatusCode.NOT_FOUND"] + ["StatusCode.INVALID_ARGUMENT"] * 3
    assert all(re.search("got .*, expected|no model 'absent'; served are", sentence) for _, sentence in told["refused"])

    counts = told["statistics"]["inference_stats"]
    asked = 3 + 2 * len(DIGITS) + 1  # whole, defaults, named; at once and streamed; async
    assert (counts["success"]["count"], counts["fail"]["count"]) == (str(asked), "4")
    assert told["statistics"]["inference_count"] == str(6 * len(DIGITS))

    changed = told["changed"]
    assert changed["parity"] == ["READY", "UNAVAILABLE", "READY"]
    assert (changed["unloaded_is_ready"], changed["loaded_is_ready"]) == (False, True)
    assert changed["absent"][0] == "StatusCode.NOT_FOUND"


async def test_the_example_runs_as_written():
    page = (ROOT / "deploy" / "inference" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    async with served(STORE, "--models", "mnist") as server:
        code = example.replace("127.0.0.1:50051", server.address)
        printed = await run(program("inference", "python"), "-c", code)
    assert re.search(r"stop_reason \[b'CERTAIN'\]", printed), printed
    assert re.search(r"\[1\]\n\[2\]\n.*None\n$", printed, re.DOTALL), printed


async def test_kserve_clients_see_what_think_sees(digits):
    async with served(STORE, "--repository-control") as server:
        script = ROOT / "deploy" / "inference-kserve" / "ask_kserve.py"
        told = json.loads(await run(program("inference-kserve", "python"), script, server.address, digits))
        async with AsyncClient(server.address) as client:
            strict = answers(await client.answer("mnist", {"image": DIGITS}, **STRICT))
            written = await client.generate("kjv", ["In the beginning", "And"], max_links=6, seed=7).result()
    assert told["ready"] == [True, True, True, False]
    assert same(told["raw"], strict)
    assert same(told["typed"], strict)
    assert (told["raw"]["id"], told["raw"]["version"]) == ("mine", "1")
    for number, alone in enumerate(told["at_once"]):
        assert same(alone, row(strict, number)), number
    assert told["text"]["text"] == list(written.summary.texts)
    assert told["text"]["links"] == [6, 6]
    assert [status for status, _ in told["refused"]] == ["NOT_FOUND", "INVALID_ARGUMENT"]
    assert told["loaded"]


PERF_ANALYZER = ("--measurement-mode", "count_windows", "--measurement-request-count", "20", "--max-trials", "4")
"""A stability that is always reached: it is the counts that are looked at here."""


@pytest.mark.parametrize(
    ("model", "arguments", "rows"),
    [
        pytest.param("mnist", ("--concurrency-range", "4"), 1, id="unary"),
        pytest.param("mnist", ("--concurrency-range", "4", "-b", "3"), 3, id="in rows"),
        pytest.param("mnist", ("--concurrency-range", "4", "--async", "--streaming"), 1, id="streaming every tick"),
        pytest.param("kjv", ("--string-data", "In the", "--request-parameter", "max_links:2:int"), 1, id="of text"),
    ],
)
async def test_perf_analyzer_measures_what_the_server_did(tmp_path, model, arguments, rows):
    data = tmp_path / "digits.json"
    data.write_text(json.dumps({"data": [{"image": {"content": digit.ravel().tolist()}} for digit in DIGITS]}))
    async with served(STORE, "--models", model) as server:
        printed = await run(
            *(program("inference", "perf_analyzer"), "-m", model, "-u", server.address, "-i", "grpc"),
            *(*PERF_ANALYZER, "--stability-percentage", "999", *arguments),
            *(("--input-data", str(data)) if model == "mnist" else ()),
            LD_LIBRARY_PATH=libraries(),
        )
    found = {name: float(number) for name, number in re.findall(r"([A-Z][\w ]+?): ([\d.]+)", printed)}
    assert found["Successful request count"] == pytest.approx(found["Request count"], abs=8), (
        "those at a window's edges"
    )
    assert found["Inference count"] == rows * found["Successful request count"]
    assert found["Throughput"] > 0
    assert re.search(r"queue \d+ usec \+ compute input \d+ usec \+ compute infer [1-9]\d* usec", printed), printed


async def test_every_message_is_the_one_that_triton_and_kserve_have():
    script = Path(__file__).with_name("fields.py")
    ours, triton, kserve = [
        json.loads(await run(python, "-W", "ignore", script, *modules, PYTHONPATH=str(ROOT)))
        for python, modules in (
            (sys.executable, ["protos.open_inference_pb2"]),
            (program("inference", "python"), ["tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"]),
            (program("inference-kserve", "python"), ["kserve.protocol.grpc.grpc_predict_v2_pb2"]),
        )
    ]
    published = triton[0] | triton[1]
    for name, described in ours[0].items():
        assert described in (published.get(name), kserve[0].get(name)), name
    assert {name for name in published if name.startswith("inference.GRPCInferenceService.Model")} <= ours[0].keys()
