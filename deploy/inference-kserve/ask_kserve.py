"""Ask a server with KServe's own client: `ask_kserve.py ADDRESS DIGITS.npy`; what it was told goes out as JSON."""

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest, InferResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2 import RepositoryModelLoadRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

STRICT = {"certainty_threshold": "0.99", "max_ticks": 12, "abstain_below": "0.9"}
"""This client sends no numbers but whole ones: others go as text."""


def request(
    model: str, name: str, values: Any, datatype: str, *, raw: bool, outputs: tuple[str, ...] = (), **parameters: Any
) -> InferRequest:
    tensor = InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=raw)
    return InferRequest(
        model_name=model,
        infer_inputs=[tensor],
        request_id="mine",
        parameters=parameters,
        request_outputs=[RequestedOutput(output) for output in outputs] or None,
    )


def told(response: InferResponse) -> dict[str, Any]:
    found: dict[str, Any] = {"id": response.id, "version": response.model_version}
    for output in response.outputs:
        values = output.as_numpy()
        found[output.name] = [text.decode() for text in values] if output.datatype == "BYTES" else values.tolist()
    return found


async def refused(client: InferenceGRPCClient, asked: InferRequest) -> list[str]:
    try:
        await client.infer(asked)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    raise AssertionError("nothing was refused")


async def main(address: str, digits: Any) -> dict[str, Any]:
    text = np.array([b"In the beginning", b"And"], object)
    async with InferenceGRPCClient(address, timeout=120) as client, grpc.aio.insecure_channel(address) as channel:
        several = [client.infer(request("mnist", "image", digit[None], "FP32", raw=True, **STRICT)) for digit in digits]
        return {
            "ready": [
                await client.is_server_live(),
                await client.is_server_ready(),
                await client.is_model_ready("mnist"),
                await client.is_model_ready("absent"),
            ],
            "raw": told(await client.infer(request("mnist", "image", digits, "FP32", raw=True, **STRICT))),
            "typed": told(await client.infer(request("mnist", "image", digits, "FP32", raw=False, **STRICT))),
            "at_once": [told(response) for response in await asyncio.gather(*several)],
            "text": told(
                await client.infer(
                    request("kjv", "text", text, "BYTES", raw=False, outputs=("text", "links"), max_links=6, seed=7)
                )
            ),
            "refused": [
                await refused(client, request("absent", "image", digits, "FP32", raw=True)),
                await refused(client, request("mnist", "image", digits, "FP32", raw=False, max_ticks=-1)),
            ],
            "loaded": (
                await GRPCInferenceServiceStub(channel).RepositoryModelLoad(
                    RepositoryModelLoadRequest(model_name="maze")
                )
            ).isLoaded,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], np.load(sys.argv[2])))))
