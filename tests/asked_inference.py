"""Requests of the Open Inference Protocol for tests, and what their responses hold."""

from typing import Any

import numpy as np

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.tensors import DATATYPES, array, texts


def infer(think: pb.ThinkRequest, *, outputs: tuple[str, ...] = (), **parameters: Any) -> oip.ModelInferRequest:
    """The same rows as `think`, for its model and under its id."""
    message = oip.ModelInferRequest(
        model_name=think.model,
        model_version=str(think.version or ""),
        id=think.request_id,
        inputs=[{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in think.inputs],
        outputs=[{"name": name} for name in outputs],
        raw_input_contents=[one.data for one in think.inputs],
    )
    for name, value in parameters.items():
        kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(message.parameters[name], kinds[type(value)], value)
    return message


def columns(response: oip.ModelInferResponse) -> dict[str, Any]:
    """Every output by name, as lists."""
    found: dict[str, Any] = {}
    for place, output in enumerate(response.outputs):
        if not response.raw_output_contents:
            (_, values) = output.contents.ListFields()[0]
            found[output.name] = [value.decode() if isinstance(value, bytes) else value for value in values]
            continue
        tensor = pb.Tensor(
            name=output.name,
            datatype=output.datatype,
            shape=output.shape,
            data=response.raw_output_contents[place],
        )
        if output.datatype in DATATYPES:
            found[output.name] = np.array(array(tensor)).tolist()
        else:
            found[output.name] = [text.decode() for text in texts(tensor)]
    return found
