"""The command, from a checkpoint's folder to a bundle that the server accepts."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import fake_hub, look_at
from huggingface_hub import ModelCard
from PIL import Image
from test_ctm_language_model import language_model
from tiny_bundle import tiny_model

from ctm.checkpoint import Checkpoint, write_checkpoint
from ctm.families import TOKENIZER
from ctm.frontier import THRESHOLDS
from ctm.model import CTM
from ctm.reference import save_reference
from export import build
from export.cli import main
from export.source import from_checkpoint
from serving.bundle import load_bundle

DIGITS = {
    "ticks": 5,
    "backbone": "digit",
    "in_channels": 1,
    "input_shape": (1, 8, 8),
    "input_mean": (0.3,),
    "input_std": (0.4,),
}
MISSING = object()
PLOTS = {"by_tick.png", "frontier.png", "calibration.png", "ticks_used.png"}


def _checkpoint(folder: Path, model: CTM, **changes: Any) -> Path:
    """A checkpoint as training writes it, of a model that was never trained."""
    config = {
        "family": "ctm",
        "model": model.config.to_dict(),
        "task": {"name": "digits", "input_name": "image", "labels": list("0123456789"), "prediction_shape": [10]},
        "run": {"data_dir": None},
        "provenance": {"command": "ctm-train digits.toml --output-dir /home/me/runs", "seed": 7, "torch": "2.13.0"},
    }
    write_checkpoint(folder, Checkpoint(weights=model.state_dict(), config={**config, **changes}))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an untrained model of digits, exported by the command."""
    folder = tmp_path_factory.mktemp("export")
    checkpoint = _checkpoint(folder / "checkpoint", tiny_model(**DIGITS))
    arguments = [str(checkpoint), "--store", str(folder / "store"), "--name", "scribble", "--agreement-rows", "64"]
    assert main([*arguments, "--abstain-below", "0.25", "--description", "Not trained at all."]) == 0
    return folder / "store" / "scribble" / "1"


def test_the_server_accepts_the_bundle(published: Path) -> None:
    bundle = load_bundle(published)
    assert (bundle.name, bundle.version, bundle.labels) == ("scribble", 1, tuple("0123456789"))
    assert (bundle.stop.max_ticks, bundle.tick_cap, bundle.abstain_below) == (5, 10, 0.25)
    image = bundle.program.inputs[0]
    assert (image.name, image.shape, image.minimum, image.maximum) == ("image", (1, 8, 8), 0.0, 1.0)


def test_the_manifest_says_what_was_made_of_what_and_how_good_it_is(published: Path) -> None:
    manifest = load_bundle(published).manifest
    provenance, quality = manifest.provenance, manifest.quality
    assert provenance.command == "ctm-train digits.toml --output-dir runs", "no absolute paths"
    assert provenance.export_command.startswith("ctm-export checkpoint --store store --name scribble")
    assert provenance.seed == 7
    assert provenance.data == "digits: 1,079 training rows, 359 held-out training rows, 359 test rows"
    assert provenance.parameters == sum(weight.numel() for weight in tiny_model(**DIGITS).parameters())
    assert provenance.created.endswith("+00:00")
    assert {"torch", "export: torch", "export: onnx"} <= set(provenance.versions)
    assert (quality.metric, quality.split, quality.rows) == ("accuracy", "test", 359)
    assert len(quality.accuracy) == len(quality.certainty) == len(quality.calibration_error) == 5
    thresholds = {round(point.certainty_threshold, 6) for point in quality.frontier}
    assert thresholds == {*THRESHOLDS, round(manifest.stop.certainty_threshold, 6)}
    assert [artefact.backend for artefact in manifest.artefacts] == ["onnx", "torchscript"]
    for artefact in manifest.artefacts:
        agreement = artefact.agreement
        assert len(agreement.one_tick) == len(agreement.free_running) == 5
        assert max(agreement.one_tick) <= agreement.tolerance
        assert (list(agreement.row_counts), agreement.rows) == ([1, 2, 7, 32], 64)
        assert agreement.equal_stop_ticks >= 0.999


def test_every_file_but_manifest_and_card_has_its_hash_in_the_manifest(published: Path) -> None:
    hashed = {file.name for file in load_bundle(published).manifest.files}
    assert hashed == {path.name for path in published.iterdir()} - {"manifest.json", "README.md"}
    assert hashed >= PLOTS | {"encode.onnx", "tick.onnx", "encode.ts", "tick.ts", "weights.safetensors"}


def test_the_card_is_one_that_hugging_face_reads_and_every_link_in_it_works(published: Path) -> None:
    card = ModelCard((published / "README.md").read_text())
    assert card.data.library_name == "ctm-serving"
    assert card.data.eval_results[0].metric_value == pytest.approx(
        load_bundle(published).manifest.quality.accuracy_most_certain, abs=1e-4
    )
    for words in ("Not trained at all.", "(shipped)", "## Limits", "ctm-train digits.toml --output-dir runs"):
        assert words in card.text
    assert {name for name in PLOTS if f"]({name})" in card.text} == PLOTS


def test_plots_are_small_pictures(published: Path) -> None:
    for name in PLOTS:
        assert (published / name).stat().st_size < 60_000
        with Image.open(published / name) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 0, "something is drawn"


def test_a_checkpoint_may_stand_in_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(**DIGITS)
    with fake_hub() as hub:
        look_at(monkeypatch, hub.address, tmp_path / "cache")
        hub.repositories["org/digits"] = _checkpoint(tmp_path / "run", model)
        source = from_checkpoint(Path("org/digits@v1"))
        assert main(["org/absent", "--store", str(tmp_path / "store")]) == 2
    assert hub.files() == ["config.json", "weights.safetensors"]
    assert (source.task, source.labels) == ("digits", tuple("0123456789"))
    weights = source.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ctm-export: error: org/absent is no file or folder here, and no repository at http")


def test_a_reference_is_exported_without_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_reference(tiny_model(ticks=3, backbone="resnet18-1", in_channels=3, input_shape=()), tmp_path / "theirs")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {index}" for index in range(10)))
    arguments = ["--reference", str(tmp_path / "theirs"), "--store", str(tmp_path / "store"), "--name", "theirs"]
    given = ["--input-shape", "3", "9", "7", "--input-range", "0", "1", "--labels", str(labels), "--threshold", "0.8"]
    assert main([*arguments, *given, "--tick-cap", "4", "--agreement-rows", "32"]) == 0
    path = tmp_path / "store" / "theirs" / "1"
    assert capsys.readouterr().out.strip() == str(path)
    bundle = load_bundle(path)
    assert bundle.labels[9] == "kind 9"
    assert (bundle.stop.certainty_threshold, bundle.tick_cap) == (pytest.approx(0.8), 4)
    assert bundle.program.inputs[0].shape == (3, 9, 7)
    assert not bundle.manifest.HasField("quality")
    assert "Not measured" in (path / "README.md").read_text()
    assert not list(path.glob("*.png"))


def test_a_model_that_does_not_think_is_not_said_to_lack_a_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = language_model({"ticks": 1}, alone=True)
    config = {"family": "language", "model": model.config.to_dict(), "language": model.language.to_dict()}
    checkpoint = Checkpoint(weights=model.state_dict(), config=config, files={TOKENIZER: "{}"})
    write_checkpoint(tmp_path / "gpt2", checkpoint)
    assert main([str(tmp_path / "gpt2"), "--name", "gpt2", "--store", str(tmp_path / "store")]) == 2
    said = "ctm-export: error: a GPT-2 alone does not think, so it makes no program\n"
    assert capsys.readouterr().err == said


def _place(argument: str) -> tuple[str, str]:
    """`NAME/file` as a place and what follows it."""
    name, slash, rest = argument.partition("/")
    return (name, slash + rest) if name.isupper() else (argument, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "either a checkpoint or --reference must say what is exported", id="nothing to export"),
        pytest.param(["CHECKPOINT", "--reference", "x"], "either a checkpoint or --reference", id="two things"),
        pytest.param(["nowhere"], "nowhere is no checkpoint", id="no checkpoint"),
        pytest.param(["--reference", "nowhere"], "nowhere is no file, no folder", id="no reference"),
        pytest.param(["CHECKPOINT", "--threshold", "1.5"], "--threshold must be a certainty in [0, 1]", id="threshold"),
        pytest.param(["CHECKPOINT", "--abstain-below", "nan"], "--abstain-below must be a certainty", id="abstain"),
        pytest.param(["CHECKPOINT", "--max-accuracy-loss", "-1"], "points in [0, 100], got -1", id="loss"),
        pytest.param(["CHECKPOINT", "--patience", "11"], "--patience must be at most the tick cap, 10", id="patience"),
        pytest.param(["CHECKPOINT", "--tick-cap", "4"], "at least the model's 5 ticks, got 4", id="tick cap"),
        pytest.param(
            ["CHECKPOINT", "--tick-cap", "1000000000"], "--tick-cap must be at most 10000, got 10", id="huge tick cap"
        ),
        pytest.param(["CHECKPOINT", "--energy-delta", "1"], "needs a model with an energy head", id="energy"),
        pytest.param(["CHECKPOINT", "--labels", "x"], "go with --reference alone", id="reference's options"),
        pytest.param(["CHECKPOINT", "--agreement-rows", "9"], "--agreement-rows must be at least 32", id="rows"),
        pytest.param(["CHECKPOINT", "--without-quality", "--name", "a/b"], "a model's name is letters", id="name"),
        pytest.param(["CHECKPOINT", "--without-quality", "--name", ""], "of the first two; got ''", id="empty name"),
        pytest.param(["--reference", "THEIRS", "--name", "x"], "give it with --input-shape", id="no input shape"),
        pytest.param(
            ["--reference", "THEIRS", "--name", "x", "--input-shape", "2", "9", "9"],
            "input_shape (2, 9, 9) does not fit the model",
            id="wrong input shape",
        ),
        pytest.param(
            ["--reference", "THEIRS", "--name", "x", "--input-shape", "3", "9", "9", "--labels", "ONE"],
            "labels must be 10, one for each class, got 1",
            id="labels",
        ),
        pytest.param(["--reference", "THEIRS", "--input-shape", "3", "9", "9"], "--name must say", id="no name"),
        pytest.param(["MNIST", "--data-dir", "EMPTY"], "the task's data: EMPTY lacks train-images", id="no data"),
        pytest.param(
            ["CHECKPOINT", "--without-quality", "--data-dir", "EMPTY"], "--data-dir is where", id="data unused"
        ),
        pytest.param(["CHECKPOINT", "--description", "a\udcff"], r"must be UTF-8, got 'a\udcff'", id="description"),
        pytest.param(["CHECKPOINT", "--name", "a" * 101], "at most 100, beginning with one of", id="long name"),
        pytest.param(["CHECKPOINT", "--store", "ONE"], "--store must be a folder, ONE is none", id="store"),
        pytest.param(["--reference", "THEIRS", "--labels", "x"], "--labels x: No such file", id="no labels"),
        pytest.param(
            ["--reference", "THEIRS", "--labels", "DAMAGED/weights.safetensors"],
            "--labels DAMAGED/weights.safetensors must be UTF-8, one class name a line; got byte 0xff at 4",
            id="labels of other bytes",
        ),
        pytest.param(
            ["--reference", "THEIRS", "--input-range", "0", "inf"],
            "--input-range must be a lower and a higher finite number, got (0.0, inf)",
            id="endless range",
        ),
        pytest.param(["DAMAGED"], "weights.safetensors cannot be read", id="damaged checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_publish_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    model = tiny_model(**DIGITS)
    task = {"name": "mnist", "input_name": "image", "labels": list("0123456789"), "prediction_shape": [10]}
    places = {
        "CHECKPOINT": _checkpoint(tmp_path / "ours", model),
        "MNIST": _checkpoint(tmp_path / "mnist", model, task=task),
        "DAMAGED": _checkpoint(tmp_path / "damaged", model),
        "THEIRS": tmp_path / "theirs",
        "EMPTY": tmp_path / "empty",
        "ONE": tmp_path / "one.txt",
    }
    (places["DAMAGED"] / "weights.safetensors").write_bytes(b"half\xffa file")
    save_reference(tiny_model(ticks=3, backbone="resnet18-1", in_channels=3, input_shape=()), places["THEIRS"])
    places["EMPTY"].mkdir()
    places["ONE"].write_text("a single kind\n")
    given = [str(places.get(name, name)) + rest for name, rest in map(_place, arguments)]
    assert main(["--store", str(tmp_path / "store"), *given]) == 2
    error = capsys.readouterr().err
    for name, path in places.items():
        error = error.replace(str(path), name)
    assert error.startswith("ctm-export: error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        pytest.param("task", MISSING, "does not say what its task is; --without-quality exports", id="no task"),
        pytest.param("task", 3, "config.json: task: must be an object, got 3", id="task 3"),
        pytest.param("task", None, "config.json: task: must be an object, got None", id="task null"),
        pytest.param("task.name", 3, "task.name: Input should be a valid string, got 3", id="task's name 3"),
        pytest.param("task.name", "chess", "the checkpoint's task is none that is known here", id="unknown task"),
        pytest.param("task.labels", "ten", "task.labels: Input should be a valid tuple, got 'ten'", id="labels"),
        pytest.param("run", [], "config.json: run: must be an object, got []", id="run a list"),
        pytest.param("provenance", "me", "config.json: provenance: must be an object, got 'me'", id="provenance text"),
        pytest.param("provenance.seed", -1, "provenance.seed: Input should be greater than or equal to 0", id="seed"),
        pytest.param(
            "provenance.command", "ctm-train 'a", "provenance.command: No closing quotation, got", id="unbalanced quote"
        ),
        pytest.param("model", 3, "config.json: model must be an object, got 3", id="model 3"),
        pytest.param("model.dropout", None, "dropout must be a number in [0, 1), got None", id="dropout null"),
        pytest.param("model.dropout", "much", "dropout must be a number in [0, 1), got 'much'", id="dropout text"),
        pytest.param("model.nlm_dropout", "much", "nlm_dropout must be a number in [0, 1), got 'much'", id="nlm"),
        pytest.param("model.input_shape", 8, "input_shape must be a list, got 8", id="input shape 8"),
        pytest.param("model.input_std", ["wide"], "input_std must be numbers, got ('wide',)", id="deviation text"),
    ],
)
def test_a_checkpoint_that_says_nonsense_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any, sentence: str
) -> None:
    checkpoint = _checkpoint(tmp_path / "ours", tiny_model(**DIGITS))
    config = json.loads((checkpoint / "config.json").read_text())
    *parents, key = place.split(".")
    section = config[parents[0]] if parents else config
    section.pop(key)
    if value is not MISSING:
        section[key] = value
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert main([str(checkpoint), "--name", "x", "--store", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ctm-export: error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "store").exists()


def test_a_terminated_export_takes_its_own_draft_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, others = tmp_path / "store", ".scribble-others"
    (store / others).mkdir(parents=True)
    seen: list[str] = []

    def write_onnx(*_: Any, **__: Any) -> None:
        seen.extend(path.name for path in store.iterdir())
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(build, "write_onnx", write_onnx)
    before = signal.getsignal(signal.SIGTERM)
    checkpoint = _checkpoint(tmp_path / "ours", tiny_model(**DIGITS))
    assert main([str(checkpoint), "--name", "scribble", "--store", str(store), "--without-quality"]) == 143
    assert len(seen) == 2, "a draft had been begun"
    assert [path.name for path in store.iterdir()] == [others], "another export may be at work there"
    assert capsys.readouterr().err.endswith("ctm-export: terminated; nothing was published\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_unknown_option_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["somewhere", "--treshold", "0.5"])
    assert stop.value.code == 2
    assert "--treshold" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("CHECKPOINT", "--reference", "--store", "--name", "--threshold", "--max-accuracy-loss"):
        assert option in text


def test_the_manifest_is_plain_json(published: Path) -> None:
    document = json.loads((published / "manifest.json").read_text())
    assert document["format_version"] == 1
    assert document["config"]["backbone"] == "digit"
