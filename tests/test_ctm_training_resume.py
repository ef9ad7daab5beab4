"""Interruptions of real processes: killed, asked to stop, resumed, and several of them as one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from ctm.checkpoint import read_checkpoint
from ctm.training.cli import main
from export.source import from_checkpoint

ROOT = Path(__file__).parent.parent
UPDATES = 60
OPTIONS = [
    *(str(ROOT / "configs" / "digits.toml"), "--threads", "1", "--updates", str(UPDATES), "--batch-size", "32"),
    *("--optimiser.average-decay", "0.99", "--model.dropout", "0.1", "--model.ticks", "4", "--model.width", "24"),
    *("--report.every", "1", "--report.evaluate-every", "20", "--report.checkpoint-every", "7", "--report.keep", "2"),
]
PATIENCE_SECONDS = 240.0


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main([*OPTIONS, "--output-dir", str(folder)]) == 0
    return folder / "digits"


HALTS_ITSELF = """
import os, signal, sys
from ctm.training.cli import main
from ctm.training.report import FolderReporter

halt_at, report = int(sys.argv.pop(1)), FolderReporter.report

def report_and_halt(reporter, update, scalars):
    report(reporter, update, scalars)
    if update == halt_at:
        os.kill(os.getpid(), signal.SIGSTOP)

FolderReporter.report = report_and_halt
sys.exit(main())
"""


def halted_at(update: int, folder: Path) -> subprocess.Popen[str]:
    """A run in a process of its own that has reported this update, and does nothing until it gets SIGCONT."""
    script = folder / "train.py"
    script.write_text(HALTS_ITSELF)
    command = [sys.executable, str(script), str(update), *OPTIONS, "--output-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"the run ended before update {update}: {process.communicate()[1]}"
    return process


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the bit: weights, average, AdamW's means, progress; and the logs tell of the same numbers."""
    mine, theirs = read_checkpoint(one / "last"), read_checkpoint(other / "last")
    assert mine.progress == theirs.progress
    groups = {"served": mine.weights, **mine.trainer}
    for name, tensors in {"served": theirs.weights, **theirs.trainer}.items():
        assert groups[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(groups[name][key], tensor), f"{name}: {key} differs"
    assert (one / "best").resolve().name == (other / "best").resolve().name
    assert log_of(one) == log_of(other)


def log_of(run: Path) -> list[dict[str, object]]:
    """The lines of the log, without what a clock measured."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "ticks_per_second"} for entry in entries]


@pytest.mark.parametrize("update", [9, 31])
def test_a_killed_run_resumed_is_to_the_bit_the_run_that_was_not(
    tmp_path: Path, undisturbed: Path, update: int
) -> None:
    run = tmp_path / "digits"
    with halted_at(update, tmp_path) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(run / "last").progress["done"] < UPDATES
    assert main(["--resume", str(run)]) == 0
    assert_same_run(run, undisturbed)
    origin = read_checkpoint(run / "last").config["provenance"]["command"]
    assert "--resume" not in origin, "the command that began the run is the one that makes it again"


def test_a_run_asked_to_stop_writes_a_checkpoint_and_leaves(tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "digits"
    with halted_at(10, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 0, said
    stopped = read_checkpoint(run / "last").progress["done"]
    assert f"stopped by SIGTERM after update {stopped}; --resume {run} goes on" in said
    lines = (run / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["update"] == stopped, "nothing after the last update's checkpoint"
    moved = run.rename(tmp_path / "moved")
    assert main(["--resume", str(moved)]) == 0
    assert_same_run(moved, undisturbed)


def test_a_finished_run_resumed_stays_as_it_is(undisturbed: Path) -> None:
    before = read_checkpoint(undisturbed / "last").weights
    assert main(["--resume", str(undisturbed)]) == 0
    after = read_checkpoint(undisturbed / "last").weights
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_finished_run_goes_on_with_more_updates_and_says_so_wherever_it_comes_from(
    undisturbed: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(undisturbed, longer, symlinks=True)
    assert main(["--resume", str(longer), "--updates", str(UPDATES + 2), "--report.evaluate-every", "1"]) == 0
    last = read_checkpoint(longer / "last")
    assert last.progress["done"] == UPDATES + 2
    changes = [
        f"after update {UPDATES}: from here on updates is {UPDATES + 2}, it was {UPDATES}",
        f"after update {UPDATES}: from here on report.evaluate_every is 1, it was 20",
    ]
    assert last.config["provenance"]["changes"] == changes
    assert from_checkpoint(longer / "last").command.splitlines()[1:] == [f"# {change}" for change in changes]


def test_a_run_resumed_with_another_model_is_refused(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(undisturbed), "--model.width", "32"]) == 2
    assert "a run cannot be resumed with another model.width: it was 24, got 32" in capsys.readouterr().err


ENDS_ITS_GROUP_LAST = """
import gc, sys
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from ctm.training.cli import main

end = Accelerator.end_training

def look_and_end(accelerator):
    held = [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
    assert not held, "what holds the processes' group is gone before the group: else both may wait for ever"
    print("nothing holds the group", file=sys.stderr)
    end(accelerator)

Accelerator.end_training = look_and_end
sys.exit(main())
"""


def in_two_processes(options: list[str], script: Path) -> None:
    script.write_text(ENDS_ITS_GROUP_LAST)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(script), *options]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"not done after {PATIENCE_SECONDS} s: {(error.stderr or b'').decode()[-3000:]}")
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stderr
    assert done.stderr.count("nothing holds the group") == 2


def test_two_processes_make_the_same_run_as_one(tmp_path: Path) -> None:
    # Bare pixels: batch normalisation would see half of the rows in each process.
    options = [*OPTIONS, "--model.backbone", "none", "--updates", "12", "--model.dropout", "0"]
    options += ["--optimiser.warmup-updates", "4", "--task.augment.shift", "0", "--task.augment.rotation", "0"]
    options += ["--task.augment.scale", "0", "--report.evaluate-every", "6", "--report.batch-size", "100"]
    in_two_processes([*options, "--parts", "2", "--output-dir", str(tmp_path / "two")], tmp_path / "train.py")
    assert main([*options, "--output-dir", str(tmp_path / "one")]) == 0
    two, one = (read_checkpoint(tmp_path / name / "digits" / "last").weights for name in ("two", "one"))
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    two_say, one_says = (log_of(tmp_path / name / "digits")[-1] for name in ("two", "one"))
    assert two_say["rows"] == one_says["rows"] == 359
    assert two_say["certainty_by_tick"] == pytest.approx(one_says["certainty_by_tick"], abs=1e-4)
