"""What a manifest must say of a model of text: every part must fit the others."""

from protos.ctm_bundle_pb2 import Manifest, TensorSpec
from serving.mismatch import Mismatch, listing, quote
from serving.tensors import shape_text

CHAIN = "text"
PROMPT = "text"
"""The input by which callers give texts; the program has none of this name."""

_MANIFEST = "manifest.json"


def check_text(manifest: Manifest) -> None:
    """Refuse a chain of text that contradicts itself.

    Raises:
        Mismatch: names both sides.
    """
    if manifest.HasField("text") != (manifest.chain == CHAIN):
        got = f"chain {manifest.chain!r} and {'a' if manifest.HasField('text') else 'no'} text"
        raise Mismatch(f"{_MANIFEST}: chain and text", got, f"both for chain {CHAIN!r}, else neither")
    if manifest.chain == CHAIN:
        tokens = _check_inputs(manifest)
        _check_vocabulary(manifest, tokens)


def _check_inputs(manifest: Manifest) -> TensorSpec:
    """The input that holds the tokens."""
    name, inputs = manifest.text.tokens, {spec.name: spec for spec in manifest.inputs}
    tokens = inputs.get(name)
    if tokens is None:
        raise Mismatch(f"{_MANIFEST}: text.tokens", quote(name), f"one of the inputs {listing(inputs)}")
    what = f"{_MANIFEST}: inputs {quote(name)}"
    if name == PROMPT:
        raise Mismatch(f"{_MANIFEST}: text.tokens", quote(name), "another name: by this one callers give texts")
    if tokens.datatype != "INT64" or len(tokens.shape) != 1:
        raise Mismatch(what, f"{tokens.datatype} {shape_text(tokens.shape)}", "INT64 [window]: it holds the tokens")
    if not any(spec.length_of == name for spec in manifest.inputs):
        raise Mismatch(f"{_MANIFEST}: inputs", listing(inputs), f"one with length_of {quote(name)}")
    if len(inputs) != 2:
        raise Mismatch(f"{_MANIFEST}: inputs", listing(inputs), f"{quote(name)} and its length alone: it is a text")
    return tokens


def _check_vocabulary(manifest: Manifest, tokens: TensorSpec) -> None:
    text = manifest.text
    prediction = next(spec for spec in manifest.outputs if spec.role == TensorSpec.PREDICTION)
    if prediction.datatype != "FP32" or len(prediction.shape) != 1:
        got = f"{prediction.datatype} {shape_text(prediction.shape)}"
        raise Mismatch(f"{_MANIFEST}: outputs {quote(prediction.name)}", got, "FP32 [vocabulary]: logits of a token")
    vocabulary = prediction.shape[0]
    bounded = tokens.HasField("minimum") and tokens.HasField("maximum")
    if not bounded or (tokens.minimum, tokens.maximum) != (0, vocabulary - 1):
        got = f"{tokens.minimum:g} and {tokens.maximum:g}" if bounded else "not both"
        expected = f"0 and {vocabulary - 1}: the prediction is of {vocabulary} tokens"
        raise Mismatch(f"{_MANIFEST}: inputs {quote(tokens.name)}, minimum and maximum", got, expected)
    for field in ("end_token", "padding_token"):
        if getattr(text, field) >= vocabulary:
            expected = f"below {vocabulary}, the prediction's size"
            raise Mismatch(f"{_MANIFEST}: text.{field}", getattr(text, field), expected)
    if manifest.labels:
        raise Mismatch(f"{_MANIFEST}: labels", len(manifest.labels), "none: the tokenizer names the tokens")
