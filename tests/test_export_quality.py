"""How a threshold is chosen, and what the card's numbers are made of."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import tiny_inputs, tiny_model

from ctm.frontier import THRESHOLDS
from ctm.judge import Judged, judge
from ctm.language.judge import JudgedText
from ctm.model import CTM
from ctm.tasks import TensorRows
from export import quality as export_quality
from export.errors import ExportError
from export.manifest import describe_quality
from export.quality import Wishes, choose_threshold, measure_on_task, measure_quality, open_task
from export.quality_text import choose_text_threshold

SAYING = "Because."


def _judged(certainty: list[list[float]], correct: list[list[float]]) -> Judged:
    certainty_NT, correct_NT = np.array(certainty, np.float32), np.array(correct, np.float32)
    return Judged(correct_NT, certainty_NT, certainty_NT, whole=correct_NT, unpadded=correct_NT)


# Four rows of three ticks, ever more certain. At the first tick one is right, at the second three, at the third all.
RISING = _judged([[0.55, 0.75, 0.92]] * 4, [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("loss", "threshold"),
    [
        pytest.param(0.0, 0.76, id="no loss: the third tick"),
        pytest.param(0.25, 0.56, id="a quarter: the second tick is enough"),
        pytest.param(0.75, 0.5, id="three quarters: the first tick, by the smallest candidate"),
    ],
)
def test_the_smallest_threshold_within_the_allowed_loss_is_chosen(loss: float, threshold: float) -> None:
    assert choose_threshold(RISING, loss) == threshold


def test_a_lucky_low_threshold_is_not_chosen_over_worse_ones_above_it() -> None:
    # Right at once and at the end, wrong in between, where it would stop at thresholds from 0.6 to 0.8.
    lucky = _judged([[0.55, 0.75, 0.92]], [[1, 0, 1]])
    assert choose_threshold(lucky, 0.0) == 0.76


def test_where_every_threshold_loses_too_much_none_but_full_certainty_stops_a_thought() -> None:
    never = _judged([[0.9992, 0.9998]], [[0, 1]])
    assert choose_threshold(never, 0.0) == 1.0


def test_where_every_threshold_loses_too_much_only_a_text_fully_certain_stops() -> None:
    # Two tokens, ever more certain: the second tick costs a tenth of the first.
    certainty, nats = np.array([[0.9992, 0.9998]] * 2, np.float32), np.array([[2.0, 0.2]] * 2, np.float32)
    judged = JudgedText(nats, certainty, certainty, certainty, np.array([3, 4]))
    assert choose_text_threshold(judged, 0.01) == 1.0
    assert choose_text_threshold(judged._replace(nats=nats[:, ::-1]), 0.01) == 0.05


def test_answers_of_several_positions_must_also_be_right_as_a_whole() -> None:
    # At the second tick a twentieth of the positions is wrong, but half of the whole answers.
    positions = _judged([[0.55, 0.75, 0.92]] * 2, [[0, 0.9, 1], [0, 1, 1]])
    positions = positions._replace(whole=np.array([[0, 0, 1], [0, 1, 1]], np.float32))
    assert choose_threshold(positions._replace(whole=positions.correct), 0.1) == 0.56, "by positions alone"
    assert choose_threshold(positions, 0.1) == 0.76
    quality = measure_quality(positions, 0.7, SAYING, positions=True)
    assert (quality.whole, quality.whole_most_certain) == ((0.0, 0.5, 1.0), 1.0)
    assert quality.shipped.whole == 0.5
    described = describe_quality(quality)
    assert (list(described.whole), described.whole_most_certain) == ([0.0, 0.5, 1.0], 1.0)
    assert [point.whole for point in described.frontier if point.certainty_threshold == 0.7] == [0.5]


def test_quality_sums_up_every_tick_and_every_threshold() -> None:
    quality = measure_quality(RISING, 0.7, SAYING)
    assert quality.rows == 4
    assert quality.accuracy == (0.25, 0.75, 1.0)
    assert quality.certainty == pytest.approx((0.55, 0.75, 0.92))
    assert quality.calibration_error == pytest.approx((0.30, 0.0, 0.08), abs=1e-6)
    assert quality.accuracy_most_certain == 1.0
    assert [point.threshold for point in quality.frontier] == sorted({*THRESHOLDS, 0.7})
    shipped = quality.shipped
    assert (quality.whole, shipped.whole) == ((), None), "an answer has one position"
    assert (shipped.threshold, shipped.accuracy, shipped.mean_ticks, shipped.share_certain) == (0.7, 0.75, 2.0, 1.0)


@pytest.mark.parametrize(
    "shape", [pytest.param((), id="one label"), pytest.param((4, 3), id="a label at each of four positions")]
)
def test_judging_counts_right_labels_and_their_probability(shape: tuple[int, ...]) -> None:
    model = tiny_model(**({"out_dims": 12, "prediction_shape": shape} if shape else {}))
    inputs = tiny_inputs(model, 6)
    with torch.no_grad():
        thoughts = model(inputs)
    last = thoughts.predictions[:, -1].unflatten(-1, model.config.answer_shape)
    # Right by construction at the last tick, but for the first row.
    targets = last.argmax(-1)
    targets[0] = (targets[0] + 1) % model.config.answer_shape[-1]
    judged = judge(model, TensorRows(inputs, targets))
    assert judged.correct.shape == judged.certainty.shape == judged.confidence.shape == (6, model.config.ticks)
    assert judged.correct[:, -1].tolist() == [0, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(judged.certainty, thoughts.certainties.numpy(), atol=1e-6)
    confidence = last.softmax(-1).amax(-1).reshape(6, -1).mean(-1)
    np.testing.assert_allclose(judged.confidence[:, -1], confidence.numpy(), atol=1e-6)


def test_a_task_is_opened_from_a_checkpoints_settings() -> None:
    task = open_task({"name": "parity", "parity": {"length": 7}, "labels": ["even", "odd"]}, None)
    assert (task.name, task.input_shape) == ("parity", (7,))


@pytest.mark.parametrize("settings", [{"name": "chess"}, {}, {"name": "parity", "parity": {"length": 0}}])
def test_a_task_that_is_not_known_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="the checkpoint's task is none that is known here"):
        open_task(settings, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"length": 6}, r"parity, has inputs and predictions of shapes \(6,\) and \(6, 2\)", id="shapes"),
        pytest.param(
            {"length": 7, "held_out_rows": 31}, "holds out 31 training rows, .* at least 32", id="too few rows"
        ),
    ],
)
def test_a_task_that_does_not_suit_the_model_is_refused(options: dict[str, int], sentence: str) -> None:
    model = tiny_model(backbone="parity", input_shape=(7,), out_dims=14, prediction_shape=(7, 2))
    with pytest.raises(ExportError, match=sentence):
        _measure(model, {"name": "parity", "parity": options})


def test_rows_that_cannot_be_held_out_are_an_export_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_task(*_: Any) -> None:
        raise ValueError("task.mnist.held_out must be below the 5 rows there are, got 5")

    monkeypatch.setattr(export_quality, "load_task", load_task)
    with pytest.raises(ExportError, match=r"the checkpoint's task: task\.mnist\.held_out must be below"):
        _measure(tiny_model(), {"name": "mnist"})


def _measure(model: CTM, settings: dict[str, Any]) -> None:
    measure_on_task(model, settings, None, wishes=Wishes(), rows=32, say=lambda _: None)
