"""Linear attention: how near it is to softmax attention, what it costs by length, and what masks and causality hide."""

from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from seen_shapes import SeenShapes
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ctm.diffusion.linear_attention import (
    LinearAttention,
    LinearAttentionConfig,
    attend,
    attend_causally,
    relevance_of,
    taylor_error,
    taylor_features,
)


def _given(keys: int, *, queries: int | None = None, longest: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Unit queries, keys of that length, values and a mask that hides a fifth; [2 rows, 2 heads, ..., 6]."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 2, count, 6, generator=generator) for count in (queries or keys, keys, keys))
    hidden = torch.rand(2, keys, generator=generator) < 0.2
    return F.normalize(query, dim=-1), F.normalize(key, dim=-1) * longest, value, hidden


def _softmax(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, *, causal: bool = False) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).masked_fill(hidden[:, None, None], -torch.inf)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ value


def _share(found: Tensor, expected: Tensor, value: Tensor) -> float:
    """The largest error of a result, in lengths of the longest value."""
    return float((found - expected).norm(dim=-1).max() / value.norm(dim=-1).max())


def test_products_of_features_are_the_polynomial_and_positive():
    x, y = torch.randn(50, 5), torch.randn(50, 5)
    score = (x * y).sum(-1)
    polynomial = (taylor_features(x) * taylor_features(y)).sum(-1)
    torch.testing.assert_close(polynomial, 1 + score + score**2 / 2)
    assert (polynomial >= 0.4999).all()


@pytest.mark.parametrize(
    ("threshold", "bound"), [pytest.param(0.25, 0.006, id="0.25"), pytest.param(0.5, 0.046, id="0.5"),
                             pytest.param(1.0, 0.48, id="1")],
)  # fmt: skip
def test_small_scores_give_softmax_attention_to_the_stated_error(threshold, bound):
    assert taylor_error(threshold) <= bound
    for seed in range(3):
        given = _given(40, longest=threshold, seed=seed)
        found = attend(*given, exact=0, threshold=threshold)
        share = _share(found, _softmax(*given), given[2])
        assert share <= taylor_error(threshold), f"seed {seed}"
        assert share <= 0.2 * threshold**3, f"seed {seed}: typical errors fall with the third power"


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_stated_error_holds_where_all_keys_lie_along_the_query(threshold):
    query, key, value = torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 40, 6), torch.ones(1, 1, 40, 1)
    query[..., 0] = 1.0
    key[:, :, :20, 0], key[:, :, 20:, 0], value[:, :, 20:] = threshold, -threshold, -1.0
    nothing = torch.zeros(1, 40, dtype=torch.bool)
    found = attend(query, key, value, nothing, exact=0, threshold=threshold)
    share = _share(found, _softmax(query, key, value, nothing), value)
    assert 0.1 * taylor_error(threshold) < share < taylor_error(threshold)


def test_relevance_is_at_least_every_score():
    query, key, _, _ = _given(30, longest=4.0)
    scores = query @ key.transpose(-1, -2)
    assert (relevance_of(query, key) >= scores.amax(-2) - 1e-5).all()
    idle = torch.arange(30).expand(2, -1) >= 10
    assert (relevance_of(query, key, idle) >= scores[:, :, :10].amax(-2) - 1e-5).all()


def test_relevant_keys_are_exact_whatever_their_scores():
    query, key, value, hidden = _given(40, longest=0.25)
    hidden[:, :3] = False
    key[:, :, :3] *= 40.0
    expected = _softmax(query, key, value, hidden)
    assert _share(attend(query, key, value, hidden, exact=3, threshold=0.25), expected, value) < taylor_error(0.25)
    assert _share(attend(query, key, value, hidden, exact=2, threshold=0.25), expected, value) > 10 * taylor_error(0.25)
    assert _share(attend(query, key, value, hidden, exact=40, threshold=0.25), expected, value) < 1e-6


def test_huge_scores_stay_finite():
    query, key, value, hidden = _given(20, longest=1e4)
    for exact in (0, 3, 20):
        assert attend(query, key, value, hidden, exact=exact, threshold=1.0).isfinite().all()
    expected = _softmax(query, key, value, hidden)
    torch.testing.assert_close(attend(query, key, value, hidden, exact=20, threshold=1.0), expected)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_cost_grows_linearly_and_no_matrix_of_pairs_is_formed(causal):
    config = LinearAttentionConfig(key_width=4, exact=8, causal=causal)
    model = LinearAttention(8, 2, config).eval()
    counted = {}
    for length in (64, 128, 256, 512):
        x = torch.randn(1, length, 8)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, SeenShapes() as seen:
            model(x, x)
        counted[length] = counter.get_total_flops()
        assert not [shape for shape in seen.shapes if shape.count(length) > 1], f"length {length}"
    per_token = {length: flops / length for length, flops in counted.items()}
    assert len(set(per_token.values())) == 1, f"operations a token by length: {per_token}"


@pytest.mark.parametrize("exact", [0, 4, 64])
def test_padding_changes_nothing(exact):
    query, key, value, hidden = _given(12, longest=2.0)
    alone = attend(query, key, value, hidden, exact=exact, threshold=1.0)
    more = torch.cat([key, 50 * torch.randn(2, 2, 5, 6)], -2), torch.cat([value, torch.randn(2, 2, 5, 6)], -2)
    padded = F.pad(hidden, (0, 5), value=True)
    torch.testing.assert_close(attend(query, *more, padded, exact=exact, threshold=1.0), alone)
    queries, idle = torch.cat([query, -query], -2), torch.arange(24).expand(2, -1) >= 12
    kept = attend(queries, *more, padded, exact=exact, threshold=1.0, idle_BQ=idle)[:, :, :12]
    torch.testing.assert_close(kept, alone)
    nothing = attend(query, *more, torch.ones_like(padded), exact=exact, threshold=1.0)
    assert not nothing.any()


@pytest.mark.parametrize("block", [1, 4, 5, 32])
def test_causal_attention_is_near_softmax_and_sees_nothing_later(block):
    query, key, value, hidden = _given(22, longest=0.5)
    hidden[:, 0] = False
    found = attend_causally(query, key, value, hidden, block=block, threshold=0.5)
    expected = _softmax(query, key, value, hidden, causal=True)
    assert _share(found, expected, value) <= (taylor_error(0.5) if block < 22 else 1e-6)
    later = key.clone(), value.clone()
    for x in later:
        x[:, :, 13:] += 10.0
    changed = attend_causally(query, *later, hidden, block=block, threshold=0.5)
    torch.testing.assert_close(changed[:, :, :13], found[:, :, :13])
    assert not torch.allclose(changed[:, :, 13:], found[:, :, 13:])


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_a_row_does_not_depend_on_its_company(causal):
    torch.manual_seed(0)
    model = LinearAttention(8, 2, LinearAttentionConfig(key_width=4, exact=3, causal=causal)).eval()
    x, hidden = torch.randn(5, 9, 8), torch.rand(5, 9) < 0.3
    together = model(x, x, hidden)
    for row in range(5):
        one = slice(row, row + 1)
        torch.testing.assert_close(model(x[one], x[one], hidden[one])[0], together[row])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"key_width": 0}, "key_width must be a whole number of at least 1, got 0", id="no width"),
        pytest.param({"exact": 0, "causal": True}, "exact must be a whole number of at least 1, got 0", id="no block"),
        pytest.param({"threshold": 3.0}, r"threshold must be in \(0, 2\], got 3.0", id="no trust"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        LinearAttentionConfig(**options)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_it_learns_exports_and_works_under_autocast(tmp_path: Path, causal):
    torch.manual_seed(0)
    model = LinearAttention(8, 2, LinearAttentionConfig(key_width=4, exact=3, causal=causal)).eval()

    def examples(rows: int) -> tuple[Tensor, ...]:
        x = torch.randn(rows, 7, 8)
        return x, x + 0.1, torch.rand(rows, 7) < 0.3

    model(*examples(6)).square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    names = ["query", "seen", "hidden"]
    check_exports(model, examples, names, ["found"], tmp_path)
    given = examples(5)
    expected = model(*given).detach()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(*given).float(), expected, atol=0.05, rtol=0.1)
