"""Four granularities: each level sees something that no finer one can tell, and the mixture learns which to hear."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.granularity import Granularity, GranularityConfig, Levels, resize
from export.onnx_graph import write_onnx
from export.torchscript import quiet

SIZES = Levels(1, 1, 4, 16)


def granularity_of(seed: int = 0, **settings) -> Granularity:
    torch.manual_seed(seed)
    return Granularity(GranularityConfig(**{"length": 64, "width": 12, **settings})).eval()


def draw(rows: int, length: int = 64, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8)


def moved(model: Granularity, one: Tensor, other: Tensor, token: int) -> set[str]:
    """Levels that differ once they are as long as there are tokens of so many bytes."""
    seen = zip(Levels._fields, SIZES, model.levels(one), model.levels(other), strict=True)
    return {
        name
        for name, size, first, second in seen
        if not torch.allclose(resize(first, size, token), resize(second, size, token), atol=1e-6)
    }


@pytest.mark.parametrize(
    ("shuffled", "token", "levels"),
    [
        pytest.param([1, 0, 2, 3], 4, {"word", "block"}, id="bytes inside a word: from the word up"),
        pytest.param([4, 5, 6, 7, 0, 1, 2, 3], 16, {"block"}, id="words inside a block: the block alone"),
        pytest.param([*range(16, 32), *range(16)], 16, {"bit", "byte", "word", "block"}, id="blocks: every level"),
        pytest.param([0, 1, 2, 3], 1, set(), id="nothing"),
    ],
)
def test_which_levels_see_that_an_order_has_changed(shuffled, token, levels):
    given = draw(5)
    order = torch.tensor([*shuffled, *range(len(shuffled), 64)])
    assert moved(granularity_of(), given, given[:, order], token) == levels


@pytest.mark.parametrize("bit", range(8))
def test_a_bit_moves_the_bit_level_the_same_way_in_every_byte_and_the_byte_level_in_another_each_time(bit):
    model = granularity_of(length=256, block=256)
    unset = torch.arange(256)[None] & ~(1 << bit)
    before, after = model.levels(unset), model.levels(unset | 1 << bit)
    moves = (after.bit - before.bit)[0]
    torch.testing.assert_close(moves, (2 * model.bit.weight[:, bit]).expand(256, -1), atol=1e-5, rtol=1e-5)
    ways = (after.byte - before.byte)[0]
    assert len({tuple(way) for way in ways.tolist()}) == 128, "as many as there are other bits' values"


def test_only_the_byte_level_knows_which_bits_are_set_together():
    """Whether two bits are equal, read linearly off the vectors of all 256 bytes."""
    model = granularity_of(length=256, block=256, width=320)
    values = torch.arange(256)
    equal = ((values & 1) == (values >> 5 & 1)).double() * 2 - 1
    left = {}
    for name, level in zip(("bit", "byte"), model.levels(values[None])[:2], strict=True):
        known = level[0].double()
        read = known @ torch.linalg.lstsq(known, equal[:, None], rcond=1e-5, driver="gelsd").solution[:, 0]
        left[name] = (equal - read).square().mean().item()
    assert left["bit"] > 0.99, "nothing of it"
    assert left["byte"] < 1e-6, "all of it"


@pytest.mark.parametrize("token", [1, 4, 16])
def test_a_byte_moves_its_own_unit_of_each_level_and_the_tokens_of_its_block(token):
    model, given = granularity_of(token=token), draw(1)
    other = given.clone()
    other[0, 37] ^= 8
    for size, one, two in zip(SIZES, model.levels(given), model.levels(other), strict=True):
        assert (one != two).any(-1)[0].nonzero()[:, 0].tolist() == [37 // size]
    features = model(given)
    assert features.shape == (1, model.config.tokens, 12)
    assert (features != model(other)).any(-1)[0].nonzero()[:, 0].tolist() == list(range(32 // token, 48 // token))


def test_levels_are_averaged_over_larger_tokens_and_repeated_over_smaller():
    level = torch.arange(4.0).reshape(1, 4, 1)
    assert resize(level, 1, 2).flatten().tolist() == [0.5, 2.5]
    assert resize(level, 2, 1).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resize(level, 4, 4) is level


@pytest.mark.parametrize("heard", range(4), ids=Levels._fields)
def test_a_level_counts_as_much_as_it_weighs(heard):
    model, given = granularity_of(), draw(2)
    torch.testing.assert_close(model.weights(), torch.full((4,), 0.25))
    with torch.no_grad():
        model.mixture.fill_(-100.0)[heard] = 0.0
    alone = resize(model.norms[heard](model.levels(given)[heard]), SIZES[heard], 4)
    torch.testing.assert_close(model(given), alone)


@pytest.mark.parametrize(
    ("unit", "token", "level"),
    [
        pytest.param(1, 4, "word", id="the order of bytes in a word"),
        pytest.param(4, 16, "block", id="the order of words in a block"),
    ],
)
def test_the_mixture_learns_to_hear_the_level_that_knows(unit, token, level):
    """Four units a token, two of each of two kinds, in any order: is the first one of the first kind?"""
    model = granularity_of(token=token, length=16).train()
    readout = nn.Linear(12, 2)
    optimiser = torch.optim.Adam([*model.parameters(), *readout.parameters()], lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(80):
        ranks = torch.rand(32, 16 // token, 4, generator=generator).argsort(-1)
        given = torch.where(ranks < 2, 17, 202).repeat_interleave(unit, dim=-1).flatten(1)
        first = (ranks[..., 0] < 2).long().flatten()
        optimiser.zero_grad()
        loss = F.cross_entropy(readout(model(given)).flatten(0, 1), first)
        loss.backward()
        optimiser.step()
    assert loss < 0.1, "by chance ln 2"
    weights = dict(zip(Levels._fields, model.weights().tolist(), strict=True))
    assert max(weights, key=weights.__getitem__) == level
    assert weights[level] > 0.35, "a quarter at first"


def test_mixed_precision_sees_nearly_the_same():
    model, given = granularity_of(), draw(2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(given)
    torch.testing.assert_close(mixed.float(), model(given), atol=0.05, rtol=0.05)


def test_exported_it_sees_the_same_and_a_row_is_the_same_alone_or_in_company(tmp_path):
    model, given = granularity_of(), draw(7, seed=1)
    write_onnx(model, (draw(3),), ("bytes",), ("features",), tmp_path / "granularity.onnx")
    session = ort.InferenceSession(tmp_path / "granularity.onnx")
    with quiet(), torch.no_grad():
        traced, eager = torch.jit.trace(model, (draw(3),)), model(given)
        torch.testing.assert_close(traced(given), eager, atol=1e-6, rtol=1e-5)
        for row in range(7):
            torch.testing.assert_close(model(given[row : row + 1])[0], eager[row], atol=1e-6, rtol=1e-5)
    (together,) = session.run(None, {"bytes": given.numpy()})
    np.testing.assert_allclose(together, eager.numpy(), atol=1e-5, rtol=1e-5)
    for row in range(6):
        (pair,) = session.run(None, {"bytes": given[row : row + 2].numpy()})
        assert pair.tobytes() == together[row : row + 2].tobytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"block": 6}, "block must be whole words of 4 bytes, got 6", id="a word and a half"),
        pytest.param({"length": 196}, "length must be whole blocks of 16 bytes, got 196", id="12 blocks and a quarter"),
        pytest.param({"token": 2}, "token must be 1, word 4 or block 16, got 2", id="a token of no level"),
        pytest.param({"width": 0}, "width must be a whole number of at least 1, got 0", id="no width"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GranularityConfig(**{"length": 64, **settings})


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="rows must have 64 bytes, padded if need be, got 63"):
        granularity_of()(draw(1, 63))
