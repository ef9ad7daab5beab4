"""WINA attention: plain attention where nothing is dropped, the telling weights elsewhere, and padding is nobody."""

from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from torch.nn import functional as F

from ctm.diffusion.wina import freeze_norms, keep_largest
from ctm.diffusion.wina_attention import WINAAttention, sparsify_weights


def _attention(*, sparsity: float = 0.5, weight_sparsity: float | None = None) -> WINAAttention:
    torch.manual_seed(0)
    return WINAAttention(16, 2, sparsity=sparsity, weight_sparsity=weight_sparsity).eval()


def test_without_sparsity_it_is_softmax_attention():
    attention, query, seen = _attention(sparsity=0.0), torch.randn(3, 4, 16), torch.randn(3, 7, 16)
    hidden = torch.rand(3, 7) < 0.4
    found, weights = attention(query, seen, hidden)
    split = [
        layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
        for layer, x in ((attention.query, query), (attention.key, seen), (attention.value, seen))
    ]
    expected = F.scaled_dot_product_attention(*split, attn_mask=~hidden[:, None, None])
    torch.testing.assert_close(found, attention.out(expected.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 4))


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.65, 0.8])
def test_weights_lose_less_by_what_they_weigh_where_values_differ_in_length(sparsity):
    torch.manual_seed(0)
    weights, hidden = torch.randn(2, 2, 30, 40).softmax(-1), torch.zeros(2, 1, 1, 40, dtype=torch.bool)
    value = torch.randn(2, 2, 40, 8) * torch.randn(2, 2, 40, 1).exp()
    dense = weights @ value
    sparse = sparsify_weights(weights, value, hidden, sparsity)
    count = int((sparse > 0).sum(-1).unique())
    by_size = weights * keep_largest(weights, count)
    assert (sparse @ value - dense).norm() < 0.9 * (by_size @ value - dense).norm()


def test_each_query_keeps_as_many_weights_as_wina_keeps_of_the_visible():
    attention, x = _attention(weight_sparsity=0.6), torch.randn(3, 10, 16)
    hidden = torch.arange(10) >= torch.tensor([[10], [5], [1]])
    _, weights = attention(x, x, hidden)
    assert (weights > 0).sum(-1).amax((1, 2)).tolist() == [4, 2, 1]
    assert (weights > 0).sum(-1).amin((1, 2)).tolist() == [4, 2, 1]
    assert not weights.masked_select(hidden[:, None, None]).any()


def test_padding_changes_nothing_and_nothing_to_see_is_no_trouble():
    attention, x = _attention(), torch.randn(2, 6, 16)
    alone, _ = attention(x, x)
    padded = torch.cat([x, 100 * torch.randn(2, 5, 16)], dim=1)
    hidden = (torch.arange(11) >= 6).expand(2, -1)
    found, _ = attention(x, padded, hidden)
    torch.testing.assert_close(found, alone)
    nothing, weights = attention(x, padded, torch.ones_like(hidden))
    assert nothing.isfinite().all()
    assert not weights.any()


def test_a_row_does_not_depend_on_its_company():
    attention, x = _attention(), torch.randn(5, 6, 16)
    together, _ = attention(x, x)
    for row in range(5):
        torch.testing.assert_close(attention(x[row : row + 1], x[row : row + 1])[0][0], together[row])


def test_every_weight_learns():
    attention, x = _attention(), torch.randn(8, 6, 16)
    attention(x, x)[0].square().sum().backward()
    assert [name for name, weight in attention.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_it_exports_and_works_under_autocast(tmp_path: Path):
    attention = _attention()
    freeze_norms(attention)

    def examples(rows: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(rows, 3, 16), torch.randn(rows, 9, 16), torch.rand(rows, 9) < 0.3

    names = ["query", "seen", "hidden"]
    check_exports(attention, examples, names, ["found", "weights"], tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(*examples(5))[0].isfinite().all()
