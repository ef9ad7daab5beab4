"""Runs that learn from text: what may not change when they go on, and what they count."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from small_corpus import grammar, small_corpus

from benchmarks import language
from benchmarks.language import Run, check_alike
from ctm.training.cli import main
from ctm.training.settings import read_toml
from ctm.training.window import Measured, Window

LENGTH, TICKS, ROWS = 8, 2, 4
CONFIG = f"""
name = "text"
updates = 2
batch_size = {ROWS}
threads = 1
device = "cpu"
[task]
name = "text"
text = {{ length = {LENGTH}, stride = 4 }}
[language]
vocabulary = 300
context = 10
layers = 1
width = 8
heads = 2
[model]
ticks = {TICKS}
width = 18
memory = 2
attention_width = 8
heads = 2
out_neurons = 6
action_neurons = 4
out_dims = 8
in_channels = 8
input_shape = [8, 10]
nlm_hidden = 2
[report]
every = 1
"""


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of one vocabulary's size, and a run on the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("text")
    for name, seed in (("one", 0), ("other", 1)):
        small_corpus(folder / name, grammar(seed=seed))
    (folder / "text.toml").write_text(CONFIG)
    arguments = [str(folder / "text.toml"), "--data-dir", str(folder / "one"), "--output-dir", str(folder / "runs")]
    assert main(arguments) == 0
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data-dir", "other"], "a run cannot be resumed with another tokenizer.json: the data's differs from"),
        (["--task.text.length", "7"], "a run cannot be resumed with another task.text.length: it was 8, got 7"),
        (["--language.any-tick", "0.5"], "a run cannot be resumed with another language.any_tick: it was 0.0, got 0.5"),
    ],
    ids=["another corpus", "other windows", "another loss"],
)
def test_a_run_does_not_go_on_with_other_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["--resume", "runs/text", *options]) == 2
    assert words in capsys.readouterr().err


def test_settings_that_a_language_model_would_pass_over_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data-dir", str(folder / "one"), "--output-dir", str(tmp_path), "--loss.no-most-certain"]
    assert main([str(folder / "text.toml"), *options]) == 2
    assert "learns from its last tick by language.final_only, got loss.most_certain = false" in capsys.readouterr().err


def test_a_thought_for_every_token_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("ctm.training.window.time", SimpleNamespace(monotonic=lambda: next(times)))
    alone = SimpleNamespace(reduce=lambda tensor, **_: tensor)
    window = Window(alone, read_toml(folder / "text.toml"))
    window.add(Measured(*torch.ones(4)))
    assert window.close(rate=0.1, epoch=1.0)["ticks_per_second"] == ROWS * LENGTH * TICKS / 2


def test_the_benchmark_measures_no_run_on_another_corpus(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"text was trained on another corpus than .*other: its tokenizer.json differs"
    ):
        language.main([str(folder / "runs" / "text"), "--data-dir", str(folder / "other")])


def test_the_benchmark_compares_no_windows_of_other_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "runs" / "text")
    assert language.main([run, run, "--data-dir", str(folder / "one")]) == 0
    first, second = (
        Run(**{**found, "stopping": []}) for found in json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    )
    assert (first.window, first.updates, first.test_bits) == (LENGTH, 2, second.test_bits)
    longer = Run(**{name: getattr(first, name) for name in Run.__slots__} | {"name": "longer", "window": 9})
    with pytest.raises(ValueError, match="longer reads windows of 9 tokens, text of 8"):
        check_alike([first, longer])
