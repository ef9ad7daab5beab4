"""The training loop: what it learns, what it writes, and that how the work is split changes nothing."""

import functools
import json
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctm.checkpoint import load_model, point_at, read_checkpoint
from ctm.judge import judge, judge_predictions
from ctm.model import CTM
from ctm.tasks import load_task
from ctm.training.cli import main
from ctm.training.config import RunConfig
from ctm.training.evaluate import evaluate
from ctm.training.families import family_of
from ctm.training.interrupt import Interrupt
from ctm.training.loop import DivergedError, Trainer
from ctm.training.report import Reporter
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table, read_toml, to_table

CONFIGS = Path(__file__).parent.parent / "configs"


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


SMALL = {
    "threads": 1,
    "compile": False,
    "updates": 8,
    "batch_size": 24,
    # Bare pixels: no normalisation over rows, so that splitting them changes nothing.
    "model.backbone": "none",
    "model.ticks": 3,
    "model.width": 16,
    "model.memory": 3,
    "model.attention_width": 8,
    "model.out_neurons": 12,
    "model.action_neurons": 8,
    "optimiser.warmup_updates": 2,
    "report.every": 2,
    "report.evaluate_every": 4,
    "report.checkpoint_every": 3,
    "report.keep": 2,
}


def small(folder: Path, changes: Mapping[str, Any] = MappingProxyType({}), name: str = "digits") -> RunConfig:
    """A run of a few updates, with some keys changed."""
    table = to_table(read_toml(CONFIGS / f"{name}.toml"))
    for key, value in {**SMALL, "output_dir": str(folder), **changes}.items():
        *groups, last = key.split(".")
        functools.reduce(operator.getitem, groups, table)[last] = value
    return from_table(table, source="this test")


def trainer(config: RunConfig) -> Trainer:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if config.precision == "bfloat16" else "no")
    return Trainer(config, family_of(config, load_task(config.task)), accelerator, Reporter(), {})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(folder).weights)


def test_the_digits_are_learned_in_seconds(tmp_path: Path) -> None:
    options = ["--output-dir", str(tmp_path), "--updates", "150", "--model.ticks", "6", "--model.width", "32"]
    options += ["--optimiser.learning-rate", "0.01", "--threads", "1"]
    assert main([str(CONFIGS / "digits.toml"), *options]) == 0
    model, config = load_model(tmp_path / "digits")
    assert config["task"]["labels"] == list("0123456789")
    task = load_task(read_toml(CONFIGS / "digits.toml").task)
    evaluation = evaluate(model, task.held_out, batch_size=200)
    assert evaluation.accuracy > 0.5, "seed 0; chance is 0.1"
    assert evaluation.accuracy_by_tick[0] < evaluation.accuracy


def test_a_run_writes_its_log_scalars_plots_and_checkpoints(tmp_path: Path) -> None:
    assert train(small(tmp_path), command=["ctm-train", "a file"])
    folder = tmp_path / "digits"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["update"]) for line in lines] == [
        ("report", 2),
        ("report", 4),
        ("evaluation", 4),
        ("report", 6),
        ("report", 8),
        ("evaluation", 8),
    ]
    assert {"loss", "accuracy", "ticks_per_second", "learning_rate", "gradient_norm"} <= lines[0].keys()
    assert len(lines[2]["accuracy_by_tick"]) == len(lines[2]["certainty_by_tick"]) == 3
    assert {"threshold", "accuracy", "mean_ticks", "share_certain"} <= lines[2]["frontier"][0].keys()
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["update-000004.png", "update-000008.png"]
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [2, 4, 6, 8]
    assert [event.step for event in board.Scalars("held_out/accuracy")] == [4, 8]
    assert (folder / "last").resolve().name == "update-000008"
    best = max((line for line in lines if line["event"] == "evaluation"), key=lambda line: line["accuracy"])
    assert (folder / "best").resolve().name == f"update-{best['update']:06d}"
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"update-000006", "update-000008", f"update-{best['update']:06d}"}
    provenance = read_checkpoint(folder / "last").config["provenance"]
    assert (provenance["command"], provenance["seed"]) == ("ctm-train 'a file'", 0)


@pytest.mark.parametrize("batch_size", [100, 359])
def test_the_logged_evaluation_is_that_of_the_saved_model(tmp_path: Path, batch_size: int) -> None:
    config = small(tmp_path, {"optimiser.average_decay": 0.9})
    train(config)
    model, _ = load_model(tmp_path / "digits" / "last")
    task = load_task(config.task)
    evaluation = evaluate(model, task.held_out, batch_size)
    logged = json.loads((tmp_path / "digits" / "log.jsonl").read_text().splitlines()[-1])
    assert logged["accuracy"] == evaluation.accuracy
    assert logged["accuracy_by_tick"] == evaluation.accuracy_by_tick
    assert logged["certainty_by_tick"] == pytest.approx(evaluation.certainty_by_tick, abs=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 24])
def test_accumulated_parts_make_the_same_update(tmp_path: Path, parts: int) -> None:
    whole, split = trainer(small(tmp_path)), trainer(small(tmp_path, {"parts": parts}))
    for _ in range(3):
        in_one, in_parts = whole.update(), split.update()
        torch.testing.assert_close(in_parts.loss, in_one.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(in_parts.gradient_norm, in_one.gradient_norm, rtol=1e-4, atol=1e-6)


def test_parts_are_normalised_by_their_own_rows(tmp_path: Path) -> None:
    changes = {"model.backbone": "digit"}
    whole, split = trainer(small(tmp_path, changes)), trainer(small(tmp_path, {**changes, "parts": 3}))
    whole.update(), split.update()
    (one, three), (of_all, of_parts) = (
        [dict(run.model.named_buffers())[f"backbone.layers.1.{name}"] for run in (whole, split)]
        for name in ("num_batches_tracked", "running_var")
    )
    assert (one, three) == (1, 3)
    assert not torch.allclose(of_all, of_parts, rtol=1e-3), "what the configuration says of parts is out of date"


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        train(small(tmp_path, {"name": name, "seed": seed, "model.dropout": 0.1, "model.backbone": "digit"}))
    one, again, other = (weights(tmp_path / name / "last") for name in ("one", "again", "other"))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["readout.weight"], other["readout.weight"])
    assert not torch.equal(one["out_sync.left"], other["out_sync.left"])


def test_mixed_precision_learns_too_and_keeps_its_weights_whole(tmp_path: Path) -> None:
    run = trainer(small(tmp_path, {"precision": "bfloat16", "updates": 40}))
    losses = [float(run.update().loss) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    exact = float(trainer(small(tmp_path)).update().loss)
    assert losses[0] != exact, "bfloat16 was not used"
    assert losses[0] == pytest.approx(exact, rel=0.02)


def test_gradients_are_clipped_by_their_norm_over_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(small(tmp_path, {"optimiser.clip_norm": 1e-3}))
    met = []
    monkeypatch.setattr(
        run._optimiser, "step", lambda: met.append(math.hypot(*(float(w.grad.norm()) for w in run.model.parameters())))
    )
    norm = float(run.update().gradient_norm)
    assert norm > 1e-3, "the reported norm is that before clipping"
    assert met == [pytest.approx(1e-3, rel=1e-3)]


def test_decays_are_projected_after_every_update(tmp_path: Path) -> None:
    run = trainer(small(tmp_path, {"optimiser.learning_rate": 0.5, "optimiser.warmup_updates": 0}))
    for _ in range(3):
        run.update()
        decays = torch.cat([run.model.action_sync.decay, run.model.out_sync.decay])
        assert decays.min() >= 0.0
        assert decays.max() <= 15.0
        assert (decays == 0.0).any(), "some were pushed below zero and put back"
    stuck = run.model.out_sync.decay == 0.0
    run.update()
    assert (run.model.out_sync.decay[stuck] > 0.0).any(), "a decay at its limit can leave it again"


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    config = small(tmp_path, {"updates": 2, "optimiser.average_decay": 0.9, "optimiser.warmup_updates": 0})
    train(config)
    checkpoint = read_checkpoint(tmp_path / "digits" / "last")
    served, learning = checkpoint.weights["readout.weight"], checkpoint.trainer["weights"]["readout.weight"]
    assert not torch.equal(served, learning)
    run = trainer(config)
    expected = run.model.readout.weight.detach().clone()
    for update in (1, 2):
        run.update()
        keep = min(0.9, (1 + update) / (10 + update))
        expected = keep * expected + (1 - keep) * run.model.readout.weight.detach()
    torch.testing.assert_close(served, expected)


@pytest.mark.parametrize("energy", [None, 8])
def test_only_an_energy_head_is_taught_by_the_energys_scale(tmp_path: Path, energy: int | None) -> None:
    run = trainer(small(tmp_path, {"model.energy_hidden": energy}))
    first = run.update()
    heavier = trainer(small(tmp_path, {"model.energy_hidden": energy, "loss.energy_scale": 10.0})).update()
    assert math.isfinite(first.loss)
    assert (float(heavier.loss) > float(first.loss)) == (energy is not None)


def test_parity_is_judged_at_every_position(tmp_path: Path) -> None:
    task = {"task.parity.length": 8, "task.parity.held_out_rows": 50}
    model = {
        "model.backbone": "parity",
        "model.out_dims": 16,
        "model.input_shape": [8],
        "model.prediction_shape": [8, 2],
    }
    config = small(tmp_path, {**task, **model}, name="parity")
    assert train(config)
    loaded, _ = load_model(tmp_path / "parity")
    judged = judge(loaded, load_task(config.task).held_out, batch_size=20)
    assert judged.correct.shape == (50, 3)
    assert set(judged.correct.ravel().tolist()) <= {right / 8 for right in range(9)}


def test_predictions_are_judged_at_every_tick() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [0.0, 2.0]]])
    marks = judge_predictions(logits, torch.tensor([0, 1]), (2,))
    assert marks.correct.tolist() == marks.whole.tolist() == marks.unpadded.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    torch.testing.assert_close(marks.confidence, torch.full((2, 2), math.exp(2) / (math.exp(2) + 1)))


def test_a_loss_that_is_not_finite_ends_the_run_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path)
    real = CTM.forward
    calls = 0

    def forward(self: CTM, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += self.training
        thoughts = real(self, *arguments, **options)
        return thoughts._replace(predictions=thoughts.predictions * math.nan) if calls > 4 else thoughts

    monkeypatch.setattr(CTM, "forward", forward)
    with pytest.raises(DivergedError, match=r"update 5: the loss is nan and the norm of its gradient is nan") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    saved = read_checkpoint(tmp_path / "digits" / "last")
    assert saved.progress["done"] == 4
    assert all(weight.isfinite().all() for weight in saved.weights.values() if weight.is_floating_point())
    capsys.readouterr()


def test_what_last_and_best_mean_is_never_pruned(tmp_path: Path) -> None:
    # Killed before `last` was moved on, a run has checkpoints ahead of it; they are newer than what it writes next.
    config = small(tmp_path, {"updates": 3, "report.checkpoint_every": 1, "report.keep": 3})
    train(config)
    run = tmp_path / "digits"
    point_at(run / "last", run / "checkpoints" / "update-000001")
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = trainer(small(tmp_path, {"report.keep": 1}))
    resumed.origin = {"provenance": {}}
    resumed.restore((run / "last").resolve())
    resumed.update()
    resumed.save()
    assert (run / "last").resolve().name == "update-000002"
    assert read_checkpoint(run / "last").progress["done"] == 2
    assert (run / "best").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["update-000002", "update-000003"]


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    train(small(tmp_path, {"updates": 3}))
    before = weights(tmp_path / "digits" / "last")
    with pytest.raises(ConfigError, match=r"holds a run: --resume .* goes on, --name makes another"):
        train(small(tmp_path, {"seed": 9}))
    assert torch.equal(weights(tmp_path / "digits" / "last")["readout.weight"], before["readout.weight"])


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path)
    accelerator = Accelerator(cpu=True)
    accelerator.state._shared_state["num_processes"] = 5
    with pytest.raises(ConfigError, match="1 equal parts in each of 5 processes, got 24"):
        Trainer(config, family_of(config, load_task(config.task)), accelerator, Reporter(), {})


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
def test_every_process_evaluates_with_the_first_ones_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average_decay: float
) -> None:
    run = trainer(small(tmp_path, {"model.backbone": "digit", "optimiser.average_decay": average_decay}))
    run.accelerator.state._shared_state["num_processes"] = 2
    monkeypatch.setattr("ctm.training.loop.broadcast", lambda tensor, **_: torch.full_like(tensor, 7))
    run._refresh_served()
    assert all((buffer == 7).all() for buffer in run.served.buffers())


@pytest.mark.parametrize(
    ("scores", "patience", "done", "best"),
    [
        pytest.param([0.1, 0.3, 0.2, 0.3, 0.9, 0.9], 2, 8, 4, id="two evaluations without a new best"),
        pytest.param([0.1, 0.3, 0.2, 0.4, 0.3, 0.2], 2, 12, 8, id="a new best begins anew"),
        pytest.param([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 0, 12, 2, id="no patience set, none lost"),
        pytest.param([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 1, 4, 2, id="at once"),
    ],
)
def test_a_run_ends_when_held_out_rows_get_no_better(
    tmp_path: Path, scores: list[float], patience: int, done: int, best: int
) -> None:
    changes = {"updates": 12, "report.evaluate_every": 2, "report.checkpoint_every": 5, "report.patience": patience}
    run, given = trainer(small(tmp_path, changes)), iter(scores)
    run.family.evaluate = lambda *_: SimpleNamespace(score=next(given))
    assert run.run(Interrupt())
    assert run.progress.done == done
    folder = tmp_path / "digits"
    assert (folder / "best").resolve().name == f"update-{best:06d}"
    assert (folder / "last").resolve().name == f"update-{done:06d}", "a run resumed later finds that it has ended"
    assert read_checkpoint(folder / "last").progress["best_update"] == best
