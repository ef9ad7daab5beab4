"""A model of text whose next token is written in a table: small, but a whole program, behind a real tokenizer."""

import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from protos.ctm_bundle_pb2 import Manifest
from serving.backends.base import Backend
from serving.bundle import Bundle
from serving.manifest import check, program, stop_defaults
from serving.program import Program
from serving.text.model import text_model

WINDOW = 16
BUCKETS = [4, 8, 16]
VOCABULARY = 300
END = 0
TICKS = 4
VERSES = "In the beginning God created the heaven and the earth. And God said, Let there be light: and there was light."


@cache
def tokenizer_file() -> bytes:
    """A byte-level tokenizer: token 0 ends a text, 256 are single bytes, the others were learnt from two verses."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([VERSES] * 3, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return str(tokenizer.to_str()).encode()


def library_tokenizer() -> Tokenizer:
    """The same as the library has it, to compare with."""
    return Tokenizer.from_buffer(tokenizer_file())


MANIFEST = {
    "format_version": 1,
    "name": "verses",
    "version": 1,
    "family": "none",
    "task": "text",
    "inputs": [
        {
            "name": "tokens",
            "datatype": "INT64",
            "shape": [WINDOW],
            "minimum": 0,
            "maximum": VOCABULARY - 1,
            "buckets": BUCKETS,
        },
        {
            "name": "length",
            "datatype": "INT64",
            "shape": [],
            "minimum": 1,
            "maximum": WINDOW,
            "length_of": "tokens",
        },
    ],
    "context": [{"name": "last", "datatype": "INT64", "shape": []}],
    "state": [{"name": "ticks_done", "datatype": "INT64", "shape": []}],
    "outputs": [
        {"name": "prediction", "datatype": "FP32", "shape": [VOCABULARY], "role": "PREDICTION"},
        {"name": "certainty", "datatype": "FP32", "shape": [], "role": "CERTAINTY"},
    ],
    "ticks": TICKS,
    "tick_cap": TICKS,
    "stop": {"certainty_threshold": 0.9},
    "artefacts": [{"backend": "onnx", "graphs": {"encode": "encode.onnx", "tick": "tick.onnx"}}],
    "chain": "text",
    "text": {"tokenizer": "tokenizer.json", "tokens": "tokens", "end_token": END, "padding_token": END},
}
START = {"ticks_done": np.zeros((), np.int64)}


def text_bundle() -> Bundle:
    """A bundle as if it had been loaded."""
    manifest = ParseDict(MANIFEST, Manifest())
    check(manifest)
    text = text_model(manifest, tokenizer_file())
    described = program(manifest)
    start = {**START}
    return Bundle(
        path=Path("nowhere"),
        name=manifest.name,
        version=manifest.version,
        manifest=manifest,
        program=Program(
            inputs=described.inputs,
            context=described.context,
            state=described.state,
            start=start,
            prediction=described.prediction,
            certainty=described.certainty,
            outputs=described.outputs,
        ),
        labels=text.tokenizer.labels(),
        stop=stop_defaults(manifest),
        abstain_below=manifest.stop.abstain_below,
        tick_cap=manifest.tick_cap,
        text=text,
    )


BUNDLE = text_bundle()


def tokens_of(text: str | bytes) -> list[int]:
    """A text's tokens; of bytes, one token each."""
    if isinstance(text, str):
        return list(library_tokenizer().encode(text).ids)
    pieces = BUNDLE.text.tokenizer.pieces
    return [pieces.index(bytes([byte])) for byte in text]


def table(*tokens: int, others: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """The logits that follow each token, [V, V]: the next of `tokens` by far, else random with deviation `others`."""
    logits = others * np.random.default_rng(seed).standard_normal((VOCABULARY, VOCABULARY))
    chosen = list(pairwise(tokens))
    assert len({one for one, _ in chosen}) == len(set(chosen)), "a token of the script is followed by two"
    for one, following in chosen:
        logits[one, following] = 100.0
    return logits.astype(np.float32)


def ticks_of(token: int) -> int:
    """How many ticks the model thinks when it reads this token last."""
    return 1 + token % 3


class ScriptedText(Backend):
    """Predicts by its table, and is certain at the tick that `ticks_of` says."""

    def __init__(
        self, logits: NDArray[np.float32], num_slots: int = 4, max_admissions: int = 8, *, seconds_per_tick: float = 0.0
    ) -> None:
        super().__init__(BUNDLE.program, num_slots, max_admissions)
        self.logits = logits
        self.seconds_per_tick = seconds_per_tick
        self.num_ticks = 0
        self.sizes_seen: set[int] = set()

    def _encode(self, rows: int, sizes: tuple[int, ...]) -> None:
        arguments = self.arguments(rows, sizes)
        self.sizes_seen.update(sizes)
        last = np.maximum(arguments["length"] - 1, 0)
        self._encoded["last"][:rows] = arguments["tokens"][np.arange(rows), last]

    def _tick(self, rows: int, side: int, details: bool) -> None:
        del details
        self.num_ticks += 1
        time.sleep(self.seconds_per_tick)
        place, last = self._state[side]["ticks_done"][:rows], self._context["last"][:rows]
        out = self._outputs[1 - side]
        out["certainty"][:rows] = np.where(place + 1 >= 1 + last % 3, 0.95, 0.1 * (place + 1))
        out["prediction"][:rows] = self.logits[last]
        self._state[1 - side]["ticks_done"][:rows] = place + 1
