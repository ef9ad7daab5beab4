"""Which diffusion bundles may serve: the finish fits the program, and the program fits a chain of reverse steps."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import describe, fake_document, read_manifest, write_bundle, write_manifest
from scripted_diffusion import CLASSES, LEVELS, MANIFEST, START

from serving.store import scan

Spoil = Any


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def write_fake_diffusion(store: Path, name: str = "dots") -> Path:
    """A folder that passes every check but those of a runtime."""
    plain = {key: value for key, value in MANIFEST.items() if key not in ("name", "version")}
    path = write_bundle(store, name, start=START, **{"labels": None, **plain})
    (path / "finish.onnx").write_bytes(b"finish")
    files = [describe(file) for file in sorted(path.iterdir()) if file.name != "manifest.json"]
    write_manifest(path, {**read_manifest(path), "files": files})
    return path


def test_a_sound_bundle(store):
    write_fake_diffusion(store)
    (bundle,), refused = scan(store)
    assert refused == []
    model, finish = bundle.diffusion, bundle.program.finish
    assert (model.levels, model.steps, model.eta) == (LEVELS, 4, 0.5)
    assert (model.classes, model.num_classes) == (tuple(CLASSES), len(CLASSES))
    assert [spec.name for spec in model.fed_back] == ["links"]
    assert [spec.name for spec in finish.given] == ["next_level", "eta", "noise"]
    assert finish.abstained == "abstained"
    beginning = [spec.name for spec in bundle.program.beginning]
    assert beginning == ["image", "level", "label", "links", "next_level", "eta", "noise"]


def spec(field: str, name: str, /, **changes: Any) -> Spoil:
    """Change one tensor; a change to None takes a field out."""

    def spoil(manifest: dict[str, Any]) -> None:
        for place, one in enumerate(manifest[field]):
            if one["name"] == name:
                changed = {**one, **changes}
                manifest[field][place] = {key: value for key, value in changed.items() if value is not None}

    return spoil


def without(field: str, *names: str) -> Spoil:
    def spoil(manifest: dict[str, Any]) -> None:
        manifest[field] = [one for one in manifest[field] if one["name"] not in names]

    return spoil


def also(field: str, **one: Any) -> Spoil:
    return lambda manifest: manifest[field].append({"datatype": "FP32", "shape": [], **one})


def diffusion(**changes: Any) -> Spoil:
    return lambda manifest: manifest["diffusion"].update(changes)


def both(*spoils: Spoil) -> Spoil:
    def spoil(manifest: dict[str, Any]) -> None:
        for one in spoils:
            one(manifest)

    return spoil


def graphs(*names: str) -> Spoil:
    return lambda manifest: manifest["artefacts"][0].update(graphs={name: f"{name}.onnx" for name in names})


def forget_finish(manifest: dict[str, Any]) -> None:
    manifest["files"] = [file for file in manifest["files"] if file["name"] != "finish.onnx"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        # The finish.
        pytest.param(lambda m: m.pop("finish_outputs"), "got 11 and 0 tensors, expected both, or neither", id="half"),
        pytest.param(graphs("encode", "tick"), "graphs: got encode, tick, expected encode, finish, tick", id="graph"),
        pytest.param(forget_finish, "files: got encode.onnx, start.safetensors, tick.onnx, expected also", id="hash"),
        pytest.param(
            also("finish_inputs", name="eta"), "names of finish_inputs: got 'eta', expected each once", id="twice"
        ),
        pytest.param(
            also("finish_outputs", name=""), "names of finish_outputs: got '', expected each once", id="no name"
        ),
        pytest.param(
            spec("finish_inputs", "noise", datatype="FP8"), "finish_inputs 'noise', datatype: got 'FP8'", id="FP8"
        ),
        pytest.param(
            spec("finish_inputs", "image", shape=[3, 2]),
            "finish_inputs 'image': got FP32 [3, 2], expected FP32 [2, 3]",
            id="another image",
        ),
        pytest.param(
            spec("finish_inputs", "guide", datatype="FP64"),
            "finish_inputs 'guide': got FP64 [2], expected FP32 [2]",
            id="another guide",
        ),
        pytest.param(
            spec("finish_inputs", "abstained", datatype="INT64"),
            "finish_inputs 'abstained': got INT64 [], expected BOOL []",
            id="abstained is no truth value",
        ),
        pytest.param(
            spec("finish_inputs", "abstained", role=None),
            "finish_inputs of role ABSTAINED: got none, expected one",
            id="nobody abstains",
        ),
        pytest.param(
            also("finish_inputs", name="too", datatype="BOOL", role="ABSTAINED"),
            "finish_inputs of role ABSTAINED: got abstained, too, expected one",
            id="two abstain",
        ),
        pytest.param(
            both(also("inputs", name="guide"), also("finish_outputs", name="next_guide")),
            "finish_inputs 'guide': got an input and an output of the tick, expected one of them",
            id="whose guide",
        ),
        pytest.param(
            without("finish_inputs", "guide"), "outputs 'guide', role: got 0, expected one of", id="nobody reads it"
        ),
        pytest.param(
            spec("outputs", "guide", role="ABSTAINED"), "outputs 'guide', role: got 6", id="a tick that abstains"
        ),
        pytest.param(
            spec("finish_outputs", "next_links", name="next_link"),
            "finish_outputs: got 'next_link', expected next_ and one of image, level",
            id="next of nothing",
        ),
        pytest.param(
            spec("finish_outputs", "next_image", shape=[6]),
            "finish_outputs 'next_image': got FP32 [6], expected FP32 [2, 3]",
            id="another next image",
        ),
        # The chain.
        pytest.param(lambda m: m.pop("diffusion"), "chain 'diffusion' and no diffusion, expected both", id="no steps"),
        pytest.param(lambda m: m.pop("chain"), "got chain '' and a diffusion, expected both", id="no chain"),
        pytest.param(
            lambda m: (m.pop("chain"), m.pop("diffusion")),
            "finish_inputs: got a program with a finish, chain '', expected none",
            id="a finish for nobody",
        ),
        pytest.param(diffusion(levels=1), "diffusion.levels: got 1, expected at least 2", id="one level"),
        pytest.param(diffusion(steps=0), "diffusion.steps: got 0, expected 1 to levels, 10", id="no step"),
        pytest.param(diffusion(steps=11), "diffusion.steps: got 11, expected 1 to levels, 10", id="many steps"),
        pytest.param(diffusion(eta=1.5), "diffusion.eta: got 1.5, expected a number in [0, 1]", id="eta"),
        pytest.param(diffusion(eta="NaN"), "diffusion.eta: got nan, expected a number in [0, 1]", id="no eta"),
        pytest.param(diffusion(classes=["a"]), "diffusion.classes: got 1, expected 4, one for each", id="one class"),
        pytest.param(diffusion(classes=[*"abca"]), "classes: got a, b, c, a, expected each name once", id="names"),
        pytest.param(without("inputs", "label"), "inputs: got image, level, links, expected also label", id="no label"),
        pytest.param(
            both(
                spec("inputs", "image", shape=[6]),
                spec("finish_inputs", "image", shape=[6]),
                spec("finish_outputs", "next_image", shape=[6]),
            ),
            "inputs 'image': got FP32 [6], expected FP32 [height, width]",
            id="a flat image",
        ),
        pytest.param(
            both(spec("inputs", "level", datatype="INT32"), spec("finish_inputs", "level", datatype="INT32")),
            "inputs 'level': got INT32 [], expected INT64 []",
            id="level INT32",
        ),
        pytest.param(
            spec("inputs", "level", maximum=10), "got 0.0, 10.0, expected 0 and 9: there are 10 levels", id="levels"
        ),
        pytest.param(spec("inputs", "label", maximum=None), "'label', maximum: got None", id="classes without end"),
        pytest.param(spec("inputs", "label", minimum=1), "got 1.0, 3.0, expected 0 and the last class, 3", id="from 1"),
        pytest.param(
            spec("inputs", "links", values=[1]), "inputs 'links': got length_of, buckets or values", id="values"
        ),
        pytest.param(
            without("finish_inputs", "eta"), "finish_inputs: got next_level, noise, expected next_level, eta", id="eta?"
        ),
        pytest.param(also("finish_inputs", name="mood"), "got next_level, eta, noise, mood, expected", id="mood"),
        pytest.param(
            spec("finish_inputs", "noise", shape=[6]), "'noise': got FP32 [6], expected FP32 [2, 3]", id="flat noise"
        ),
        pytest.param(
            without("finish_outputs", "next_links"), "got next_image, estimate, expected also next_links", id="links"
        ),
        pytest.param(without("finish_outputs", "estimate"), "expected also estimate", id="no estimate"),
        pytest.param(
            also("finish_outputs", name="next_label", datatype="INT64"), "got next_label, expected none", id="label"
        ),
        pytest.param(
            spec("finish_outputs", "estimate", shape=[]), "'estimate': got FP32 [], expected FP32 [2, 3]", id="estimate"
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store, spoil, said):
    path = write_fake_diffusion(store)
    manifest = deepcopy(read_manifest(path))
    spoil(manifest)
    write_manifest(path, manifest)
    bundles, refused = scan(store)
    assert bundles == []
    assert str(refused[0]).startswith(f"bundle dots/1 in {store}: ")
    assert said in str(refused[0])


def test_a_program_without_a_chain_has_no_finish(store):
    path = write_bundle(store)
    changed = {field: MANIFEST[field] for field in ("finish_inputs", "finish_outputs")}
    write_manifest(path, fake_document(files=read_manifest(path)["files"], **changed))
    assert scan(store)[0] == []
