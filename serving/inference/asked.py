"""What a caller of the Open Inference Protocol asks for: the request that `Think` would take, and how to answer it."""

import re
from dataclasses import dataclass
from math import prod

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.bundle import Bundle
from serving.diffusion.contract import LABEL
from serving.inference.outputs import is_chain, outputs_of
from serving.inference.parameters import EMPTY_FINAL, flag, write_parameters
from serving.inference.tensors import check_tensor_parameters, input_tensors
from serving.mismatch import Mismatch, listing, quote
from serving.tensors import DATATYPES, datatype
from serving.text.contract import PROMPT

_TEXT_INPUTS = 3  # a text, or tokens with or without their length


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, not yet checked against its model but for the form of it."""

    think: pb.ThinkRequest
    outputs: frozenset[str]
    """Wanted of the last response; empty: all."""
    raw: bool
    """Whether outputs go out as bytes: as the inputs came."""
    predictions: bool
    """Whether ticks, and answers on the way, are to show theirs."""
    empty_final: bool
    """Whether a stream's last response is one without outputs."""


def version_number(text: str) -> int:
    """The version of that name; 0, the newest, of an empty one.

    Raises:
        Mismatch: there can be none.
    """
    if text and not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise Mismatch("model version", quote(text), "a whole number from 1, or none for the newest")
    return int(text or 0)


def parse(message: oip.ModelInferRequest, bundle: Bundle, *, max_rows: int, max_bytes: int, streams: bool) -> Asked:
    """Read a request for this bundle.

    Args:
        max_bytes: of a response.
        streams: whether there may be responses before the last.

    Raises:
        Mismatch: it cannot be read, asks for outputs that there are not or that fit in no response, or for ticks where
            there is one response.
    """
    think = pb.ThinkRequest(request_id=message.id, model=bundle.name, version=bundle.version)
    write_parameters(message.parameters, think)
    outputs = _outputs(message, bundle)
    predictions = think.stream.predictions
    if not streams:
        if think.stream.every:
            raise Mismatch("parameter 'every'", think.stream.every, "0: ModelStreamInfer alone sends ticks")
        think.stream.every = 0
        if bundle.diffusion is not None:
            think.chain.options["every"].integer = 0  # nobody sees the images on the way
    if is_chain(bundle) and (not streams or bundle.program.prediction.name in outputs):
        think.stream.predictions = True  # else a chain has forgotten them when it ends
    specs = bundle.program.inputs
    inputs = input_tensors(
        message,
        singles={PROMPT, *(spec.name for spec in specs if not spec.shape)},
        most_inputs=max(len(specs), _TEXT_INPUTS),
        most_values=max_rows * max(prod(spec.shape) for spec in specs),
    )
    think.inputs.extend(inputs)
    rows = min([max_rows, *(tensor.shape[0] for tensor in inputs if tensor.shape)])
    _check_size(rows, outputs, bundle, max_bytes)
    return Asked(
        think=think,
        outputs=outputs,
        raw=bool(message.raw_input_contents),
        predictions=predictions,
        empty_final=flag(message.parameters, EMPTY_FINAL),
    )


def inputs_of(bundle: Bundle) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a request must hold, datatype and one row's shape by name: the simplest that text and diffusion take.

    A single value has the shape [1], because Triton's tools cannot send one without a shape; [] will do as well.
    """
    if bundle.text is not None:
        return {PROMPT: ("BYTES", (1,))}
    if bundle.diffusion is not None:
        return {LABEL: ("INT64", (1,))}
    return {spec.name: (datatype(spec.dtype), spec.shape or (1,)) for spec in bundle.program.inputs}


def _check_size(rows: int, wanted: frozenset[str], bundle: Bundle, most: int) -> None:
    """Refuse what would be thought about in vain: all rows leave in one message, which may be too large for gRPC."""
    found = [output for name, output in outputs_of(bundle).items() if name in wanted or not wanted]
    size = rows * sum(DATATYPES[datatype].itemsize * prod(shape) for datatype, shape in found if datatype in DATATYPES)
    if size > most:
        expected = f"at most {most} in one message; ask for fewer rows, or name the outputs that matter"
        raise Mismatch(f"outputs of {rows} rows", f"{size} bytes", expected)


def _outputs(message: oip.ModelInferRequest, bundle: Bundle) -> frozenset[str]:
    known = outputs_of(bundle)
    found: set[str] = set()
    for output in message.outputs:
        if output.name not in known:
            raise Mismatch("outputs", quote(output.name), f"of {listing(known)}")
        if output.name in found:
            raise Mismatch("outputs", f"{quote(output.name)} twice", "each output once")
        check_tensor_parameters(f"output {quote(output.name)}", output.parameters)
        found.add(output.name)
    return frozenset(found)
