"""The comparison of plain and hyper models: its arithmetic, and that it trains, measures and saves a small one."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ctm_tasks_mnist import idx_bytes

from benchmarks import hyper_claim
from benchmarks.hyper_claim import answers
from benchmarks.statistics import spread
from ctm.training.settings import ConfigError


def small_mnist(folder: Path) -> Path:
    """Each row a bright bar whose place is its label."""
    folder.mkdir()
    for part, rows in (("train", 84), ("t10k", 20)):
        labels = torch.arange(rows, dtype=torch.uint8) % 10
        images = torch.zeros(rows, 28, 28, dtype=torch.uint8)
        for label in range(10):
            images[labels == label, :, 2 * label + 4] = 255
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values), compresslevel=1))
    return folder


def test_each_rule_answers_from_its_tick():
    certainty = np.array([[0.1, 0.9, 0.2, 0.3], [0.5, 0.1, 0.9, 0.2]], np.float32)
    correct = np.array([[0, 1, 0, 0], [1, 0, 0, 1]], np.float32)
    found = answers(certainty, correct, np.ones_like(correct), trained=2)
    assert {name: answer.accuracy for name, answer in found.items()} == {
        "certain_trained": 1.0,
        "last_trained": 0.5,
        "certain_all": 0.5,
        "last_all": 0.5,
    }
    assert [round(answer.calibration_error, 6) for answer in found.values()] == [0.0, 0.5, 0.5, 0.5]


def test_the_deviation_is_that_of_a_sample():
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert spread([0.7]) == (0.7, 0.0)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a comparison that takes seconds: few ticks and updates, on a few rows."""
    configs = tmp_path / "configs"
    configs.mkdir()
    for arm in ("mnist-plain", "mnist-hyper"):
        text = (hyper_claim.CONFIGS / f"{arm}.toml").read_text()
        for old, new in (
            ("ticks = 10", "ticks = 2"),
            ("warmup_updates = 200", "warmup_updates = 1"),
            ('name = "mnist"', 'name = "mnist"\nmnist = { held_out = 20 }'),
        ):
            assert old in text
            text = text.replace(old, new)
        (configs / f"{arm}.toml").write_text(text)
    monkeypatch.setattr(hyper_claim, "CONFIGS", configs)
    data, runs = small_mnist(tmp_path / "data"), tmp_path / "runs"
    return ["--arms", "mnist-plain", "mnist-hyper", "--seeds", "4", "--data-dir", str(data), "--runs", str(runs)]


def test_a_small_comparison_is_trained_measured_and_saved_once(small, tmp_path, capsys):
    saving = ["--test", "--save", str(tmp_path / "results"), "--plot", str(tmp_path / "hyper.png")]
    assert hyper_claim.main([*small, "--updates", "2", *saving]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (path,) = (tmp_path / "results").iterdir()
    assert json.loads(path.read_text()) == document
    assert document["rows"] == "test"
    assert [(run["arm"], run["seed"]) for run in document["runs"]] == [("mnist-plain", 4), ("mnist-hyper", 4)]
    for run in document["runs"]:
        assert run["ticks_trained"] == 2
        assert len(run["accuracy_by_tick"]) == len(run["calibration_error_by_tick"]) == 6
        assert run["answers"]["last_all"]["accuracy"] == pytest.approx(run["accuracy_by_tick"][-1])
        assert f"--name {run['arm']}-4 --seed 4" in run["command"]
    assert document["runs"][0]["weights"] < document["runs"][1]["weights"]
    assert (tmp_path / "hyper.png").stat().st_size > 1000

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert hyper_claim.main([*small, "--updates", "2", "--test"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == document["runs"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == written
    with pytest.raises(ConfigError, match=r"mnist-plain-4 is a run with updates = 2, asked for is 3"):
        hyper_claim.main([*small, "--updates", "3"])
