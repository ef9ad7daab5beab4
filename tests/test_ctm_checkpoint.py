"""Checkpoints: what is written is read back, what is half-written is never seen, what is wrong is named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ctm.checkpoint import (
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_model,
    point_at,
    prune,
    read_checkpoint,
    sweep,
    write_checkpoint,
)
from ctm.config import CTMConfig
from ctm.model import CTM

CONFIG = CTMConfig(
    ticks=3, width=8, memory=3, attention_width=4, heads=2, out_neurons=5, action_neurons=4, out_dims=3, nlm_hidden=2
)


def a_checkpoint(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint(
        weights=CTM(CONFIG, seed=seed).state_dict(),
        config={"family": "ctm", "model": CONFIG.to_dict(), "task": {"name": "none"}, "run": {}},
        progress={"done": 7},
        trainer={"optimiser": {"0.step": torch.tensor(7.0), "0.exp_avg": torch.rand(2, 3)}},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = a_checkpoint()
    write_checkpoint(tmp_path / "update-000007", written)
    read = read_checkpoint(tmp_path / "update-000007")
    assert (read.config, read.progress) == (written.config, written.progress)
    for mine, theirs in [(read.weights, written.weights), (read.trainer["optimiser"], written.trainer["optimiser"])]:
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_loaded_model_thinks_as_the_saved_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", a_checkpoint(seed=3))
    model, config = load_model(tmp_path / "one")
    torch.manual_seed(3)
    saved = CTM(CONFIG, seed=3).eval()
    features = torch.rand(2, 1, 5)
    with torch.inference_mode():
        assert torch.equal(model(features).predictions, saved(features).predictions)
    assert not model.training
    assert config["task"] == {"name": "none"}


@pytest.mark.parametrize(
    ("saved", "said", "message"),
    [
        pytest.param({"hyper_rank": 3}, {"hyper_rank": 4}, "are down 0 of rank 3, .* are down 0 of rank 4", id="rank"),
        pytest.param({}, {"hyper_layers": "down"}, "down 0 of rank 8, up 0 of rank 8, .* are down 0 of", id="layers"),
        pytest.param({}, {"hyper_layers": "none"}, "are down 0 .*, the configuration's are none", id="plain settings"),
        pytest.param({"hyper_layers": "none"}, {}, "weights' hyper layers are none, .* down 0", id="plain weights"),
        pytest.param(
            {"hyper_nlm_rank": 2}, {"hyper_nlm_rank": 3}, "neurons of rank 2, .* neurons of rank 3", id="neurons"
        ),
    ],
)
def test_hyper_layers_that_are_not_those_of_the_configuration_are_named(
    tmp_path: Path, saved: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    plain = {**CONFIG.to_dict(), "synapse_depth": 2, "hyper_layers": "bottleneck"}
    checkpoint = Checkpoint(
        weights=CTM(CTMConfig.from_dict({**plain, **saved})).state_dict(),
        config={"family": "ctm", "model": CTMConfig.from_dict({**plain, **said}).to_dict()},
    )
    write_checkpoint(tmp_path / "one", checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "one")


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", a_checkpoint())
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json"}


def test_writing_again_replaces_the_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", a_checkpoint(seed=0))
    write_checkpoint(tmp_path / "one", a_checkpoint(seed=1))
    expected = a_checkpoint(seed=1).weights
    assert torch.equal(read_checkpoint(tmp_path / "one").weights["start_post"], expected["start_post"])
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("failing", ["weights.safetensors", "config.json", "optimiser.safetensors"])
def test_a_write_that_fails_leaves_no_checkpoint_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real = os.open

    def full_disk(path: Path, *arguments: int) -> int:
        if Path(path).name == failing:
            raise OSError("no space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(tmp_path / "update-000001", a_checkpoint())
    assert not (tmp_path / "update-000001").exists()
    monkeypatch.undo()
    prune(tmp_path, keep=3, spared=set())
    assert list(tmp_path.iterdir()) == []


def test_the_newest_and_the_spared_are_kept(tmp_path: Path) -> None:
    for update in (100, 200, 300, 400):
        (tmp_path / f"update-{update:06d}").mkdir()
    prune(tmp_path, keep=2, spared={tmp_path / "update-000100"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000100", "update-000300", "update-000400"]


def test_checkpoints_age_by_their_number_not_their_name(tmp_path: Path) -> None:
    for update in (999_998, 999_999, 1_000_000, 1_000_001):
        (tmp_path / f"update-{update:06d}").mkdir()
    (tmp_path / "notes").mkdir()
    prune(tmp_path, keep=2, spared={tmp_path / "update-999998"})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["notes", "update-1000000", "update-1000001", "update-999998"]


def test_whatever_lies_aside_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "best").symlink_to("whole")
    (tmp_path / ".aside-best-1").symlink_to("whole")
    (tmp_path / ".aside-last-1").symlink_to("nowhere")
    (tmp_path / ".aside-whole-1" / "trainer").mkdir(parents=True)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "whole"]


def test_a_run_stands_for_its_best_checkpoint_then_its_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("update-000001", "update-000002"):
        write_checkpoint(run / "checkpoints" / name, a_checkpoint())
    with pytest.raises(CheckpointError, match="no checkpoint and no run's folder"):
        find_checkpoint(run)
    point_at(run / "last", run / "checkpoints" / "update-000002")
    assert find_checkpoint(run).name == "update-000002"
    point_at(run / "best", run / "checkpoints" / "update-000002")
    point_at(run / "best", run / "checkpoints" / "update-000001")
    assert find_checkpoint(run).name == "update-000001"
    moved = run.rename(tmp_path / "moved")
    assert find_checkpoint(moved).name == "update-000001", "links are relative, so a run can be moved"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda folder: (folder / "weights.safetensors").unlink(), "is no checkpoint", id="no weights"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), "config.json cannot be read", id="no config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), "cannot be read", id="half a config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("[]"), "hold a JSON object", id="a list"),
        pytest.param(lambda folder: change(folder, family="lstm"), "family must be 'ctm', got 'lstm'", id="a family"),
        pytest.param(lambda folder: change(folder, model=None), "lacks the key 'model'", id="no model"),
        pytest.param(
            lambda folder: change(folder, model={**CONFIG.to_dict(), "depth": 2}),
            r"unknown CTM settings \['depth'\]",
            id="an unknown key",
        ),
        pytest.param(
            lambda folder: change(folder, model={**CONFIG.to_dict(), "width": 9}),
            "size mismatch for",
            id="another width",
        ),
        pytest.param(
            lambda folder: (folder / "weights.safetensors").write_bytes(b"x" * 100),
            "weights.safetensors cannot be read",
            id="weights of nonsense",
        ),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, damage, message: str) -> None:
    write_checkpoint(tmp_path / "one", a_checkpoint())
    damage(tmp_path / "one")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / "one")
    assert str(tmp_path / "one") in str(caught.value)
    assert "\n" not in str(caught.value)


def change(folder: Path, **values: object) -> None:
    """Set keys of the config.json; None removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
