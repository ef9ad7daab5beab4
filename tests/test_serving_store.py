"""What may serve, and what is refused by name while the others serve."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import DOCUMENT, START, describe, fake_bundle, read_manifest, write_bundle, write_manifest
from safetensors.numpy import save_file

from serving.errors import BundleRefused
from serving.mismatch import Mismatch
from serving.request import StopPolicy
from serving.store import find, load_bundle, newest, scan


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def names(bundles: list[Any]) -> list[str]:
    return [str(bundle) for bundle in bundles]


def test_a_sound_bundle(store):
    bundle = load_bundle(write_bundle(store, "lamp", 3))
    assert (bundle.name, bundle.version, str(bundle), bundle.labels) == ("lamp", 3, "lamp/3", ("zero", "one", "two"))
    assert bundle.stop == StopPolicy(max_ticks=20, min_ticks=4, certainty_threshold=0.75, patience=2)
    assert (bundle.abstain_below, bundle.tick_cap) == (0.5, 40)
    assert bundle.graphs("onnx") == {name: bundle.path / f"{name}.onnx" for name in ("encode", "tick")}
    assert bundle.graphs("torchscript") == {}


def test_its_program(store):
    program = load_bundle(write_bundle(store)).program
    assert [spec.name for spec in program.inputs] == ["image", "length", "mask"]
    assert (program.inputs[0].minimum, program.inputs[0].maximum, program.inputs[2].maximum) == (0.0, 1.0, None)
    assert (program.prediction.name, program.certainty.name, program.energy.name) == (
        "prediction",
        "certainty",
        "energy",
    )
    assert [spec.name for spec in program.details] == ["attention", "sync"]
    assert len(program.outputs) == 5
    assert program.done is None
    np.testing.assert_array_equal(program.start["trace"], START["trace"])


def test_a_rule_that_the_bundle_does_not_set_never_stops_a_thought():
    assert fake_bundle(stop=None).stop == StopPolicy(max_ticks=20)


# Bad bundles: each case spoils a sound folder, and says what the refusal must name.


def spoil_file(name: str, data: bytes):
    return lambda path: (path / name).write_bytes(data)


def spoil_manifest(**changes: Any):
    def spoil(path: Path) -> None:
        document = {**read_manifest(path), **changes}
        write_manifest(path, {key: value for key, value in document.items() if value is not None})

    return spoil


def spoil_spec(field: str, index: int, **changes: Any):
    specs = [dict(spec) for spec in DOCUMENT[field]]
    specs[index].update(changes)
    return spoil_manifest(**{field: specs})


def spoil_start(**changes: np.ndarray | None):
    def spoil(path: Path) -> None:
        values = {name: value for name, value in {**START, **changes}.items() if value is not None}
        save_file(values, path / "start.safetensors")
        files = [describe(path / file["name"]) for file in read_manifest(path)["files"]]
        spoil_manifest(files=files)(path)

    return spoil


def spoil_files(**changes: Any):
    """Change what the manifest says of tick.onnx."""

    def spoil(path: Path) -> None:
        *others, last = read_manifest(path)["files"]
        assert last["name"] == "tick.onnx"
        spoil_manifest(files=[*others, {**last, **changes}])(path)

    return spoil


def link_out(path: Path) -> None:
    outside = path.parent.parent.parent / "outside.onnx"
    outside.write_bytes((path / "tick.onnx").read_bytes())
    (path / "tick.onnx").unlink()
    (path / "tick.onnx").symlink_to(outside)


def escape(name: str):
    def spoil(path: Path) -> None:
        outside = path.parent / "tick.onnx"
        outside.write_bytes((path / "tick.onnx").read_bytes())
        spoil_manifest(files=[*read_manifest(path)["files"], {**describe(outside), "name": name}])(path)

    return spoil


def forget_file(name: str):
    return lambda path: spoil_manifest(files=[file for file in read_manifest(path)["files"] if file["name"] != name])(
        path
    )


ENERGY = DOCUMENT["outputs"][2]
DEEP = b'{"format_version": 1, "config": ' + b'{"a": ' * 3000 + b"1" + b"}" * 3001


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        # The manifest as a document.
        pytest.param(
            lambda path: (path / "manifest.json").unlink(), "'manifest.json': got no such file", id="half-written"
        ),
        pytest.param(spoil_file("manifest.json", b""), "manifest.json: got 'Expecting value", id="empty manifest"),
        pytest.param(spoil_file("manifest.json", b'{"format_version": 1, "na'), "expected JSON", id="corrupt JSON"),
        pytest.param(spoil_file("manifest.json", b"\xff\xfe\x00"), "expected JSON", id="no text at all"),
        pytest.param(
            spoil_file("manifest.json", b"[1, 2]"), "format_version: got None, expected 1", id="JSON, but a list"
        ),
        pytest.param(spoil_file("manifest.json", DEEP), "manifest.json", id="nested without end"),
        pytest.param(
            spoil_manifest(**{"\ud800": 1}), "expected the fields of a manifest", id="a key of half a character"
        ),
        pytest.param(
            spoil_manifest(format_version=2, magic=True),
            "format_version: got 2, expected 1; the bundle is newer than this server",
            id="newer format",
        ),
        pytest.param(spoil_manifest(format_version=0), "format_version: got 0, expected 1", id="no format"),
        pytest.param(spoil_manifest(format_version="1"), "format_version: got '1'", id="format as text"),
        pytest.param(spoil_manifest(colour="red"), "colour", id="unknown field"),
        pytest.param(spoil_manifest(ticks="many"), "ticks", id="field of another type"),
        pytest.param(
            spoil_manifest(name="other"), "name: got 'other', expected 'fake', the folder's", id="another name"
        ),
        pytest.param(spoil_manifest(version=2), "version: got 2, expected 1, the folder's", id="another version"),
        # Files.
        pytest.param(
            lambda path: (path / "tick.onnx").unlink(),
            "'tick.onnx': got no such file, expected a file in the bundle",
            id="missing file",
        ),
        pytest.param(spoil_file("tick.onnx", b"tick.onnx of fakE"), "tick.onnx: got sha256", id="wrong hash"),
        pytest.param(spoil_file("tick.onnx", b"tick"), "tick.onnx: got 4 bytes, expected 17 bytes", id="wrong size"),
        pytest.param(spoil_files(sha256="abc"), "expected 'abc'", id="no hash"),
        pytest.param(link_out, "'tick.onnx': got a link to ", id="a link out"),
        pytest.param(escape("../tick.onnx"), "file name: got '../tick.onnx', expected a plain name", id="a path out"),
        pytest.param(escape("/etc/hostname"), "file name: got '/etc/hostname'", id="an absolute path"),
        pytest.param(escape("a\\b"), "file name: got ", id="a path as Windows writes it"),
        pytest.param(escape(".."), "file name: got '..'", id="the folder above"),
        pytest.param(escape(""), "file name: got ''", id="no name"),
        pytest.param(escape("a\0b"), "'a\\x00b': got no such file", id="a name that no system has"),
        pytest.param(escape("tick.onnx"), "expected each name once", id="a file named twice"),
        pytest.param(forget_file("tick.onnx"), "expected also tick.onnx", id="a graph without a hash"),
        pytest.param(
            forget_file("start.safetensors"), "expected also start.safetensors", id="start values without a hash"
        ),
        # Start values.
        pytest.param(
            spoil_start(trace=np.zeros((2, 3), np.float32)),
            "start.safetensors: 'trace': got float32 [2, 3], expected float32 [2, 2]",
            id="wrong shape in start",
        ),
        pytest.param(
            spoil_start(trace=np.zeros((2, 2))),
            "got float64 [2, 2], expected float32 [2, 2]",
            id="wrong datatype in start",
        ),
        pytest.param(
            spoil_start(trace=None),
            "tensors: got ticks_done, expected ticks_done, trace",
            id="a start value is missing",
        ),
        pytest.param(
            spoil_start(more=np.zeros(1)), "tensors: got more, ticks_done, trace", id="a start value too many"
        ),
        pytest.param(
            spoil_start(trace=np.full((2, 2), np.nan, np.float32)), "'trace': got NaN or infinity", id="NaN in start"
        ),
        # Tensors.
        pytest.param(
            spoil_spec("inputs", 0, datatype="FP8"),
            "inputs 'image', datatype: got 'FP8', expected one of BOOL",
            id="unknown dtype",
        ),
        pytest.param(spoil_spec("state", 0, shape=[2, 0]), "state 'trace', shape: got [2, 0]", id="an empty size"),
        pytest.param(spoil_spec("inputs", 0, shape=[-1]), "inputs 'image', shape: got [-1]", id="a negative size"),
        pytest.param(
            spoil_spec("inputs", 1, name="image"),
            "names of inputs: got 'image', expected each once",
            id="two inputs of a name",
        ),
        pytest.param(
            spoil_spec("state", 0, name="keys"), "names of context and state: got 'keys'", id="state named like context"
        ),
        pytest.param(
            spoil_spec("outputs", 3, name="next_trace"),
            "names of state and outputs: got 'next_trace'",
            id="output named like state",
        ),
        pytest.param(spoil_spec("inputs", 0, name=""), "names of inputs: got ''", id="a nameless input"),
        pytest.param(spoil_spec("inputs", 0, minimum=2), "minimum and maximum: got 2.0 and 1.0", id="bounds crossed"),
        pytest.param(
            spoil_spec("inputs", 0, minimum="NaN"), "minimum and maximum: got nan and 1.0", id="NaN as a bound"
        ),
        pytest.param(spoil_manifest(inputs=None), "inputs: got none, expected at least one tensor", id="no inputs"),
        pytest.param(
            spoil_manifest(outputs=DOCUMENT["outputs"][1:]),
            "outputs of role PREDICTION: got none, expected one",
            id="no prediction",
        ),
        pytest.param(
            spoil_spec("outputs", 3, role="PREDICTION"),
            "role PREDICTION: got prediction, attention, expected one",
            id="two predictions",
        ),
        pytest.param(spoil_spec("outputs", 1, role="DETAIL"), "role CERTAINTY: got none", id="no certainty"),
        pytest.param(
            spoil_manifest(outputs=[*DOCUMENT["outputs"], {**ENERGY, "name": "more"}]),
            "role ENERGY: got energy, more, expected at most one",
            id="two energies",
        ),
        pytest.param(
            spoil_spec("outputs", 1, shape=[1]),
            "outputs 'certainty', shape: got [1], expected []",
            id="certainty with a shape",
        ),
        pytest.param(
            spoil_spec("outputs", 1, datatype="FP64"),
            "outputs 'certainty', datatype: got FP64, expected FP32",
            id="certainty in FP64",
        ),
        pytest.param(
            spoil_spec("outputs", 0, datatype="INT64"),
            "outputs 'prediction', datatype: got INT64",
            id="prediction of integers",
        ),
        pytest.param(
            spoil_spec("outputs", 3, role="ROLE_UNSPECIFIED"),
            "outputs 'attention', role: got 0",
            id="output without a role",
        ),
        pytest.param(spoil_spec("outputs", 3, role=9), "outputs 'attention', role: got 9", id="unknown role"),
        # Ticks, stop defaults, labels, artefacts.
        pytest.param(spoil_manifest(ticks=0), "ticks: got 0, expected 1 to tick_cap, 40", id="no ticks"),
        pytest.param(spoil_manifest(ticks=41), "ticks: got 41, expected 1 to tick_cap, 40", id="ticks above the cap"),
        pytest.param(spoil_manifest(tick_cap=0), "tick_cap: got 0", id="no tick cap"),
        pytest.param(spoil_manifest(tick_cap=2**32 - 1), "tick_cap: got 4294967295", id="endless tick cap"),
        pytest.param(
            spoil_manifest(labels=["zero", "one"]),
            "labels: got 2, expected 3, one for each class, or none",
            id="a label is missing",
        ),
        pytest.param(
            spoil_manifest(stop={"certainty_threshold": 1.5}),
            "stop.certainty_threshold: got 1.5",
            id="threshold above 1",
        ),
        pytest.param(
            spoil_manifest(stop={"certainty_threshold": "NaN"}), "stop.certainty_threshold: got nan", id="threshold NaN"
        ),
        pytest.param(
            spoil_manifest(stop={"abstain_below": -0.5}), "stop.abstain_below: got -0.5", id="abstain below 0"
        ),
        pytest.param(
            spoil_manifest(stop={"min_ticks": 21}),
            "stop.min_ticks: got 21, expected at most ticks, 20",
            id="least above most",
        ),
        pytest.param(spoil_manifest(stop={"patience": 0}), "stop.patience: got 0, expected 1 to", id="no patience"),
        pytest.param(
            spoil_manifest(stop={"energy_delta": -1}),
            "stop.energy_threshold and energy_delta: got 0.0 and -1.0",
            id="energy delta below 0",
        ),
        pytest.param(
            spoil_manifest(stop={"energy_delta": 1}, outputs=DOCUMENT["outputs"][:2]),
            "stop: got an energy rule, expected none",
            id="energy without a head",
        ),
        pytest.param(
            spoil_spec("context", 0, shape=[2**40, 2**40]),
            "context 'keys', shape: got [1099511627776, 1099511627776], expected at most 67108864 values a row",
            id="beyond all memory",
        ),
        pytest.param(spoil_spec("inputs", 0, shape=[2**62, 4]), "inputs 'image', shape: got [4611", id="beyond numpy"),
        pytest.param(
            spoil_spec("outputs", 4, shape=[1] * 32), "in at most 31 dimensions", id="more dimensions than the wire has"
        ),
        pytest.param(spoil_manifest(artefacts=None), "artefacts: got none, expected at least one", id="no artefact"),
        pytest.param(
            spoil_manifest(artefacts=DOCUMENT["artefacts"] * 2), "artefacts: got onnx, onnx", id="an artefact twice"
        ),
        pytest.param(
            spoil_manifest(artefacts=[{"backend": "onnx", "graphs": {"tick": "tick.onnx"}}]),
            "artefact 'onnx', graphs: got tick, expected encode, tick",
            id="a graph is missing",
        ),
        pytest.param(
            spoil_manifest(chain="music"), "chain: got 'music', expected text, diffusion, or none", id="a chain"
        ),
        pytest.param(
            spoil_manifest(chain="text"), "chain and text: got chain 'text' and no text", id="a chain of nothing"
        ),
        pytest.param(
            spoil_manifest(text={"tokens": "image"}),
            "chain and text: got chain '' and a text",
            id="a text without a chain",
        ),
        pytest.param(
            spoil_manifest(finish_outputs=DOCUMENT["state"]),
            "finish_inputs and finish_outputs: got 0 and 2 tensors, expected both, or neither",
            id="finish",
        ),
    ],
)
def test_a_bad_bundle_is_refused_by_name_while_the_others_serve(store, spoil, said):
    write_bundle(store, "sound")
    spoil(write_bundle(store))
    bundles, refused = scan(store)
    assert names(bundles) == ["sound/1"]
    assert len(refused) == 1
    assert str(refused[0]).startswith(f"bundle fake/1 in {store}: ")
    assert said in str(refused[0])


def test_a_link_inside_the_bundle_is_followed(store):
    """As mounted configuration has them."""
    path = write_bundle(store)
    (path / "..data").mkdir()
    (path / "tick.onnx").rename(path / "..data" / "tick.onnx")
    (path / "tick.onnx").symlink_to("..data/tick.onnx")
    assert names(scan(store)[0]) == ["fake/1"]


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        pytest.param("latest:1", ["a/10", "b/1"], id="newest, as a number"),
        pytest.param("latest:2", ["a/9", "a/10", "b/1"], id="two newest"),
        pytest.param("latest:99", ["a/2", "a/9", "a/10", "b/1"], id="more than there are"),
        pytest.param("all", ["a/2", "a/9", "a/10", "b/1"], id="all"),
    ],
)
def test_which_versions_serve(store, policy, served):
    for name, version in [("a", 10), ("a", 2), ("a", 9), ("b", 1)]:
        write_bundle(store, name, version)
    assert names(scan(store, policy)[0]) == served


def test_a_bad_new_version_does_not_take_the_old_one_away(store):
    write_bundle(store, version=1)
    spoil_file("tick.onnx", b"")(write_bundle(store, version=2))
    bundles, refused = scan(store)
    assert names(bundles) == ["fake/1"]
    assert "fake/2" in str(refused[0])


@pytest.mark.parametrize("policy", ["latest:0", "latest:-1", "latest", "latest:", "newest", "", "latest:1.5", "ALL"])
def test_a_version_policy_is_latest_or_all(policy):
    with pytest.raises(Mismatch, match=re.escape(f"version policy: got '{policy}', expected latest:N")):
        newest(policy)


def test_only_the_named_models_serve_and_a_missing_one_is_reported(store):
    for name in ("a", "b", "c"):
        write_bundle(store, name)
    bundles, refused = scan(store, names=("b", "d"))
    assert names(bundles) == ["b/1"]
    assert str(refused[0]) == f"model 'd': not in store {store}, which holds a, b, c"


def test_what_is_not_a_bundle_is_left_alone(store):
    write_bundle(store)
    for hidden in (store / ".tmp-1" / "1", store / "fake" / ".2-draft", store / "empty"):
        hidden.mkdir(parents=True)
    (store / "README.md").write_text("models")
    (store / "fake" / "notes.txt").write_text("mine")
    assert find(store) == ({"fake": {1: store / "fake" / "1"}}, [])


@pytest.mark.parametrize("name", ["01", "v2", "0", "-1", "1.0", "latest", "99999999999", "１", "1１"])
def test_a_version_is_a_positive_number(store, name):
    write_bundle(store)
    (store / "fake" / name).mkdir()
    bundles, refused = scan(store)
    assert names(bundles) == ["fake/1"]
    assert f"bundle fake/{name}: expected a version, 1, 2, 3, ..." in str(refused[0])


def test_a_folder_whose_name_is_no_text_is_no_model(store):
    write_bundle(store)
    (store / os.fsdecode(b"\xff") / "1").mkdir(parents=True)
    models, refused = find(store)
    assert list(models) == ["fake"], "an index of them is sent as text"
    assert [str(error) for error in refused] == [f"folder '\\udcff' in {store}: expected a name in UTF-8"]


@pytest.mark.parametrize("method", ["iterdir", "is_dir"])
def test_a_folder_that_cannot_be_listed_keeps_no_other_from_being_served(store, monkeypatch, method):
    write_bundle(store, "open")
    write_bundle(store, "shut")
    real = getattr(Path, method)

    def deny(self: Path) -> Any:
        if self.name == "shut":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, method, deny)
    bundles, refused = scan(store)
    assert names(bundles) == ["open/1"]
    assert [str(error) for error in refused] == [f"model shut in {store}: got Permission denied, expected a folder"]


def test_a_store_that_is_not_there(tmp_path):
    bundles, refused = scan(tmp_path / "nowhere")
    assert bundles == []
    assert str(refused[0]) == f"store {tmp_path / 'nowhere'}: got No such file or directory, expected a folder"


def test_a_bundle_that_cannot_be_read_is_refused(store, monkeypatch):
    write_bundle(store)
    real = Path.open

    def deny(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "tick.onnx":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(BundleRefused, match=r"bundle fake/1 .*Permission denied.*tick\.onnx"):
        load_bundle(store / "fake" / "1")


def test_a_file_is_read_as_the_manifest_describes_it(store):
    assert load_bundle(write_bundle(store)).read("tick.onnx") == b"tick.onnx of fake"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(spoil_file("tick.onnx", b"tick.onnx of fakE"), "tick.onnx: got sha256", id="other bytes"),
        pytest.param(spoil_file("tick.onnx", b""), "tick.onnx: got 0 bytes, expected 17 bytes", id="fewer bytes"),
        pytest.param(spoil_file("tick.onnx", b"-" * 999), "tick.onnx: got more bytes, expected 17", id="more bytes"),
        pytest.param(lambda path: (path / "tick.onnx").unlink(), "'tick.onnx': got no such file", id="gone"),
        pytest.param(link_out, "'tick.onnx': got a link to ", id="a link out"),
    ],
)
def test_a_file_that_was_swapped_after_the_check_is_not_read(store, change, said):
    bundle = load_bundle(write_bundle(store))
    change(bundle.path)
    with pytest.raises(Mismatch, match=re.escape(said)):
        bundle.read("tick.onnx")


def test_the_fake_manifest_is_the_documents(store):
    """The table above spoils one thing at a time, so what it starts from must be sound."""
    document = json.loads((write_bundle(store) / "manifest.json").read_text())
    assert set(DOCUMENT) < set(document)
