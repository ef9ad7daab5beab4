"""Which token a number between 0 and 1 draws."""

import re
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.text.sampling import Sampling, draw

QUARTERS = np.log(np.array([0.25, 0.5, 0.125, 0.125], np.float32))
EQUAL = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("logits", "sampling", "drawn"),
    [
        pytest.param(QUARTERS, {}, [0, 0, 1, 1, 1, 1, 2, 3], id="as likely as predicted"),
        pytest.param(QUARTERS, {"temperature": 0.0}, [1] * 8, id="greedy"),
        pytest.param(EQUAL, {"temperature": 0.0}, [0] * 8, id="greedy takes the first of equals"),
        pytest.param(QUARTERS, {"temperature": 1e-300}, [1] * 8, id="almost cold"),
        pytest.param(QUARTERS, {"temperature": 5e-324}, [1] * 8, id="the least temperature"),
        pytest.param(QUARTERS, {"temperature": 1e300}, [0, 0, 1, 1, 2, 2, 3, 3], id="hot: all alike"),
        pytest.param(QUARTERS, {"temperature": 0.5}, [0, 0, 1, 1, 1, 1, 1, 1], id="cooler"),
        pytest.param(QUARTERS, {"top_k": 1}, [1] * 8, id="the best one"),
        pytest.param(QUARTERS, {"top_k": 2}, [0, 0, 0, 1, 1, 1, 1, 1], id="the best two"),
        pytest.param(QUARTERS, {"top_k": 3}, [0, 0, 0, 1, 1, 1, 1, 2], id="of equals the first"),
        pytest.param(QUARTERS, {"top_k": 99}, [0, 0, 1, 1, 1, 1, 2, 3], id="more than there are"),
        pytest.param(QUARTERS, {"top_p": 0.5}, [1] * 8, id="half of it"),
        pytest.param(QUARTERS, {"top_p": 0.51}, [1, 1, 1, 1, 1, 1, 0, 0], id="the fewest that have the share"),
        pytest.param(QUARTERS, {"top_p": 1e-9}, [1] * 8, id="never none"),
        pytest.param(QUARTERS, {"top_k": 2, "top_p": 0.7}, [1, 1, 1, 1, 1, 1, 0, 0], id="both"),
        pytest.param(QUARTERS, {"top_k": 2, "top_p": 0.6}, [1] * 8, id="the share is of the best k"),
        pytest.param(np.array([3e38, -3e38], np.float32), {}, [0] * 8, id="as far apart as floats are"),
        pytest.param(np.zeros(1, np.float32), {}, [0] * 8, id="one token"),
    ],
)
def test_what_is_drawn(logits, sampling, drawn):
    assert [draw(logits, Sampling(**sampling), eighth / 8 + 1e-6) for eighth in range(8)] == drawn


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 25),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 3),
)
def test_what_is_drawn_was_allowed(logits, chance, top_k, top_p, temperature):
    """One of the best k, and the tokens that are better have less than the share."""
    prediction = np.array(logits, np.float32)
    token = draw(prediction, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), chance)
    better = prediction > prediction[token]
    assert better.sum() < (top_k or prediction.size)
    if temperature == 0:
        assert not better.any()
    elif top_p < 1:
        with np.errstate(over="ignore"):
            weights = np.exp((prediction.astype(float) - prediction.max()) / temperature)
        best = np.sort(weights)[::-1][: top_k or None]
        assert weights[better].sum() < top_p * best.sum() * (1 + 1e-9)


def test_the_last_number_below_one_draws_a_token_that_may_be_drawn():
    far = np.array([0.0, -1e30], np.float32)
    assert draw(far, Sampling(), np.nextafter(1.0, 0.0)) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"temperature": -0.5}, "temperature must be a number of at least 0, got -0.5", id="below 0"),
        pytest.param({"temperature": nan}, "temperature must be a number of at least 0, got nan", id="NaN"),
        pytest.param({"temperature": inf}, "got inf", id="infinite"),
        pytest.param({"top_k": -1}, "top_k must be at least 0, got -1", id="less than none"),
        pytest.param({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0", id="no share"),
        pytest.param({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5", id="more than all"),
        pytest.param({"top_p": nan}, "top_p must be in (0, 1], got nan", id="a share that is no number"),
    ],
)
def test_what_it_cannot_be(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Sampling(**fields)
