"""Which bundles of text may serve: every part of the manifest fits the others, and the tokenizer fits the model."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import describe, read_manifest, write_bundle, write_manifest
from scripted_text import MANIFEST, START, VOCABULARY, WINDOW, tokenizer_file
from test_serving_text_tokenizer import changed

from serving.store import scan

Spoil = Any


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def write_text_bundle(store: Path, name: str = "verses", tokenizer: bytes = tokenizer_file()) -> Path:
    """A folder that passes every check but those of a runtime."""
    plain = {key: value for key, value in MANIFEST.items() if key not in ("name", "version")}
    path = write_bundle(store, name, start=START, **{"labels": None, **plain})
    (path / "tokenizer.json").write_bytes(tokenizer)
    write_manifest(path, {**read_manifest(path), "files": [describe(file) for file in files_of(path)]})
    return path


def files_of(path: Path) -> list[Path]:
    return [file for file in sorted(path.iterdir()) if file.name != "manifest.json"]


def test_a_sound_bundle(store):
    write_text_bundle(store)
    (bundle,), refused = scan(store)
    assert refused == []
    assert (bundle.text.tokens, bundle.text.length, bundle.text.window) == ("tokens", "length", WINDOW)
    assert (bundle.text.end_token, bundle.text.padding_token) == (0, 0)
    tokens, length = bundle.program.inputs
    assert (tokens.buckets, length.length_of) == ((4, 8, 16), "tokens")
    assert len(bundle.labels) == VOCABULARY
    assert bundle.labels[:2] == ("<|endoftext|>", "!")


def test_an_end_token_may_be_missing(store):
    path = write_text_bundle(store)
    manifest = read_manifest(path)
    del manifest["text"]["end_token"]
    write_manifest(path, manifest)
    (bundle,), _ = scan(store)
    assert bundle.text.end_token is None


def text(**changes: Any) -> Spoil:
    return lambda manifest: manifest["text"].update(changes)


def spec(place: int, field: str = "inputs", **changes: Any) -> Spoil:
    def spoil(manifest: dict[str, Any]) -> None:
        one = {**manifest[field][place], **changes}
        manifest[field][place] = {key: value for key, value in one.items() if value is not None}

    return spoil


def forget_tokenizer(manifest: dict[str, Any]) -> None:
    manifest["files"] = [file for file in manifest["files"] if file["name"] != "tokenizer.json"]


def without_length(manifest: dict[str, Any]) -> None:
    spec(0, buckets=None)(manifest)
    spec(1, length_of=None)(manifest)


MASK = {"name": "mask", "datatype": "BOOL", "shape": [WINDOW]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            text(tokens="words"), "text.tokens: got 'words', expected one of the inputs tokens", id="no input"
        ),
        pytest.param(
            lambda manifest: manifest["inputs"].append(MASK),
            "inputs: got tokens, length, mask, expected 'tokens' and its length alone",
            id="an input more",
        ),
        pytest.param(
            spec(1, length_of=None),
            "'tokens', buckets: got 4, 8, 16, expected none: no input has length_of",
            id="buckets of any",
        ),
        pytest.param(
            without_length, "inputs: got tokens, length, expected one with length_of 'tokens'", id="no length"
        ),
        pytest.param(spec(1, length_of="words"), "length_of: got 'words', expected another input", id="of none"),
        pytest.param(spec(1, length_of="length"), "length_of: got 'length', expected another input", id="of itself"),
        pytest.param(spec(1, datatype="INT32"), "inputs 'length': got INT32 [], expected INT64 []", id="length INT32"),
        pytest.param(spec(1, shape=[1]), "inputs 'length': got INT64 [1], expected INT64 []", id="length [1]"),
        pytest.param(
            spec(1, maximum=WINDOW + 1),
            "'length', minimum and maximum: got 1.0, 17.0, expected 1 and 16, the size of 'tokens'",
            id="longer than the window",
        ),
        pytest.param(spec(1, minimum=0), "got 0.0, 16.0, expected 1 and 16", id="a length of none"),
        pytest.param(spec(1, minimum=None), "got None, 16.0, expected 1 and 16", id="an unbounded length"),
        pytest.param(
            lambda manifest: manifest["inputs"].append({**manifest["inputs"][1], "name": "more"}),
            "inputs: got two lengths of one input, expected one at most",
            id="two lengths",
        ),
        pytest.param(
            spec(0, "context", length_of="tokens"),
            "'last': got length_of or buckets, expected none: inputs alone",
            id="of a context",
        ),
        pytest.param(
            spec(0, buckets=[4, 8]),
            "buckets: got 4, 8, expected sizes that rise from at least 1 to 16",
            id="buckets below",
        ),
        pytest.param(
            spec(0, buckets=[8, 4, 16]),
            "buckets: got 8, 4, 16, expected sizes that rise from at least 1 to 16",
            id="falling",
        ),
        pytest.param(spec(0, buckets=[4, 4, 16]), "buckets: got 4, 4, 16", id="a bucket twice"),
        pytest.param(spec(0, buckets=[0, 16]), "buckets: got 0, 16", id="a bucket of nothing"),
        pytest.param(spec(0, buckets=[16, 32]), "buckets: got 16, 32", id="a bucket above"),
        pytest.param(
            spec(0, "context", buckets=[1]),
            "'last': got length_of or buckets, expected none",
            id="buckets of a context",
        ),
        pytest.param(spec(0, datatype="INT32"), "inputs 'tokens': got INT32 [16], expected INT64", id="tokens INT32"),
        pytest.param(spec(0, maximum=VOCABULARY), "got 0 and 300, expected 0 and 299", id="bounds beyond"),
        pytest.param(spec(0, maximum=None), "minimum and maximum: got not both, expected 0 and 299", id="no bounds"),
        pytest.param(
            spec(0, "outputs", shape=[200]), "expected 0 and 199: the prediction is of 200 tokens", id="prediction"
        ),
        pytest.param(spec(0, "outputs", shape=[2, 300]), "expected FP32 [vocabulary]", id="a structured prediction"),
        pytest.param(spec(0, "outputs", datatype="FP16"), "got FP16 [300], expected FP32", id="prediction FP16"),
        pytest.param(text(end_token=300), "text.end_token: got 300, expected below 300", id="end token outside"),
        pytest.param(text(padding_token=2**32 - 1), "text.padding_token: got 4294967295", id="padding token outside"),
        pytest.param(
            lambda manifest: manifest.update(labels=["a"] * VOCABULARY), "labels: got 300, expected none", id="labels"
        ),
        pytest.param(lambda manifest: manifest.pop("text"), "got chain 'text' and no text", id="no text"),
        pytest.param(lambda manifest: manifest.pop("chain"), "got chain '' and a text", id="no chain"),
        pytest.param(
            forget_tokenizer, "files: got encode.onnx, start.safetensors, tick.onnx, expected also", id="hash"
        ),
        pytest.param(text(tokenizer="../tokenizer.json"), "expected also ../tokenizer.json", id="outside"),
        pytest.param(text(tokenizer=""), "expected also", id="no file"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store, spoil, said):
    path = write_text_bundle(store)
    manifest = read_manifest(path)
    spoil(manifest)
    write_manifest(path, manifest)
    bundles, refused = scan(store)
    assert bundles == []
    assert str(refused[0]).startswith(f"bundle verses/1 in {store}: ")
    assert said in str(refused[0])


def test_the_name_of_the_prompt_is_taken(store):
    path = write_text_bundle(store)
    manifest = read_manifest(path)
    for spoil in (spec(0, name="text"), spec(1, length_of="text"), text(tokens="text")):
        spoil(manifest)
    write_manifest(path, manifest)
    assert "text.tokens: got 'text', expected another name" in str(scan(store)[1][0])


def larger() -> bytes:
    document = json.loads(tokenizer_file())
    document["model"]["vocab"]["another"] = VOCABULARY
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        pytest.param(b"no tokenizer", "'tokenizer.json': got tokenizer: got 'Cannot", id="no tokenizer"),
        pytest.param(changed(decoder=None), "decoder: got 'None', expected ByteLevel", id="not byte-level"),
        pytest.param(larger(), "tokenizer.json, vocabulary: got 301 tokens, expected 300", id="another vocabulary"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(store, tokenizer, said):
    write_text_bundle(store, "sound")
    write_text_bundle(store, tokenizer=tokenizer)
    bundles, refused = scan(store)
    assert [str(bundle) for bundle in bundles] == ["sound/1"]
    assert said in str(refused[0])


def test_a_tokenizer_that_was_changed_is_refused(store):
    path = write_text_bundle(store)
    (path / "tokenizer.json").write_bytes(tokenizer_file().replace(b"In", b"At"))
    assert "tokenizer.json: got sha256" in str(scan(store)[1][0])
