"""Ask a server with Triton's own client: `ask_triton.py ADDRESS DIGITS.npy`; what it was told goes out as JSON."""

import asyncio
import json
import sys
from collections.abc import Sequence
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

STRICT = {"certainty_threshold": 0.99, "max_ticks": 12, "abstain_below": 0.9}
WRITE = {"max_links": 6, "seed": 7, "temperature": 0.8}
DRAW = {"steps": 4, "seed": 3}
SECONDS = 120.0


def tensor(name: str, values: Any, datatype: str) -> triton.InferInput:
    array = np.asarray(values, object if datatype == "BYTES" else None)
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def image(digits: Any) -> list[triton.InferInput]:
    return [tensor("image", digits, "FP32")]


def told(result: triton.InferResult) -> dict[str, Any]:
    """The outputs of one response, with its id and whether it is the last."""
    response = result.get_response()
    found: dict[str, Any] = {"id": response.id, "final": response.parameters["triton_final_response"].bool_param}
    for output in response.outputs:
        values = result.as_numpy(output.name)
        found[output.name] = [text.decode() for text in values] if output.datatype == "BYTES" else values.tolist()
    return found


def at_once(client: triton.InferenceServerClient, digits: Any) -> list[dict[str, Any]]:
    """Every digit by itself, all in flight together."""
    answers: Queue[Any] = Queue()
    for number, digit in enumerate(digits):
        client.async_infer(
            "mnist",
            image(digit[None]),
            callback=lambda result, error: answers.put(error or result),
            request_id=str(number),
            parameters=STRICT,
            client_timeout=SECONDS,
        )
    found = [answers.get(timeout=SECONDS) for _ in digits]
    return sorted((told(result) for result in found), key=lambda answer: int(answer["id"]))


def streamed(client: triton.InferenceServerClient, requests: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Several requests on one stream, by id: what was told of each, in order; of a failure its sentence."""
    responses: Queue[Any] = Queue()
    client.start_stream(callback=lambda result, error: responses.put(error or result))
    found: dict[str, list[Any]] = {}
    try:
        for number, request in enumerate(requests):
            client.async_stream_infer(request_id=str(number), **request)
        left = len(requests)
        while left:
            response = responses.get(timeout=SECONDS)
            if isinstance(response, InferenceServerException):
                found.setdefault("failed", []).append(response.message())
                left -= 1
                continue
            one = told(response)
            found.setdefault(one["id"], []).append(one)
            left -= one["final"]
    finally:
        client.stop_stream()
    return found


async def streamed_async(address: str, digits: Any) -> list[dict[str, Any]]:
    """One stream of the asyncio client, ended by an empty response."""

    async def requests() -> Any:
        yield {
            "model_name": "mnist",
            "inputs": image(digits),
            "request_id": "async",
            "parameters": {"every": 4, "predictions": True, "triton_enable_empty_final_response": True},
        }

    async with triton_aio.InferenceServerClient(address) as client:
        found = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            found.append(told(result))
        return found


def refused(call: Any) -> list[str]:
    """The status and the sentence of a call that fails."""
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("nothing was refused")


def described(client: triton.InferenceServerClient) -> dict[str, Any]:
    return {
        "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("mnist")],
        "unknown": client.is_model_ready("absent"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("mnist", as_json=True),
        "config": client.get_model_config("mnist", as_json=True)["config"],
    }


def changed(client: triton.InferenceServerClient) -> dict[str, Any]:
    """What becomes of a model that is unloaded and loaded again."""

    def state() -> dict[str, str]:
        index = client.get_model_repository_index(as_json=True)
        return {model["name"]: model["state"] for model in index["models"]}

    states = [state()]
    client.unload_model("parity")
    states.append(state())
    ready = client.is_model_ready("parity")
    client.load_model("parity")
    states.append(state())
    return {
        "parity": [found["parity"] for found in states],
        "unloaded_is_ready": ready,
        "loaded_is_ready": client.is_model_ready("parity"),
        "absent": refused(lambda: client.load_model("absent")),
    }


def main(address: str, digits: Any) -> dict[str, Any]:
    prompts, label = (
        [tensor("text", ["In the beginning", "And"], "BYTES")],
        [tensor("label", np.array([7, 2]), "INT64")],
    )
    with triton.InferenceServerClient(address) as client:
        whole = told(client.infer("mnist", image(digits), request_id="all", parameters=STRICT))
        found = {
            "described": described(client),
            "whole": whole,
            "defaults": told(client.infer("mnist", image(digits))),
            "named": told(
                client.infer(
                    "mnist", image(digits), outputs=[triton.InferRequestedOutput("ticks_used")], timeout=60_000_000
                )
            ),
            "at_once": at_once(client, digits),
            "streamed": streamed(
                client,
                [{"model_name": "mnist", "inputs": image(digit[None]), "parameters": STRICT} for digit in digits]
                + [{"model_name": "mnist", "inputs": image(digits), "parameters": {"every": 0, "max_ticks": 1_000}}],
            ),
            "text": told(client.infer("kjv", prompts, parameters=WRITE)),
            "text_streamed": streamed(
                client, [{"model_name": "kjv", "inputs": prompts, "parameters": {**WRITE, "every": 0}}]
            ),
            "images": told(client.infer("digits-diffusion", label, parameters=DRAW)),
            "async": asyncio.run(streamed_async(address, digits)),
            "refused": [
                refused(lambda: client.infer("absent", image(digits))),
                refused(lambda: client.infer("mnist", image(digits[:, :, :9]))),
                refused(lambda: client.infer("mnist", image(digits), parameters={"certainty_threshold": 1.5})),
                refused(lambda: client.infer("mnist", image(digits), sequence_id=3)),
            ],
            "statistics": client.get_inference_statistics("mnist", as_json=True)["model_stats"][0],
        }
        return found | {"changed": changed(client)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], np.load(sys.argv[2]))))
