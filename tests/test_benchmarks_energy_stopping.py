"""The comparison of certainty and energy: how rules are chosen, and one small run of it all."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks_hyper_claim import small_mnist

from benchmarks.energy_stopping import RULES, Thoughts, loosest, main
from ctm.energy import StopRule
from ctm.judge import Judged
from ctm.training.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def _thoughts() -> Thoughts:
    """Four rows of three ticks, ever more certain and ever lower in energy; right from the first, second or third."""
    certainty_NT = np.array([[0.55, 0.75, 0.92]] * 4, np.float32)
    correct_NT = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]], np.float32)
    judged = Judged(correct_NT, certainty_NT, certainty_NT, whole=correct_NT, unpadded=correct_NT)
    return Thoughts(judged, np.array([[4.0, 2.0, 1.0]] * 4, np.float32))


@pytest.mark.parametrize(
    ("loss", "rules"),
    [
        pytest.param(
            0.0,
            {
                "certainty": StopRule(certainty=0.76),
                "energy": StopRule(energy=1.0),
                "energy settled": StopRule(delta=2.0),
                "either": StopRule(certainty=0.76, energy=1.0),
            },
            id="no loss: the third tick",
        ),
        pytest.param(
            0.25,
            {
                "certainty": StopRule(certainty=0.56),
                "energy": StopRule(energy=2.0),
                "energy settled": StopRule(delta=2.0),
                "either": StopRule(certainty=0.56, energy=2.0),
            },
            id="a quarter: the second",
        ),
    ],
)
def test_each_rule_is_the_loosest_that_loses_no_more(loss: float, rules: dict[str, StopRule]) -> None:
    assert {name: choose(_thoughts(), loss) for name, choose in RULES.items()} == rules


def test_where_every_rule_loses_too_much_all_ticks_are_run() -> None:
    assert loosest(_thoughts(), [StopRule(certainty=0.0)], 0.0) == StopRule()


def small_config(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = (ROOT / "configs" / f"{name}.toml").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "small.toml"
    path.write_text(text)
    return path


DIGITS = (
    ("updates = 600", "updates = 3"),
    ("warmup_updates = 50", "warmup_updates = 1"),
    ("ticks = 12", "ticks = 3"),
    ('backbone = "digit"', 'backbone = "none"'),
)


def test_a_small_comparison_from_training_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_config(tmp_path, "digits-energy", *DIGITS)
    asked = ["--config", str(tmp_path / "small.toml"), "--seeds", "0", "1", "--beside", "paper"]
    saved = ["--runs", str(tmp_path / "runs"), "--plot", str(tmp_path / "plot.png"), "--save", str(tmp_path)]
    assert main([*asked, *saved]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert list(document["beside"]) == ["paper"]
    assert [len(runs) for runs in document["beside"].values()] == [2]
    assert "| points allowed | certainty | energy | energy settled | either |" in err
    assert (tmp_path / "plot.png").stat().st_size > 1_000
    (results,) = tmp_path.glob("energy_digits_*.json")
    assert json.loads(results.read_text())["seeds"] == [0, 1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("weights.safetensors")}
    assert main([*asked, "--runs", str(tmp_path / "runs")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("weights.safetensors")}, (
        "finished runs are not trained again"
    )
    small_config(tmp_path, "digits-energy", *DIGITS, ("energy_scale = 0.01", "energy_scale = 0.5"))
    with pytest.raises(ConfigError, match=r"digits-energy-paper-0 is a run with loss = .*asked for is .*0.5"):
        main([*asked, "--runs", str(tmp_path / "runs")])


def test_the_rows_are_those_of_the_data_folder_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (
        ("updates = 3000", "updates = 2"),
        ("warmup_updates = 300", "warmup_updates = 1"),
        ("ticks = 20", "ticks = 2"),
        ("compile = true", "compile = false"),
        ('name = "mnist"\n', 'name = "mnist"\nmnist = { held_out = 20 }\n'),
    )
    config, data = small_config(tmp_path, "mnist-energy", *changes), small_mnist(tmp_path / "data")
    monkeypatch.setattr("ctm.tasks.mnist.fetch", lambda *_: pytest.fail("the folder has it"))
    asked = ["--config", str(config), "--seeds", "0", "--beside", "paper", "--data-dir", str(data)]
    assert main([*asked, "--runs", str(tmp_path / "runs")]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["beside"]["paper"]
    assert (found["test_accuracy"] * 20).is_integer(), "of the 20 test rows there"
