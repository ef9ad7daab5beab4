"""The Open Inference Protocol of a whole server, on the port that all have: health, reflection, drain."""

import signal
from pathlib import Path

import grpc
import numpy as np
from asked_inference import columns, infer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from served import served

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from serving.tensors import tensor_message

NAME = "inference.GRPCInferenceService"


def signs(rows: int, **parameters: int | float | str) -> oip.ModelInferRequest:
    values = np.where(np.arange(rows * 16).reshape(rows, 16) % 3, 1, -1).astype(np.float32)
    return infer(pb.ThinkRequest(model="parity", inputs=[tensor_message("sequence", values)]), **parameters)


async def test_a_stream_is_answered_to_its_end_while_the_server_drains(model_store: Path):
    async with served(model_store, "--models", "parity", "--reflection", "--grace-seconds", "200") as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = oip_grpc.GRPCInferenceServiceStub(channel)
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
            ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            call = ask(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME)]))
            described = (await call.read()).file_descriptor_response.file_descriptor_proto
            call.cancel()
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert any(b"ModelStreamInfer" in file for file in described)

            listed = (await stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))).models
            assert [(one.name, one.version, one.state) for one in listed] == [("parity", "1", "READY")]

            stream = stub.ModelStreamInfer()
            for _ in range(8):
                await stream.write(signs(64, every=0, disabled="CERTAIN"))
            await stream.write(oip.ModelInferRequest())  # read in order: its failure says that all have arrived
            got = []
            while not (response := await stream.read()).error_message:
                got.append(response)
            server.process.send_signal(signal.SIGTERM)
            while (response := await stream.read()) is not grpc.aio.EOF:
                got.append(response)
            assert await stream.code() is grpc.StatusCode.OK
        whole = [one for one in got if one.infer_response.parameters["triton_final_response"].bool_param]
        assert [columns(one.infer_response)["ticks_used"] for one in whole] == [[24] * 64] * 8
        assert await server.stop() == 0
