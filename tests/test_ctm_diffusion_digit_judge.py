"""The judge of digits: what it counts, that it can be kept, and that its command makes one that knows digits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import digit_judge as command
from ctm.diffusion.digit_judge import (
    DigitJudge,
    JudgeConfig,
    judge_images,
    load_judge,
    pooled,
    recognised,
    save_judge,
)
from ctm.tasks.task import Task, TensorRows


def bars(rows: int, seed: int) -> TensorRows:
    """Each row a bright bar whose place is its label, in noise."""
    labels = torch.arange(rows) % 10
    images = 0.2 * torch.rand(rows, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    for label in range(10):
        images[labels == label, :, :, 2 * label + 4] = 1.0
    return TensorRows(images, labels)


@pytest.fixture(scope="module")
def judge() -> DigitJudge:
    return command.train_judge(bars(1280, seed=0), JudgeConfig(side=14), epochs=5, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"side": 20}, r"judge.side must be one of \(14, 28\), got 20", id="side"),
        pytest.param({"features": 0}, "judge.features must be a whole number of at least 1, got 0", id="features"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**options)


@pytest.mark.parametrize("side", [14, 28])
def test_either_size_has_the_same_weights(side):
    made = DigitJudge(JudgeConfig(side=side)).eval()
    assert sum(weight.numel() for weight in made.parameters()) == 61_306
    verdict = judge_images(made, torch.rand(3, side, side), batch_size=2)
    assert (verdict.features.shape, verdict.logits.shape) == ((3, 64), (3, 10))
    with pytest.raises(ValueError, match=f"knows images of {side} x {side} pixels, got shape"):
        made(torch.rand(3, 42 - side, 42 - side))


@pytest.mark.parametrize(
    ("seen", "asked", "share", "by_class"),
    [
        pytest.param([3, 3, 7], [3, 3, 7], 1.0, {3: 1.0, 7: 1.0}, id="all as asked for"),
        pytest.param([3, 8, 7, 1], [3, 3, 7, 7], 0.5, {3: 0.5, 7: 0.5}, id="half of each"),
        pytest.param([0], [1], 0.0, {1: 0.0}, id="none"),
    ],
)
def test_what_counts_as_recognised(seen, asked, share, by_class):
    logits = 50.0 * torch.nn.functional.one_hot(torch.tensor(seen), 10)
    found = recognised(logits, torch.tensor(asked))
    assert (found.rows, found.share) == (len(asked), share)
    assert found.by_class == tuple(by_class.get(digit) for digit in range(10))
    assert found.confidence == pytest.approx(share)


@pytest.mark.parametrize(
    ("logits", "asked", "message"),
    [
        pytest.param(torch.zeros(2, 10), [1], "got 2 samples and 1 digits", id="a digit missing"),
        pytest.param(torch.zeros(0, 10), [], "got 0 samples and 0 digits", id="nothing to judge"),
        pytest.param(torch.full((1, 10), torch.nan), [1], "some samples are not", id="not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(logits, asked, message):
    with pytest.raises(ValueError, match=message):
        recognised(logits, torch.tensor(asked, dtype=torch.int64))


def test_a_judge_learns_what_it_is_shown_and_a_row_is_judged_alone_as_in_company(judge):
    inputs, targets = bars(200, seed=1).take(torch.arange(200))
    verdict = judge_images(judge, pooled(inputs, 14))
    assert recognised(verdict.logits, targets).share > 0.9
    alone = judge_images(judge, pooled(inputs[:5], 14), batch_size=1)
    torch.testing.assert_close(alone.logits, verdict.logits[:5], atol=1e-4, rtol=1e-5)


def test_distance_and_recognition_notice_damage(judge):
    found = command.measure(judge, bars(400, seed=2), seed=0)
    distances = [found["distance_of_halves"], *found["distance_with_noise"].values()]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]
    assert found["accuracy_with_noise"]["0.4"] < found["accuracy"]


def test_pooling_keeps_the_mean_and_refuses_what_does_not_divide():
    inputs = torch.rand(2, 1, 28, 28)
    assert pooled(inputs, 14).shape == (2, 14, 14)
    torch.testing.assert_close(pooled(inputs, 14).mean(), inputs.mean())
    assert torch.equal(pooled(inputs, 28), inputs[:, 0])
    with pytest.raises(ValueError, match="side must divide the images' 28 pixels, got 15"):
        pooled(inputs, 15)


def test_a_kept_judge_judges_as_before(judge, tmp_path: Path):
    save_judge(judge, tmp_path / "runs" / "judge.safetensors")
    again, images = load_judge(tmp_path / "runs" / "judge.safetensors"), torch.rand(4, 14, 14)
    assert again.config == judge.config
    assert torch.equal(judge_images(again, images).logits, judge_images(judge, images).logits)


def test_files_of_something_else_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"is not there; python -m benchmarks\.digit_judge trains"):
        load_judge(tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="holds no safetensors"):
        load_judge(tmp_path / "noise")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="must be of family digit-judge, got None"):
        load_judge(tmp_path / "other")


def test_the_command_trains_measures_and_keeps_a_judge(tmp_path: Path, monkeypatch, capsys):
    task = Task(
        name="mnist", loss="image", input_name="image", input_shape=(1, 28, 28), prediction_shape=(10,),
        labels=tuple("0123456789"), train=bars(512, seed=0), held_out=bars(100, seed=1), test=bars(60, seed=2),
    )  # fmt: skip
    monkeypatch.setattr(command, "load_task", lambda *_: task)
    options = ["--sides", "14", "--rows", "256", "--epochs", "1", "--test"]
    folders = ["--runs", str(tmp_path / "runs"), "--save", str(tmp_path / "results")]
    assert command.main([*options, *folders]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (path,) = (tmp_path / "results").iterdir()
    assert json.loads(path.read_text()) == document
    found = document["judges"]["14"]
    assert (found["weights"], found["held_out"]["rows"], found["test"]["rows"]) == (61_306, 100, 60)
    assert load_judge(tmp_path / "runs" / found["file"]).config.side == 14
