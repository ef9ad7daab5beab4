"""Training diffusion: a run from configuration to checkpoint and back, and tasks that it cannot learn."""

import tomllib
from pathlib import Path

import pytest
import torch

from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.families import load_trained
from ctm.tasks import load_task
from ctm.training.evaluate_diffusion import evaluate_diffusion
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table
from export.source import from_checkpoint

CONFIG = Path(__file__).parent.parent / "configs" / "digits-diffusion.toml"


def table(folder: Path, **changes: object) -> dict:
    values = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    values |= {"updates": 40, "output_dir": str(folder)}
    values["optimiser"] |= {"warmup_updates": 5, "average_decay": 0.0}
    values["model"] |= {"ticks": 3, "width": 24}
    for key, value in changes.items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(from_table(table(folder), source="test"))
    return folder / "digits-diffusion"


def test_a_run_leaves_a_model_that_denoises_better_than_silence(run):
    trained = load_trained(run)
    assert trained.family == "diffusion"
    assert isinstance(trained.model, EnhancedCTMDiffusion)
    config = from_table(table(run.parent), source="test")
    quality = evaluate_diffusion(trained.model, load_task(config.task).held_out, 500).quality
    assert quality.rows == 359
    assert quality.guided < 0.7, "predicting no noise at all has an error of 1"
    assert quality.base < 0.7
    assert len(quality.guided_by_tick) == 3
    said = (run / "log.jsonl").read_text(encoding="utf-8")
    assert f'"guided": {quality.guided!r}' in said, "what was written down while training can be had again"


def test_the_same_configuration_gives_the_same_weights(run, tmp_path):
    assert train(from_table(table(tmp_path), source="test"))
    again, first = load_trained(tmp_path / "digits-diffusion").model, load_trained(run).model
    for (name, left), right in zip(again.state_dict().items(), first.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_a_denoiser_alone_trains_too(tmp_path):
    assert train(from_table(table(tmp_path, diffusion={"guided": False}), source="test"))
    model = load_trained(tmp_path / "digits-diffusion").model
    assert isinstance(model, EnhancedCTMDiffusion)
    assert model.thinker is None


def test_export_finds_the_classes_that_it_learned_to_draw(run):
    source = from_checkpoint(run)
    assert source.family == "diffusion"
    assert (source.labels, source.classes) == ((), tuple("0123456789"))
    assert [spec.name for spec in source.program.finish_outputs] == ["next_image", "estimate"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"task": {"name": "parity"}}, "diffusion needs a task of grey images", id="no images"),
        pytest.param({"diffusion": {"classes": 9}}, "diffusion.classes must be the task's 10, got 9", id="classes"),
        pytest.param(
            {
                "diffusion": {"side": 6},
                "model": {"input_shape": [48, 9], "out_dims": 288, "prediction_shape": [36, 8]},
            },
            "diffusion.side must divide the images' 8 x 8 pixels, got 6",
            id="side",
        ),
        pytest.param({"diffusion": {"width": 32}}, "model.in_channels must be 32", id="core"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(from_table(table(tmp_path, **changes), source="test"))
