"""A run's configuration: from a file, changed by options, and refused in one line when it is wrong."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctm.config import CTMConfig
from ctm.tasks import load_task
from ctm.training.cli import main, parse
from ctm.training.config import RunConfig
from ctm.training.fit import check_fit
from ctm.training.settings import ConfigError, from_table, read_toml, to_table

CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = CONFIGS / "digits.toml"


def toml_with(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The configuration of the digits with some of its text changed."""
    text = DIGITS.read_text()
    for old, new in changes:
        assert old in text, f"{old!r} must be in {DIGITS.name}"
        text = text.replace(old, new, 1)
    path = tmp_path / "changed.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid_and_named_after_their_file(path: Path) -> None:
    config = read_toml(path)
    assert config.name == path.stem
    CTMConfig.from_dict(config.model.to_dict())


@pytest.mark.parametrize("name", ["digits", "parity", "maze"])
def test_the_shipped_configurations_fit_their_task(name: str) -> None:
    config = read_toml(CONFIGS / f"{name}.toml")
    check_fit(config.model, load_task(config.task))


def test_a_configuration_survives_being_written_down() -> None:
    config = dataclasses.replace(read_toml(CONFIGS / "mnist.toml"), data_dir=Path("data/mnist"), threads=2)
    assert from_table(to_table(config), source="a table") == config


WRONG_FILES = [
    ("a key with a slip", "width = 64", "widht = 64", "unknown key model.widht, allowed here: ticks.*mean model.wi"),
    ("an unknown table", "[report]", "[reports]", "unknown key reports, allowed here: name, .*did you mean report"),
    ("text for a number", "width = 64", 'width = "64"', "model.width: .*integer, got '64'"),
    ("half a neuron", "width = 64", "width = 64.5", "model.width: .*integer.*got 64.5"),
    ("no neurons", "width = 64", "width = 0", "width must be a whole number of at least 1, got 0"),
    ("no width", "width = 64", "", "width.*missing|missing.*width"),
    ("no updates", "updates = 600", "updates = 0", r"updates must lie in \[1, inf\), got 0"),
    ("uneven parts", "batch_size = 64", "batch_size = 63\nparts = 2", "divide into 2 equal parts, got 63"),
    ("all warm-up", "warmup_updates = 50", "warmup_updates = 600", "below the 600 updates.*got 600"),
    ("negative clip", "clip_norm = 1.0", "clip_norm = -1.0", r"clip_norm must lie in \[0.0, inf\), got -1.0"),
    ("no learning", "3e-3", "0.0", r"learning_rate must lie in \(0.0, inf\), got 0.0"),
    ("a rate that is no number", "3e-3", "nan", "learning_rate"),
    ("an unknown task", 'name = "digits"\naug', 'name = "letters"\naug', "task.name: .*'digits'.*'letters'"),
    ("a path for a name", 'name = "digits"\nupd', 'name = "a/b"\nupd', "the name of a folder, got 'a/b'"),
    ("negative shift", "shift = 1.0", "shift = -1.0", r"task.augment.shift must lie in \[0.0, inf\), got -1.0"),
    ("not TOML", "updates = 600", "updates = ", "is not TOML"),
]


@pytest.mark.parametrize(("old", "new", "message"), [pytest.param(*case, id=name) for name, *case in WRONG_FILES])
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = toml_with(tmp_path, (old, new))
    with pytest.raises(ConfigError, match=message):
        read_toml(path)
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ctm-train: error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        pytest.param(["--model.width", "32"], "model.width", 32, id="a number"),
        pytest.param(["--seed", "7"], "seed", 7, id="a key of the run"),
        pytest.param(["--data-dir", "some/where"], "data_dir", Path("some/where"), id="a path, with a hyphen"),
        pytest.param(["--data_dir", "some/where"], "data_dir", Path("some/where"), id="or as in the file"),
        pytest.param(["--task.augment.shift", "0.5"], "task.augment.shift", 0.5, id="three levels deep"),
        pytest.param(["--model.input-shape", "1", "9", "9"], "model.input_shape", (1, 9, 9), id="several numbers"),
        pytest.param(["--model.no-nlm-deep"], "model.nlm_deep", False, id="a switch"),
        pytest.param(["--model.energy-hidden", "8"], "model.energy_hidden", 8, id="what is not there by default"),
        pytest.param(["--precision", "bfloat16"], "precision", "bfloat16", id="a choice"),
    ],
)
def test_every_key_is_an_option(options: list[str], key: str, value: object) -> None:
    found: object = parse([str(DIGITS), *options]).run
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_options_leave_all_else_as_the_file_says() -> None:
    assert parse([str(DIGITS), "--seed", "7"]).run == dataclasses.replace(read_toml(DIGITS), seed=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "a file or --resume must describe the run", id="nothing"),
        pytest.param(["nowhere.toml"], "nowhere.toml cannot be read", id="no such file"),
        pytest.param([str(DIGITS), "--parts", "5"], "batch_size must divide into 5 equal parts", id="values together"),
        pytest.param([str(DIGITS), "--resume", "runs/x"], "either a file or --resume", id="both"),
        pytest.param(["--resume", "nowhere"], "nowhere holds no checkpoint", id="nothing to resume"),
        pytest.param(["--resume=nowhere"], "nowhere holds no checkpoint", id="nothing to resume, with ="),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("ctm-train: error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--model.widht", "5"], "--model.widht", id="an unknown option"),
        pytest.param(["--model.width", "five"], "--model.width", id="a word for a number"),
        pytest.param(["--model.width", "0"], "width must be a whole number of at least 1, got 0", id="no neurons"),
        pytest.param(["--task.name", "letters"], "'digits'", id="an unknown task"),
    ],
)
def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(DIGITS), *options])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert message in " ".join((said.err + said.out).split())


def test_help_that_nobody_reads_to_its_end_ends_without_a_word() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ctm.training", "--help"], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [["--help"], [str(DIGITS), "--help"]], ids=["alone", "with a file"])
def test_help_names_the_forms_and_the_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for part in ("ctm-train CONFIG.toml", "--resume", "--model.width", "--optimiser.learning-rate", "--data-dir"):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"out_dims": 5}, r"predictions of shape \[10\], got \[5\]", id="too few labels"),
        pytest.param({"prediction_shape": (5, 2)}, r"predictions of shape \[10\], got \[5, 2\]", id="positions"),
        pytest.param({"input_shape": (1, 28, 28)}, r"model.input_shape = \[1, 8, 8\], got \[1, 28, 28\]", id="images"),
    ],
)
def test_a_model_that_does_not_fit_its_task_is_refused(changes: dict[str, object], message: str) -> None:
    config: RunConfig = read_toml(DIGITS)
    with pytest.raises(ConfigError, match=message):
        check_fit(dataclasses.replace(config.model, **changes), load_task(config.task))


def test_an_energy_head_needs_one_label_a_row() -> None:
    config = read_toml(CONFIGS / "parity.toml")
    with pytest.raises(ConfigError, match="parity has one at each position"):
        check_fit(dataclasses.replace(config.model, energy_hidden=8), load_task(config.task))
