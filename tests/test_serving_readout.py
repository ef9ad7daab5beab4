"""The best classes of a prediction: which, in which order, with which scores."""

import numpy as np
import pytest

from serving.readout import leading


@pytest.mark.parametrize("shape", [(1,), (2,), (10,), (3, 5), (2000,)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 8, 9, 5000])
@pytest.mark.parametrize("distinct", [2, 1000], ids=["many equal", "few equal"])
def test_the_best_classes_come_best_first_and_of_equal_ones_the_first(shape, k, distinct):
    prediction = np.random.default_rng(5).integers(0, distinct, (4, *shape)).astype(np.float32) / 100
    exponentials = np.exp(prediction - prediction.max(axis=-1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    for place, found in enumerate(leading(prediction, [k] * 4)):
        assert found is not None
        np.testing.assert_array_equal(found.indices, best[place].reshape(-1, best.shape[-1]))
        np.testing.assert_array_equal(
            found.scores, np.take_along_axis(scores[place], best[place], axis=-1).reshape(found.indices.shape)
        )


def test_each_caller_gets_as_many_as_asked_for():
    found = leading(np.arange(30, dtype=np.float32).reshape(3, 10), [2, 0, 20])
    assert [None if one is None else one.indices.tolist() for one in found] == [
        [[9, 8]],
        None,
        [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]],
    ]


def test_classes_that_cannot_be_are_told_apart_from_those_already_found():
    (found,) = leading(np.array([[0, -1e38, -1e38]], np.float32), [3])
    assert found is not None
    assert found.indices.tolist() == [[0, 1, 2]]
    assert found.scores.tolist() == [[1, 0, 0]]
