"""A request's prompts, as texts or as tokens, made into the inputs of its first thoughts."""

# Shapes: R rows, n tokens that a caller sent of each, W tokens of the window.

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch, listing, quote
from serving.request import Array
from serving.tensors import array, shape_text, texts
from serving.text.contract import PROMPT
from serving.text.model import TextModel

BYTES_PER_TOKEN = 64
"""Of a text, for each token of the window: longer ones are refused before the work of cutting them into tokens."""


def prompts(tensors: Iterable[pb.Tensor], model: TextModel, *, max_rows: int) -> dict[str, Array]:
    """The tokens, [R, W], and the lengths, [R], under the names that the program has for them.

    Raises:
        Mismatch: neither texts nor tokens or both, empty or too long ones, no UTF-8, no tokens of the vocabulary.
    """
    found = _by_name(tensors, model)
    if PROMPT in found:
        rows = _from_texts(found[PROMPT], model, max_rows)
    else:
        rows = _from_tokens(found[model.tokens], found.get(model.length), model, max_rows)
    tokens_RW = np.full((len(rows), model.window), model.padding_token, np.int64)
    for place, tokens in enumerate(rows):
        tokens_RW[place, : len(tokens)] = tokens
    return {model.tokens: tokens_RW, model.length: np.array([len(tokens) for tokens in rows], np.int64)}


def _by_name(tensors: Iterable[pb.Tensor], model: TextModel) -> dict[str, pb.Tensor]:
    found: dict[str, pb.Tensor] = {}
    expected = f"{PROMPT}, or {model.tokens} with or without {model.length}"
    for tensor in tensors:
        if tensor.name not in (PROMPT, model.tokens, model.length):
            raise Mismatch("inputs", quote(tensor.name), expected)
        if tensor.name in found:
            raise Mismatch("inputs", f"{quote(tensor.name)} twice", "each input once")
        found[tensor.name] = tensor
    if (PROMPT in found) == (model.tokens in found) or (PROMPT in found and model.length in found):
        raise Mismatch("inputs", listing(found), expected)
    return found


def _from_texts(tensor: pb.Tensor, model: TextModel, max_rows: int) -> list[NDArray[np.int64]]:
    what = f"input {quote(PROMPT)}"
    if tensor.datatype != "BYTES":
        raise Mismatch(f"{what}, datatype", quote(tensor.datatype), "BYTES")
    if len(tensor.shape) != 1:
        raise Mismatch(f"{what}, shape", shape_text(tensor.shape), "[rows]")
    _check_rows(what, tensor.shape[0], max_rows)
    most = model.window * BYTES_PER_TOKEN
    found = texts(tensor)
    for row, text in enumerate(found):
        if len(text) > most:
            expected = f"at most {most}, {BYTES_PER_TOKEN} for each of the {model.window} tokens that the model reads"
            raise Mismatch(f"{what}, row {row}", f"{len(text)} bytes", expected)
    return [_tokens(f"{what}, row {row}", text, model) for row, text in enumerate(found)]


def _tokens(what: str, text: bytes, model: TextModel) -> NDArray[np.int64]:
    try:
        tokens = model.tokenizer.encode(text.decode())
    except UnicodeDecodeError as error:
        raise Mismatch(f"{what}, byte {error.start}", f"0x{text[error.start]:02x}", "UTF-8") from error
    if not tokens:
        raise Mismatch(what, "an empty text" if not text else "a text of no tokens", "at least one token")
    if len(tokens) > model.window:
        raise Mismatch(what, f"{len(tokens)} tokens", f"at most {model.window}, as many as the model reads")
    return np.array(tokens, np.int64)


def _from_tokens(
    tensor: pb.Tensor, length: pb.Tensor | None, model: TextModel, max_rows: int
) -> list[NDArray[np.int64]]:
    what = f"input {quote(model.tokens)}"
    if tensor.datatype != "INT64":
        raise Mismatch(f"{what}, datatype", quote(tensor.datatype), "INT64")
    if len(tensor.shape) != 2:
        raise Mismatch(f"{what}, shape", shape_text(tensor.shape), f"[rows, 1 to {model.window}]")
    _check_rows(what, tensor.shape[0], max_rows)
    if not 1 <= tensor.shape[1] <= model.window:
        expected = f"1 to {model.window}, the tokens that the model reads"
        raise Mismatch(what, f"{tensor.shape[1]} tokens a row", expected)
    tokens_Rn = array(tensor)
    wrong_Rn = (tokens_Rn < 0) | (tokens_Rn >= model.tokenizer.size)
    if wrong_Rn.any():
        row, place = np.argwhere(wrong_Rn)[0]
        expected = f"0 to {model.tokenizer.size - 1}, the model's vocabulary"
        raise Mismatch(f"{what}, at [{row}, {place}]", tokens_Rn[row, place], expected)
    lengths_R = _lengths(length, model, *tokens_Rn.shape)
    return [tokens[:count] for tokens, count in zip(tokens_Rn, lengths_R.tolist(), strict=True)]


def _lengths(tensor: pb.Tensor | None, model: TextModel, rows: int, most: int) -> NDArray[np.int64]:
    if tensor is None:
        return np.full(rows, most, np.int64)
    what = f"input {quote(model.length)}"
    if tensor.datatype != "INT64":
        raise Mismatch(f"{what}, datatype", quote(tensor.datatype), "INT64")
    if list(tensor.shape) != [rows]:
        raise Mismatch(f"{what}, shape", shape_text(tensor.shape), f"[{rows}], one for each row of {model.tokens}")
    lengths_R: NDArray[np.int64] = array(tensor)
    for row, length in enumerate(lengths_R.tolist()):
        if not 1 <= length <= most:
            raise Mismatch(f"{what}, row {row}", length, f"1 to {most}, the tokens given of each row")
    return lengths_R


def _check_rows(what: str, rows: int, max_rows: int) -> None:
    if not 1 <= rows <= max_rows:
        raise Mismatch(f"{what}, rows", rows, f"1 to {max_rows}")
