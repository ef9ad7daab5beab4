"""Runs that cannot go on: folders that lack something, options that would make another run, places that cannot be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from ctm.training.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = [
    *("--threads", "1", "--updates", "3", "--batch-size", "24", "--model.backbone", "none", "--model.ticks", "2"),
    *(
        "--model.width",
        "16",
        "--model.attention-width",
        "8",
        "--model.out-neurons",
        "12",
        "--model.action-neurons",
        "8",
    ),
    *("--optimiser.average-decay", "0.9", "--optimiser.warmup-updates", "0", "--report.checkpoint-every", "1"),
]
Damage = Callable[[Path], object]


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("finished")
    assert main([str(CONFIGS / "digits.toml"), *SMALL, "--output-dir", str(folder)]) == 0
    return folder / "digits"


@pytest.fixture
def run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of the finished run, for a test to change."""
    copied = Path(shutil.copytree(finished, tmp_path / "digits", symlinks=True))
    capsys.readouterr()
    return copied


def progress(**values: object) -> Damage:
    """Set keys of progress.json; None removes one."""

    def change(last: Path) -> None:
        path = last / "trainer" / "progress.json"
        changed = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))

    return change


def tensor(file: str, name: str, value: torch.Tensor | None) -> Damage:
    """Replace a tensor in one of the trainer's files; None removes it."""

    def change(last: Path) -> None:
        path = last / "trainer" / f"{file}.safetensors"
        changed = {**load_file(path), name: value}
        save_file({key: kept for key, kept in changed.items() if kept is not None}, path)

    return change


def remove(name: str) -> Damage:
    return lambda last: (last / "trainer" / name).unlink()


DAMAGES = [
    ("the average without what it averages", remove("weights.safetensors"), "trainer/weights.safetensors is missing"),
    ("no AdamW", remove("optimiser.safetensors"), "trainer/optimiser.safetensors is missing"),
    ("no progress", remove("progress.json"), "progress.json cannot be read"),
    ("an unknown key", progress(epoch=1), "must hold done, best_update, best_score, got done,"),
    ("a key missing", progress(done=None), "must hold done, best_update, best_score, got best_update,"),
    ("text for a number", progress(done="3"), "done must be a whole number of at least 0, got '3'"),
    ("a negative number", progress(best_update=-1), "best_update must be a whole number of at least 0, got -1"),
    ("a score of text", progress(best_score="high"), "best_score must be a finite number or null, got 'high'"),
    ("a weight misshapen", tensor("weights", "readout.weight", torch.zeros(2)), "size mismatch for readout.weight"),
    ("a weight missing", tensor("weights", "readout.weight", None), 'Missing key(s) in state_dict: "readout.weight"'),
    ("a mean misshapen", tensor("optimiser", "0.exp_avg", torch.zeros(99)), "0.exp_avg must have the shape"),
    ("a mean missing", tensor("optimiser", "0.exp_avg", None), "must hold step, exp_avg, exp_avg_sq of each weight"),
    ("a mean of no weight", tensor("optimiser", "999.step", torch.zeros(())), "999.step is no mean of one of"),
    ("a mean of no kind", tensor("optimiser", "zero", torch.zeros(())), "zero is no mean of one of"),
    ("a link to nothing", lambda last: shutil.rmtree(last), "holds no checkpoint to resume from: last is"),
]


@pytest.mark.parametrize(("damage", "message"), [pytest.param(*case, id=name) for name, *case in DAMAGES])
def test_a_damaged_run_is_not_resumed_and_one_line_says_why(
    run: Path, capsys: pytest.CaptureFixture[str], damage: Damage, message: str
) -> None:
    damage((run / "last").resolve())
    assert main(["--resume", str(run)]) == 1
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--seed", "9"], "another seed: it was 0, got 9", id="another seed"),
        pytest.param(["--model.width", "32"], "another model.width: it was 16, got 32", id="another model"),
        pytest.param(["--task.name", "mnist"], "another task.name: it was digits, got mnist", id="another task"),
        pytest.param(["--task.mnist.held-out", "9"], "another task.mnist.held_out: it was 5000, got 9", id="held out"),
    ],
)
def test_what_would_be_another_run_is_not_resumed(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--resume", str(run), *options]) == 2
    assert f"a run cannot be resumed with {message}" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param([], [], id="nothing changed"),
        pytest.param(["--batch-size", "12"], ["batch_size is 12, it was 24"], id="another batch size"),
        pytest.param(
            ["--optimiser.average-decay", "0", "--updates", "4"],
            ["updates is 4, it was 3", "optimiser.average_decay is 0.0, it was 0.9"],
            id="no average, and on",
        ),
    ],
)
def test_a_run_resumed_otherwise_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: list[str]
) -> None:
    moved = run.rename(run.with_name("moved"))
    assert main(["--resume", str(moved), *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("from here on")]
    assert lines == [f"from here on {sentence}" for sentence in said]


def test_a_run_whose_last_checkpoint_is_gone_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree((run / "last").resolve())
    assert main([str(CONFIGS / "digits.toml"), *SMALL, "--output-dir", str(run.parent)]) == 2
    assert f"{run} holds a run" in one_line(capsys)


def test_what_a_killed_process_left_half_made_is_swept_away(run: Path) -> None:
    (run / ".aside-last-4711").symlink_to("checkpoints/update-000001")
    (run / ".aside-best-4711").symlink_to("checkpoints/nowhere")
    (run / "checkpoints" / ".aside-update-000002-4711" / "trainer").mkdir(parents=True)
    before = sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("."))
    assert main(["--resume", str(run)]) == 0
    assert [path for path in run.rglob("*") if ".aside" in path.name] == []
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_run_below_a_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main([str(CONFIGS / "digits.toml"), *SMALL, "--output-dir", str(tmp_path / below)]) == 2
    assert f"the run's folder {tmp_path / below / 'digits'} cannot be made: Not a directory" in one_line(capsys)


def test_a_task_without_rows_to_learn_from_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (torch.zeros(30, 1, 28, 28, dtype=torch.uint8), torch.zeros(30, dtype=torch.uint8))
    monkeypatch.setattr("ctm.tasks.mnist._read", lambda *_: rows)
    options = ["--task.mnist.held-out", "30", "--threads", "1", "--output-dir", str(tmp_path)]
    assert main([str(CONFIGS / "mnist.toml"), *options]) == 2
    assert "task.mnist.held_out must be below the 30 rows there are, got 30" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("ctm-train: error: ")
    assert said.count("\n") == 1, said
    return said
