"""A diffusion model through the export: three graphs, whole samples compared, and a card that says what was found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.json_format import Parse
from huggingface_hub import ModelCard
from small_diffusion import CORE, DIFFUSION
from tiny_bundle import tiny_model
from tiny_diffusion import ABSTAIN_BELOW, CLASSES, THRESHOLD, tiny_diffusion, write_diffusion_bundle

from ctm.checkpoint import Checkpoint, write_checkpoint
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import JudgedNoise
from ctm.servable import ServableDiffusion, servable
from export.artefact import Array
from export.chain_agreement import CHAIN_TOLERANCE, LINKS, measure_chain
from export.cli import main
from export.errors import DisagreementError, ExportError
from export.manifest import describe_quality
from export.quality_diffusion import CANDIDATES, choose_noise_threshold, measure_noise, measure_on_images
from export.source import Source, from_checkpoint, random_inputs
from protos.ctm_bundle_pb2 import Manifest, TensorSpec


class Frozen:
    """An artefact that is the program itself, and that can be told to err."""

    backend = "frozen"

    def __init__(
        self, form: ServableDiffusion, *, noise: float = 0.0, certainty: float = 0.0, deaf: bool = False
    ) -> None:
        self._encode, self._tick, self._finish = form.encode(), form.tick(form.config.ticks), form.finish()
        self._place = [spec.name for spec in form.program.finish_inputs].index("abstained")
        self._certainty = len(form.program.state) + 1
        self._noise, self._more, self._deaf = noise, certainty, deaf

    def encode(self, arguments: Sequence[Array]) -> list[Array]:
        return self._run(self._encode, arguments)

    def tick(self, arguments: Sequence[Array]) -> list[Array]:
        results = self._run(self._tick, arguments)
        results[self._certainty] = results[self._certainty] + np.float32(self._more)
        return results

    def finish(self, arguments: Sequence[Array]) -> list[Array]:
        given = list(arguments)
        if self._deaf:
            given[self._place] = np.zeros_like(given[self._place])
        image, *others = self._run(self._finish, given)
        return [image + np.float32(self._noise), *others]

    @torch.inference_mode()
    def _run(self, function: torch.nn.Module, arguments: Sequence[Array]) -> list[Array]:
        return [result.numpy() for result in function(*map(torch.from_numpy, arguments))]


@pytest.fixture(scope="module")
def form() -> ServableDiffusion:
    made = servable(tiny_diffusion())
    assert isinstance(made, ServableDiffusion)
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that hands its estimate on, so that a link has every kind of input."""
    return write_diffusion_bundle(tmp_path_factory.mktemp("store"), refine=True, eta=0.25)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return Parse((bundle / "manifest.json").read_text(encoding="utf-8"), Manifest())


def _inputs(form: ServableDiffusion) -> tuple[torch.Tensor, ...]:
    return random_inputs(Source(model=form.model, servable=form), 32)


def test_a_bundle_has_a_finish_in_both_forms_that_follows_the_model(manifest: Manifest) -> None:
    assert [artefact.backend for artefact in manifest.artefacts] == ["onnx", "torchscript"]
    hashed = {file.name for file in manifest.files}
    for artefact, ending in zip(manifest.artefacts, ("onnx", "ts"), strict=True):
        assert dict(artefact.graphs) == {name: f"{name}.{ending}" for name in ("encode", "tick", "finish")}
        assert hashed >= set(artefact.graphs.values())
        chain = artefact.agreement.chain
        assert chain.finish < 1e-4
        assert max(artefact.agreement.one_tick) < 1e-4
        assert chain.images < chain.tolerance == CHAIN_TOLERANCE
        assert (chain.equal_stop_ticks, chain.equal_abstain_masks) == (1.0, 1.0)
        assert (chain.rows, chain.links, chain.eta) == (16, LINKS, 0.5)
        assert 0 < chain.abstaining < 1, "some thoughts of the run abstain"
        assert 0 < chain.certain < 1, "some stop early"
        assert 0 < chain.abstain_below < chain.certainty_threshold < 1


def test_the_manifest_says_what_a_server_of_chains_needs(manifest: Manifest) -> None:
    assert (manifest.chain, manifest.family) == ("diffusion", "diffusion")
    diffusion = manifest.diffusion
    assert (diffusion.levels, diffusion.steps, diffusion.eta) == (DIFFUSION.levels, 6, 0.25)
    assert tuple(diffusion.classes) == CLASSES
    assert list(manifest.labels) == [], "a prediction is of bins, not of classes"
    assert manifest.stop.certainty_threshold == pytest.approx(THRESHOLD)
    assert manifest.stop.abstain_below == pytest.approx(ABSTAIN_BELOW)
    assert [spec.name for spec in manifest.inputs] == ["image", "level", "label", "estimate"]
    given = {spec.name: spec for spec in manifest.finish_inputs}
    assert list(given) == [
        *("image", "level", "label", "next_level", "eta", "noise", "abstained", "prediction", "certainty", "guide"),
    ]
    assert (given["abstained"].role, given["abstained"].datatype) == (TensorSpec.ABSTAINED, "BOOL")
    assert (given["next_level"].minimum, given["next_level"].maximum) == (-1, DIFFUSION.levels - 2)
    assert [spec.name for spec in manifest.finish_outputs] == ["next_image", "estimate", "next_estimate"]
    assert set(manifest.config.keys()) == {"model", "diffusion"}


def test_a_card_without_quality_says_how_it_is_asked_and_what_was_compared(bundle: Path) -> None:
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for words in (
        "ctm-think --model tiny-diffusion --class three --rows 4",
        "drawn in 6 reverse steps (at most 20) with eta 0.25",
        "A thought less certain than 0.2 abstains: its reverse step is made without it.",
        "| out, at the end | `next_image` |",
        "Classes: none, one, two, three.",
        "16 images in 12 reverse steps with eta 0.5",
        "Not measured",
    ):
        assert words in card


@pytest.mark.parametrize(
    ("tampering", "sentence"),
    [
        pytest.param({"noise": 0.01}, r"frozen finish, 1 rows: next_image differs from eager's by 0.0", id="image"),
        pytest.param({"noise": np.nan}, r"frozen finish, 1 rows: next_image differs .* by inf", id="NaN"),
        pytest.param({"deaf": True}, r"frozen finish, \d+ rows: next_image", id="an abstention that is not heard"),
        pytest.param({"certainty": 0.05}, r"frozen sampling: of 192 thoughts .* than eager's", id="another certainty"),
    ],
)
def test_a_finish_that_errs_is_refused_by_name(
    form: ServableDiffusion, tampering: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DisagreementError, match=sentence):
        measure_chain(form, Frozen(form, **tampering), _inputs(form))


def test_the_program_itself_draws_what_the_model_draws(form: ServableDiffusion) -> None:
    agreement = measure_chain(form, Frozen(form), _inputs(form))
    assert agreement.finish == 0.0
    assert agreement.images < 1e-4
    assert (agreement.equal_stop_ticks, agreement.equal_abstain_masks) == (1.0, 1.0)


# Four images of three ticks, ever more certain; the error falls, but for the last tick of the last image.
RISING = JudgedNoise(
    base=np.full(4, 0.8, np.float32),
    guided=np.array([[0.6, 0.4, 0.4]] * 3 + [[0.6, 0.4, 0.39]], np.float32),
    certainty=np.array([[0.15, 0.35, 0.55]] * 4, np.float32),
    level=np.array([0, 6, 12, 19]),
)


@pytest.mark.parametrize(
    ("loss", "threshold"),
    [
        pytest.param(0.0, 0.36, id="no loss: the third tick"),
        pytest.param(0.01, 0.16, id="a hundredth: the second tick is enough"),
        pytest.param(1.0, CANDIDATES[0], id="anything: the first tick, by the smallest candidate"),
    ],
)
def test_the_smallest_threshold_within_the_allowed_error_is_chosen(loss: float, threshold: float) -> None:
    assert choose_noise_threshold(RISING, loss) == threshold


def test_quality_sums_up_ticks_thresholds_and_those_that_abstain() -> None:
    judged = RISING._replace(certainty=np.array([[0.15, 0.35, 0.55]] * 3 + [[0.1, 0.2, 0.3]], np.float32))
    quality = measure_noise(judged, DIFFUSION.levels, 0.35, 0.32, "Because.")
    assert (quality.shipped.threshold, quality.shipped.mean_ticks) == (0.35, 2.25)
    assert quality.shipped.error == pytest.approx((3 * 0.4 + 0.39) / 4)
    assert quality.abstaining.abstaining == 0.25
    assert quality.abstaining.error == pytest.approx((3 * 0.4 + 0.8) / 4), "the last image takes the base path"
    described = describe_quality(quality)
    assert (described.metric, described.rows) == ("noise_error", 4)
    assert described.diffusion.guided == pytest.approx((3 * 0.4 + 0.39) / 4)
    assert described.diffusion.shipped.abstaining == 0.25
    assert [point.noise_error for point in described.frontier if point.certainty_threshold == 0.35] == [
        pytest.approx(quality.shipped.error)
    ]


def _checkpoint(folder: Path, model: EnhancedCTMDiffusion, **changes: Any) -> Path:
    """A checkpoint as training writes it, of a model that was never trained."""
    assert model.thinker is not None
    task = {"name": "digits", "input_name": "image", "labels": list("0123456789"), "prediction_shape": [10]}
    config = {
        "family": "diffusion",
        "model": model.thinker.config.to_dict(),
        "diffusion": model.diffusion.to_dict(),
        "task": task,
        "run": {"data_dir": None},
        "provenance": {"command": "ctm-train digits-diffusion.toml", "seed": 7, "torch": "2.13.0"},
    }
    write_checkpoint(folder, Checkpoint(weights=model.state_dict(), config={**config, **changes}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusion = replace(DIFFUSION, side=4, patch=2, classes=10, layers=1, confidence_threshold=0.001)
    core = replace(CORE, out_dims=64, prediction_shape=(16, 4))
    torch.manual_seed(0)
    return _checkpoint(tmp_path_factory.mktemp("run") / "best", EnhancedCTMDiffusion(core, diffusion, seed=0))


def test_the_command_measures_a_checkpoint_on_its_task(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--only-onnx", "--agreement-rows", "32", "--steps", "5", "--eta", "0.5", "--name", "scribble"]
    assert main([str(checkpoint), "--store", str(tmp_path), *options]) == 0
    folder = tmp_path / "scribble" / "1"
    manifest = Parse((folder / "manifest.json").read_text(encoding="utf-8"), Manifest())
    assert tuple(manifest.diffusion.classes) == tuple("0123456789")
    assert (manifest.diffusion.steps, manifest.diffusion.eta) == (5, 0.5)
    assert manifest.stop.abstain_below == pytest.approx(0.001), "the model's own"
    assert [artefact.backend for artefact in manifest.artefacts] == ["onnx"]
    quality = manifest.quality
    assert (quality.metric, quality.rows, len(quality.certainty)) == ("noise_error", 359, CORE.ticks)
    assert quality.diffusion.base == pytest.approx(1.0, abs=0.1), "untrained: it finds no noise"
    assert len(quality.diffusion.base_by_level) == 5
    plots = {"by_tick.png", "by_level.png", "abstention.png"}
    assert {path.name for path in folder.glob("*.png")} == plots
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    assert card.data.eval_results[0].metric_value == pytest.approx(quality.diffusion.guided, abs=1e-4)
    assert {name for name in plots if f"]({name})" in card.text} == plots
    for words in (f"it is **{quality.diffusion.base:.5f}**", "(shipped)", "held out of training", "abstain below"):
        assert words in card.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param(["--steps", "0"], "--steps must be at least 1, got 0", id="no steps"),
        pytest.param(["--steps", "21"], "--steps must be at most the model's 20 levels, got 21", id="too many steps"),
        pytest.param(["--eta", "1.5"], "--eta must be in [0, 1], got 1.5", id="eta"),
        pytest.param(["--max-noise-loss", "-1"], "--max-noise-loss must be percent in [0, 100], got -1", id="loss"),
        pytest.param(["--energy-delta", "1"], "needs a model with an energy head, this one has none", id="energy"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main([str(checkpoint), "--store", str(tmp_path), "--name", "x", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ctm-export: error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert list(tmp_path.iterdir()) == []


def test_options_of_sampling_are_for_diffusion_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    config = {"family": "ctm", "model": model.config.to_dict(), "task": {"name": "random"}}
    write_checkpoint(tmp_path / "plain", Checkpoint(weights=model.state_dict(), config=config))
    assert main([str(tmp_path / "plain"), "--store", str(tmp_path / "store"), "--steps", "5"]) == 2
    said = "--steps and --eta are for models of diffusion, this one is of family ctm"
    assert said in capsys.readouterr().err


def test_a_denoiser_alone_is_refused_by_name(tmp_path: Path) -> None:
    core = CORE.to_dict()
    alone = EnhancedCTMDiffusion(CORE, replace(DIFFUSION, guided=False))
    config = {"family": "diffusion", "model": core, "diffusion": alone.diffusion.to_dict()}
    write_checkpoint(tmp_path / "alone", Checkpoint(weights=alone.state_dict(), config=config))
    with pytest.raises(ExportError, match="a denoiser alone does not think, so it makes no program"):
        from_checkpoint(tmp_path / "alone")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"name": "parity"}, r"parity, has inputs of shape \(16,\), its model draws images", id="no images"
        ),
        pytest.param(
            {"name": "digits"}, r"shape \(1, 8, 8\), .* one channel, pooled to 6 x 6 pixels", id="another side"
        ),
    ],
)
def test_a_task_without_such_images_is_refused(
    form: ServableDiffusion, settings: dict[str, Any], sentence: str
) -> None:
    wishes = {"threshold": 0.5, "abstain_below": 0.0, "max_noise_loss": 0.0, "rows": 32, "say": lambda _: None}
    with pytest.raises(ExportError, match=sentence):
        measure_on_images(form.model, settings, None, **wishes)
