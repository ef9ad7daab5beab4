"""What a prediction of several positions is worth: its right positions, all of them together, those that count."""

import pytest
import torch

from ctm.judge import judge_predictions


@pytest.mark.parametrize(
    ("answered", "right", "correct", "whole", "unpadded"),
    [
        pytest.param([0, 1, 2, 2], [0, 1, 2, 2], 1.0, 1.0, 1.0, id="all right"),
        pytest.param([0, 0, 2, 2], [0, 1, 2, 2], 0.75, 0.0, 0.5, id="a wrong position that counts"),
        pytest.param([0, 1, 2, 0], [0, 1, 2, 2], 0.75, 0.0, 1.0, id="wrong where the answer is filled up"),
        pytest.param([2, 2, 2, 2], [0, 1, 1, 1], 0.0, 0.0, 0.0, id="nothing but padding"),
        pytest.param([2, 0, 2, 2], [2, 2, 2, 2], 0.75, 0.0, 0.75, id="an empty answer counts with all positions"),
    ],
)
def test_padding_belongs_to_the_whole_and_not_to_the_rest(
    answered: list[int], right: list[int], correct: float, whole: float, unpadded: float
) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[answered]]), 3).float().flatten(2)
    marks = judge_predictions(logits, torch.tensor([right]), (4, 3), padding=2)
    assert (marks.correct.item(), marks.whole.item(), marks.unpadded.item()) == (correct, whole, unpadded)


def test_without_padding_every_position_counts() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 0, 0]]]), 2).float().flatten(2)
    marks = judge_predictions(logits, torch.tensor([[0, 1, 1, 1]]), (4, 2))
    assert marks.correct.item() == marks.unpadded.item() == 0.5
    assert marks.whole.item() == 0.0
