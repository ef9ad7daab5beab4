"""A real TorchServe with every model that ships, beside ctm-serve: same answers and ticks; refusals, tokens, counts."""

import json
import re
import subprocess
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from deploy.ports import free_ports
from deploy.torchserve.archive import ROOT
from deploy.torchserve.plain import answered, answers, array, events, expected, image, ticks
from deploy.torchserve.running import PYTHON, TorchServe, ctm_serve, torchserve
from serving.client import Client, Tick
from serving.client.events import Event

PORTS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_port",
    "grpc_management_port",
)
MODELS = ("digits-diffusion", "kjv", "maze", "mnist", "parity")
DIGITS = [
    (np.asarray(Image.open(path), np.float32) / 255)[None, None]
    for path in sorted((ROOT / "examples" / "digits").glob("*.png"))
]
MAZES = ROOT / "examples" / "mazes"
SCRIPTED = "mnist-torchscript"
WATCH = {"every": 1, "top_k": 1}

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the shipped store; and once more of one model, with its TorchScript graphs."""
    if not PYTHON.exists():
        pytest.fail(f"there is no {PYTHON}; `make test-deploy` makes it")
    output, scripted = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("scripted")
    folders = [f"model_store/{model}" for model in MODELS]
    made = pack(*folders, "--output", str(output), "--grpc-streams")
    assert made == [*(f"{output / model}.mar" for model in MODELS), str(output / "config.properties")]
    pack("model_store/mnist/1", "--output", str(scripted), "--backend", "torchscript")
    (scripted / "mnist.mar").rename(output / f"{SCRIPTED}.mar")
    return output


def pack(*arguments: str) -> list[str]:
    """What the command prints."""
    command = [str(PYTHON), "-m", "deploy.torchserve", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def server(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """TorchServe with the configuration that the command wrote, but for its ports and the model packed apart."""
    config = archives / "config.properties"
    text = re.sub("^load_models=.*$", rf"\g<0>,{SCRIPTED}={SCRIPTED}.mar", config.read_text(), flags=re.MULTILINE)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for name, port in ports.items():
        text = re.sub(rf"^({name}=(?:http://127\.0\.0\.1:)?)\d+$", rf"\g<1>{port}", text, flags=re.MULTILINE)
    config.write_text(text)
    with torchserve(config, tmp_path_factory.mktemp("ts"), ports, [*MODELS, SCRIPTED]) as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with ctm_serve() as address, Client(address) as connected:
        yield connected


@pytest.fixture(scope="module")
def stub(server: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Grpc]":
    """TorchServe's own gRPC service, by the definition that it ships."""
    folder = tmp_path_factory.mktemp("proto")
    (jar,) = PYTHON.parent.parent.glob("lib/python*/site-packages/ts/frontend/model-server.jar")
    with zipfile.ZipFile(jar) as contents:
        contents.extract("proto/inference.proto", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        messages, services = grpc.protos_and_services("proto/inference.proto")
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference_port']}") as channel:
        yield Grpc(server, services.InferenceAPIsServiceStub(channel), messages.PredictionsRequest)


@dataclass
class Grpc:
    """TorchServe's gRPC service, with the key that it wants."""

    server: TorchServe
    stub: Any
    message: Any

    def call(self, method: str, model: str, request: object, name: str = "data", key: str | None = None) -> Any:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        token = self.server.keys["inference"] if key is None else key
        metadata = (("authorization", f"Bearer {token}"), ("protocol", "gRPC"))
        call = getattr(self.stub, method)
        start = call.future if method == "Predictions" else call
        return start(self.message(model_name=model, input={name: body}), metadata=metadata, timeout=120)


@pytest.fixture(scope="module")
def digits(client: Client) -> list[tuple[Any, ...]]:
    """What Think answers to each digit."""
    told = [expected(client.answer("mnist", {"image": digit})) for digit in DIGITS]
    assert len({one[0][2] for one in told}) > 3, "they need different numbers of ticks"
    return [one[0] for one in told]


@pytest.fixture(scope="module")
def watched(client: Client) -> list[tuple[Any, ...]]:
    """The ticks that Think shows of the first digit."""
    seen: list[Event] = list(client.think("mnist", {"image": DIGITS[0]}, top_k=1))
    return [(one.tick, np.float32(one.certainty), one.top[0].label) for one in seen if isinstance(one, Tick)]


def test_digits_at_once_over_http_are_answered_as_think_answers_them(
    server: TorchServe, digits: list[tuple[Any, ...]]
) -> None:
    with ThreadPoolExecutor(len(DIGITS)) as pool:
        replies = list(pool.map(lambda digit: server.predict("mnist", image(digit)), DIGITS))
    assert {status for status, _ in replies} == {200}
    assert [answered(reply["answers"])[0] for _, reply in replies] == digits
    status, together = server.predict("mnist", image(np.concatenate(DIGITS)))
    assert (status, [one[2:] for one in answered(together["answers"])]) == (200, [one[2:] for one in digits])
    assert together["summary"]["abstain_mask"] == [False] * len(DIGITS)


def test_ticks_are_streamed_over_http(
    server: TorchServe, digits: list[tuple[Any, ...]], watched: list[tuple[Any, ...]]
) -> None:
    body = json.dumps(image(DIGITS[0], stream=WATCH)).encode()
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: server.ask("/predictions/mnist", body), range(4)))
    for reply in replies:
        assert (reply.status, reply.headers["transfer-encoding"]) == (200, "chunked")
        assert reply.headers["content-type"] == "application/x-ndjson"
        told = events(reply.body)
        assert ticks(told) == watched
        assert answered(answers(told)) == [digits[0]]
        assert told[-1]["summary"]["model"] == "mnist"


def test_digits_at_once_over_grpc_are_answered_as_think_answers_them(stub: Grpc, digits: list[tuple[Any, ...]]) -> None:
    calls = [stub.call("Predictions", "mnist", image(digit)) for digit in DIGITS]
    replies = [json.loads(call.result().prediction) for call in calls]
    assert [answered(reply["answers"])[0] for reply in replies] == digits


def test_ticks_are_streamed_over_grpc(
    stub: Grpc, digits: list[tuple[Any, ...]], watched: list[tuple[Any, ...]]
) -> None:
    calls = [stub.call("StreamPredictions", "mnist", image(DIGITS[0], stream=WATCH), "stream") for _ in range(4)]
    for call in calls:
        messages = [message.prediction for message in call]
        assert len(messages) >= len(watched), "each tick comes by itself"
        told = events(b"".join(messages))
        assert ticks(told) == watched
        assert answered(answers(told)) == [digits[0]]
    (whole,) = stub.call("StreamPredictions", "mnist", image(DIGITS[0]))
    assert answered(json.loads(whole.prediction)["answers"]) == [digits[0]], "not asked to stream, it does not"


def test_torchscript_answers_the_same(server: TorchServe, digits: list[tuple[Any, ...]]) -> None:
    _, reply = server.predict(SCRIPTED, image(np.concatenate(DIGITS)))
    assert [one["ticks_used"] for one in reply["answers"]] == [digit[2] for digit in digits]
    for one, digit in zip(reply["answers"], digits, strict=True):
        assert array(one["prediction"]).tolist() == pytest.approx(digit[7], abs=1e-4)


def test_mazes_and_parity_are_answered_as_think_answers_them(server: TorchServe, client: Client) -> None:
    drawn = [np.asarray(Image.open(path), np.float32)[8::16, 8::16] for path in sorted(MAZES.glob("*.png"))[:3]]
    mazes = np.stack([picture.transpose(2, 0, 1) / 255 for picture in drawn])
    signs = np.random.default_rng(7).choice(np.array([-1, 1], np.float32), (3, 16))
    for model, name, values in (("maze", "maze", mazes), ("parity", "sequence", signs)):
        _, reply = server.predict(model, {"inputs": [{"name": name, "data": values.tolist()}]})
        assert answered(reply["answers"]) == expected(client.answer(model, {name: values}))


def test_a_text_is_written_as_think_writes_it(server: TorchServe, client: Client) -> None:
    prompts = ["In the beginning", "And the LORD said"]
    result = client.generate("kjv", prompts, max_links=12, temperature=0.8, seed=7).result()
    request = {
        "inputs": [{"name": "text", "data": prompts}],
        "chain": {"max_links": 12, "seed": 7, "options": {"temperature": {"number": 0.8}}},
    }
    _, whole = server.predict("kjv", request)
    assert answered(whole["answers"]) == expected(result)
    assert whole["summary"]["texts"] == list(result.summary.texts)
    body = json.dumps(request | {"stream": {"every": 0}}).encode()
    told = events(server.ask("/predictions/kjv", body).body)
    assert sorted(answered(answers(told))) == expected(result), "token by token, as they come"
    assert [link["link"] for link in answers(told) if link["row"] == 0] == list(range(12))


def test_images_are_drawn_as_think_draws_them(server: TorchServe, client: Client) -> None:
    drawn = client.sample("digits-diffusion", [7, 3], steps=8, seed=1, abstain_below=0.6).result()
    request = {
        "inputs": [{"name": "label", "data": [7, 3]}],
        "chain": {"seed": 1, "options": {"steps": {"integer": 8}}},
        "abstain_below": 0.6,
    }
    _, reply = server.predict("digits-diffusion", request)
    images = {output["name"]: array(output) for output in reply["summary"]["outputs"]}
    assert images["image"].tolist() == drawn.images.tolist()
    assert reply["summary"]["abstentions"] == list(drawn.summary.abstentions)
    assert answered(reply["answers"]) == expected(drawn)


def test_an_answer_that_is_not_certain_enough_abstains(server: TorchServe) -> None:
    _, reply = server.predict("mnist", image(DIGITS[1], abstain_below=1.0, stop={"max_ticks": 2}))
    (answer,) = reply["answers"]
    assert (answer["abstained"], answer["ticks_used"], answer["stop_reason"]) == (True, 2, "TICK_BUDGET")
    assert reply["summary"]["abstain_mask"] == [True]


def test_bad_input_is_refused_and_hurts_nobody(server: TorchServe, stub: Grpc, digits: list[tuple[Any, ...]]) -> None:
    bad = image(DIGITS[0][:, :, :27])
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda one: server.predict("mnist", one), [image(DIGITS[0]), bad] * 6))
    for place, (status, reply) in enumerate(replies):
        if place % 2:
            said = "input 'image', shape: got [1, 1, 27, 28], expected [rows, 1, 28, 28]"
            assert (status, reply["failure"]["message"]) == (400, said)
        else:
            assert answered(reply["answers"]) == [digits[0]]
    status, reply = server.predict("mnist", image(DIGITS[0], model="kjv"))
    assert (status, reply["failure"]["code"]) == (404, "NOT_FOUND")
    with pytest.raises(grpc.RpcError, match=r"expected \[rows, 1, 28, 28\]") as caught:
        list(stub.call("StreamPredictions", "mnist", bad, "stream"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_token_is_wanted(server: TorchServe, stub: Grpc) -> None:
    body = json.dumps(image(DIGITS[0])).encode()
    for key in ("", "management"):
        reply = server.ask("/predictions/mnist", body, key=key)
        assert (reply.status, reply.document["type"]) == (400, "InvalidKeyException")
    assert server.ask("/models", port="management", key="inference").status == 400
    with pytest.raises(grpc.RpcError) as caught:
        stub.call("Predictions", "mnist", body, key="guessed").result()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_model_describes_itself(server: TorchServe) -> None:
    said = server.describe("mnist", customized=True)
    assert (said["modelVersion"], said["batchSize"]) == ("1", 64)
    assert said["customizedMetadata"]["labels"] == [str(digit) for digit in range(10)]


def test_the_metrics_endpoint_counts_what_callers_counted(server: TorchServe, digits: list[tuple[Any, ...]]) -> None:
    before = sample(server)
    for digit in DIGITS:
        assert server.predict("mnist", image(digit))[0] == 200
    assert server.predict("mnist", {})[0] == 400
    used = sum(digit[2] for digit in digits)
    saved = sum(20 - digit[2] for digit in digits if digit[4] == "CERTAIN")
    wanted = {
        "ctm_ticks_used_sum": used,
        "ctm_ticks_used_count": len(DIGITS),
        "ctm_request_ticks_sum": used,
        "ctm_thoughts_total": len(DIGITS),
        "ctm_ticks_saved_total": saved,
        "ctm_rejections_total": 1,
        "ctm_stop_certainty_count": len(DIGITS),
        "ctm_think_seconds_count": len(DIGITS),
        "ctm_first_tick_seconds_count": len(DIGITS),
    }
    deadline = time.monotonic() + 60  # TorchServe reads them from the worker's log
    while (counted := difference(before, sample(server), wanted)) != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    assert counted == wanted


def sample(server: TorchServe) -> dict[str, float]:
    """What the endpoint says of mnist, over all other labels."""
    found: dict[str, float] = {}
    for line in server.ask("/metrics", port="metrics").body.decode().splitlines():
        if not line.startswith("#") and 'ModelName="mnist"' in line and "_bucket" not in line:
            name = line.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(line.rsplit(maxsplit=1)[1])
    return found


def difference(before: dict[str, float], after: dict[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: after.get(name, 0.0) - before.get(name, 0.0) for name in names}
