"""WINA: which inputs are kept, that norms follow their weights, and that less is lost than by magnitude alone."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from exported_part import check_exports
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.wina import (
    WINAConfig,
    WINALinear,
    column_norms,
    freeze_norms,
    keep_largest,
    kept,
    kept_each,
)
from export.torchscript import write_torchscript

SPARSITIES = (0.25, 0.5, 0.65, 0.8)


@pytest.mark.parametrize(
    ("inputs", "sparsity", "expected"),
    [
        pytest.param(20, 0.0, 20, id="nothing dropped"),
        pytest.param(20, 0.5, 10, id="half"),
        pytest.param(20, 0.8, 4, id="not 3, which floats would give"),
        pytest.param(7, 0.5, 3, id="rounded down"),
        pytest.param(3, 0.99, 1, id="never none"),
    ],
)
def test_how_many_inputs_are_kept(inputs, sparsity, expected):
    assert kept(inputs, sparsity) == expected
    assert kept_each(torch.tensor([inputs, 0]), sparsity).tolist() == [expected, 0]
    mask = keep_largest(torch.rand(6, inputs, generator=torch.Generator().manual_seed(0)), expected)
    assert mask.sum(-1).tolist() == [expected] * 6


def test_counts_in_tensors_are_the_same_as_of_numbers():
    counts = torch.arange(1, 2000)
    for sparsity in (0.1, 0.3, 0.5, 0.65, 0.7, 0.8, 0.9):
        assert kept_each(counts, sparsity).tolist() == [kept(int(count), sparsity) for count in counts]


@pytest.mark.parametrize("count", [2, torch.tensor([[2], [2]])], ids=["one for all", "each its own"])
def test_of_equal_scores_the_first_are_kept(count):
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert keep_largest(scores, count).tolist() == [[True, True, False, False], [True, True, False, False]]


def test_a_ramp_rises_from_half_and_is_capped():
    assert WINAConfig(sparsity=0.6, ramp=True).of_layers(3) == pytest.approx((0.3, 0.45, 0.6))
    assert WINAConfig(sparsity=0.95, ramp=True).of_layers(3) == pytest.approx((0.475, 0.7125, 0.8))
    assert WINAConfig(sparsity=0.6, ramp=True).of_layers(1) == (0.6,)
    assert WINAConfig(sparsity=0.6).of_layers(2) == (0.6, 0.6)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, float("nan"), True], ids=str)
def test_an_impossible_sparsity_is_refused_by_name(sparsity):
    with pytest.raises(ValueError, match=r"wina\.sparsity must be a share in \[0, 1\), got"):
        WINAConfig(sparsity=sparsity)


def _layer(seed: int = 0, *, sparsity: float = 0.5) -> WINALinear:
    torch.manual_seed(seed)
    return WINALinear(12, 9, sparsity=sparsity)


def _assign(layer: WINALinear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 3)


def _assign_data(layer: WINALinear) -> None:
    layer.weight.data = layer.weight.data * 3


def _load(layer: WINALinear) -> None:
    layer.load_state_dict({"weight": layer.weight * 3, "bias": layer.bias})


def _optimise(layer: WINALinear) -> None:
    layer(torch.ones(2, 12)).square().sum().backward()
    torch.optim.Adam(layer.parameters(), lr=0.1).step()


def _scale_one(layer: WINALinear) -> None:
    with torch.no_grad():
        layer.weight[:, 4] *= 100


def _as_double(layer: WINALinear) -> None:
    layer.double().float()


def _forget(layer: WINALinear) -> None:
    layer.weight.data.mul_(3)
    layer.norms.forget()


@pytest.mark.parametrize("change", [_assign, _assign_data, _load, _optimise, _scale_one, _as_double, _forget])
def test_the_cache_notices_new_weights(change):
    layer, x = _layer(), torch.randn(3, 12)
    layer(x)
    for _ in range(3):
        layer(x)
    assert layer.norms.computed == 1, "nothing had changed"
    change(layer)
    layer(x)
    assert layer.norms.computed == 2
    assert torch.equal(layer.norms.of(layer.weight), column_norms(layer.weight))


def test_a_copy_does_not_take_its_own_changes_for_old_ones():
    layer, x = _layer(), torch.randn(3, 12)
    for _ in range(3):
        _scale_one(layer)
    layer(x)
    copied = copy.deepcopy(layer)
    # Its version counts from 0 again, and reaches the one that the original remembers.
    for _ in range(3):
        with torch.no_grad():
            copied.weight.mul_(0.5)
    copied(x)
    assert torch.equal(copied.norms.of(copied.weight), column_norms(copied.weight))


def test_norms_first_seen_in_inference_can_be_trained_with():
    layer, x = _layer(), torch.randn(3, 12)
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_the_gradient_is_that_of_what_was_computed():
    torch.manual_seed(0)
    layer = WINALinear(10, 4, sparsity=0.6).double()
    x = torch.randn(5, 10, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    keep = keep_largest(x.detach().abs() * column_norms(layer.weight), 4)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, keep), "the kept inputs have a gradient, the others none"


def test_without_sparsity_it_is_a_plain_layer_and_shares_its_weights():
    plain, x = nn.Linear(12, 9), torch.randn(3, 12)
    assert torch.equal(WINALinear.from_linear(plain, 0.0)(x), plain(x))
    sparse = WINALinear.from_linear(plain, 0.5)
    assert sparse.weight is plain.weight
    assert sparse.state_dict().keys() == plain.state_dict().keys()


def test_what_is_not_finite_is_seen_in_its_own_row_alone():
    layer, x = _layer(sparsity=0.9), torch.randn(3, 12)
    broken = x.clone()
    broken[1, 5] = float("nan")
    finite = layer(broken).isfinite().all(-1)
    assert finite.tolist() == [True, False, True]
    assert torch.equal(layer(broken)[finite], layer(x)[finite])


def test_a_row_does_not_depend_on_its_company():
    layer, x = _layer(), torch.randn(7, 12)
    together = layer(x)
    for index in range(len(x)):
        torch.testing.assert_close(layer(x[index : index + 1])[0], together[index], atol=1e-6, rtol=0)


def _lost(dense_BN: Tensor, sparse_BN: Tensor) -> float:
    return float((sparse_BN - dense_BN).norm() / dense_BN.norm())


def _errors(weight_NK: Tensor, x_BK: Tensor, sparsity: float) -> tuple[float, float]:
    """Relative output error of WINA, and of keeping the largest inputs whatever their columns."""
    count = kept(weight_NK.shape[1], sparsity)
    dense = x_BK @ weight_NK.T
    by_norm, by_size = (keep_largest(x_BK.abs() * norms, count) for norms in (column_norms(weight_NK), 1.0))
    return _lost(dense, (x_BK * by_norm) @ weight_NK.T), _lost(dense, (x_BK * by_size) @ weight_NK.T)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_less_is_lost_than_by_magnitude_where_norms_differ(sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(48, 64, generator=generator), torch.randn(200, 64, generator=generator)
    scaled = weight * torch.randn(64, generator=generator).exp()
    wina, magnitude = _errors(scaled, x, sparsity)
    assert wina < 0.75 * magnitude


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_nothing_is_gained_where_all_norms_are_the_same(sparsity):
    generator = torch.Generator().manual_seed(0)
    # Of signs: all norms are the same to the last bit.
    weight = torch.randn(48, 64, generator=generator).sign()
    wina, magnitude = _errors(weight, torch.randn(200, 64, generator=generator), sparsity)
    assert wina == magnitude


def test_with_orthogonal_columns_no_other_choice_loses_less():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(9, 6, generator=generator))
    weight, x = basis * torch.randn(6, generator=generator).exp(), torch.randn(20, 6, generator=generator)
    keep = keep_largest(x.abs() * column_norms(weight), 3)
    lost = ((x * ~keep) @ weight.T).norm(dim=-1)
    masks = [mask for mask in torch.cartesian_prod(*[torch.tensor([False, True])] * 6) if mask.sum() == 3]
    best = torch.stack([((x * ~mask) @ weight.T).norm(dim=-1) for mask in masks]).amin(0)
    torch.testing.assert_close(lost, best, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's: 8 x 8 pixels in 0..16, and labels. The edges are nearly always empty."""
    loaded = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's").load_digits()
    return torch.tensor(loaded.data, dtype=torch.float32), torch.tensor(loaded.target)


def _trained(images: Tensor, labels: Tensor) -> Tensor:
    """The first layer's weight of a little network that has learned the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(100):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (model(images).argmax(-1) == labels).float().mean() > 0.95, "it has learned"
    weight: Tensor = model[0].weight.detach()
    return weight


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_trained_layer_loses_less_too(digits, sparsity):
    images, labels = digits
    centred = (images - images.mean(0)) / 8
    wina, magnitude = _errors(_trained(centred[:600], labels[:600]), centred[1200:], sparsity)
    assert wina < magnitude


def test_inputs_all_of_one_sign_can_lose_more(digits):
    """Where it does not win: what is dropped then adds up instead of cancelling, and the score knows single columns."""
    images, labels = digits
    inked = images / 16
    wina, magnitude = _errors(_trained(inked[:600], labels[:600]), inked[1200:], 0.8)
    assert wina > magnitude


def test_it_exports_with_its_norms_as_constants(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(WINALinear(20, 30, sparsity=0.5), nn.ReLU(), WINALinear(30, 7, sparsity=0.8))
    freeze_norms(model)
    check_exports(model, lambda rows: (torch.randn(rows, 20),), ["x"], ["y"], tmp_path)
    norms = [tuple(weights.dims) for weights in onnx.load(tmp_path / "part.onnx").graph.initializer]
    assert {(20,), (30,)} <= set(norms)


def test_tracing_leaves_no_stale_norms(tmp_path: Path):
    layer, x = _layer().eval(), torch.randn(4, 12)
    write_torchscript(layer, (x,), tmp_path / "layer.ts")
    _scale_one(layer)
    expected = F.linear(x * keep_largest(x.abs() * column_norms(layer.weight), 6), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_it_works_under_autocast():
    layer, x = _layer(), torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0.05)
