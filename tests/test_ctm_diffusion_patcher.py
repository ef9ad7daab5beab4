"""Patches: where they begin and what that hangs on, that no byte is lost, and that their vectors are their bytes'."""

import itertools
import math
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.entropy_model import EntropyModelConfig, next_byte_loss
from ctm.diffusion.patch_vectors import PatchDecoder, spread
from ctm.diffusion.patcher import DynamicEntropyPatcher
from ctm.diffusion.patches import PatcherConfig, Patches, cut, fit_threshold
from export.onnx_graph import write_onnx
from export.torchscript import quiet

LOW, HIGH = 0.1, 5.0


def config_of(length: int = 48, **settings) -> PatcherConfig:
    small = {"width": 16, "min_length": 2, "max_length": 8, "entropy": EntropyModelConfig(width=8, layers=2)}
    return PatcherConfig(length=length, **{**small, **settings})


def patcher_of(config: PatcherConfig, seed: int = 0) -> DynamicEntropyPatcher:
    torch.manual_seed(seed)
    return DynamicEntropyPatcher(config).eval()


def draw(rows: int, length: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8)


def lengths_of(patches: Patches) -> list[list[int]]:
    return [row[:count] for row, count in zip(patches.lengths.tolist(), patches.counts.tolist(), strict=True)]


def cut_by_hand(entropy: list[float], config: PatcherConfig) -> list[int]:
    """The definition, byte by byte."""
    lengths = [1]
    for before, now in itertools.pairwise(entropy):
        hard = now > config.threshold or np.float32(now) - np.float32(before) > config.rise
        if lengths[-1] >= config.max_length or (lengths[-1] >= config.min_length and hard):
            lengths.append(0)
        lengths[-1] += 1
    return lengths


@pytest.mark.parametrize(
    ("entropy", "settings", "lengths"),
    [
        pytest.param([LOW] * 12, {}, [8, 4], id="easy bytes: as long as may be"),
        pytest.param([HIGH] * 7, {}, [2, 2, 2, 1], id="hard bytes: as short as may be, the last even shorter"),
        pytest.param([LOW, LOW, LOW, HIGH, LOW, LOW, LOW], {"rise": math.inf}, [3, 4], id="a hard byte begins a patch"),
        pytest.param([LOW, HIGH, LOW, LOW, LOW, LOW], {}, [6], id="but not before the one before is long enough"),
        pytest.param([0.1, 0.2, 0.3, 0.7, 0.7, 0.3], {"rise": 0.3}, [3, 3], id="a rise begins a patch"),
        pytest.param([0.7, 0.7, 0.4, 0.1, 0.3, 0.5], {"rise": 0.3}, [6], id="a fall does not, nor a slow rise"),
        pytest.param([0.5] * 6, {"threshold": 0.5}, [6], id="the threshold itself is easy"),
        pytest.param([LOW] * 4, {"max_length": 2}, [2, 2], id="one length for all"),
        pytest.param([HIGH] * 3, {"min_length": 1, "max_length": 1}, [1, 1, 1], id="single bytes"),
        pytest.param([LOW], {}, [1], id="a single byte"),
    ],
)
def test_where_patches_begin(entropy, settings, lengths):
    config = config_of(len(entropy), **settings)
    assert lengths_of(cut(torch.tensor([entropy]), config)) == [lengths]
    assert cut_by_hand(entropy, config) == lengths


LIMITS = [(1, 1), (1, 5), (2, 2), (2, 100), (3, 7), (4, 128), (16, 16), (60, 64)]


@pytest.mark.parametrize(("least", "most"), LIMITS, ids=str)
def test_random_rows_are_cut_as_by_hand_and_every_byte_is_in_one_patch(least, most):
    generator = torch.Generator().manual_seed(least * 1000 + most)
    for length in (1, 2, 3, 15, 16, 17, 31, 40, 64):
        # From rows that are easy nearly everywhere to rows that are hard everywhere.
        entropy_BN = torch.rand(12, length, generator=generator) * torch.linspace(0.5, 8, 12)[:, None]
        config = config_of(length, min_length=least, max_length=most, rise=0.9)
        patches = cut(entropy_BN, config)
        found = lengths_of(patches)
        assert found == [cut_by_hand(row, config) for row in entropy_BN.tolist()]
        for row, lengths in enumerate(found):
            assert all(least <= one <= most for one in lengths[:-1])
            assert 1 <= lengths[-1] <= most
            expected = [(patch, place) for patch, one in enumerate(lengths) for place in range(one)]
            index, place = patches.which[row].tolist(), patches.place[row].tolist()
            assert list(zip(index, place, strict=True)) == expected
        assert (patches.lengths.sum(1) == length).all()
        assert patches.real.all()


def test_a_row_that_ends_early_is_cut_as_if_there_were_no_room_beyond():
    generator = torch.Generator().manual_seed(0)
    entropy_BN, config = torch.rand(41, 40, generator=generator) * 1.2, config_of(40)
    patches = cut(entropy_BN, config, torch.arange(41))
    assert patches.real.sum(1).tolist() == list(range(41))
    assert lengths_of(patches)[0] == []
    for length in range(1, 41):
        alone = cut(entropy_BN[length : length + 1, :length], config_of(length))
        assert lengths_of(patches)[length] == lengths_of(alone)[0]
        assert torch.equal(patches.which[length, :length], alone.which[0])
        assert torch.equal(patches.place[length, :length], alone.place[0])


@pytest.mark.parametrize("mean_length", [2.5, 4.0, 6.0])
def test_a_threshold_can_be_asked_for_that_gives_patches_of_a_length(mean_length):
    entropy_BN = torch.rand(50, 48, generator=torch.Generator().manual_seed(0)) * 5
    config = config_of(48, rise=math.inf)
    found = cut(entropy_BN, replace(config, threshold=fit_threshold(entropy_BN, config, mean_length)))
    assert found.lengths.sum() / found.counts.sum() == pytest.approx(mean_length, rel=0.03)


def test_where_a_patch_begins_hangs_on_earlier_bytes_alone():
    patcher = patcher_of(config_of(48, threshold=5.3, rise=0.05))
    given = draw(1, 48)
    starts = _starts(patcher(given).patches)
    assert 8 < len(starts) < 24, "neither all the longest nor all the shortest"
    moved = 0
    for changed_at in range(48):
        other = given.clone()
        other[0, changed_at] ^= 0x55
        others = _starts(patcher(other).patches)
        # The changed byte itself may begin a patch: that is decided before it is read.
        assert [at for at in starts if at <= changed_at] == [at for at in others if at <= changed_at], changed_at
        moved += starts != others
    assert moved > 10, "later ones do move"


def _starts(patches: Patches) -> list[int]:
    return np.cumsum([0, *lengths_of(patches)[0]]).tolist()[:-1]


def test_runs_make_long_patches_and_noise_short_ones_once_the_model_has_learned():
    """Rows of 48 bytes: the first half a run of one of four values, the second half noise, or the other way about."""
    config = config_of(48, threshold=2.0, rise=1.0, entropy=EntropyModelConfig(width=16, layers=2))
    patcher = patcher_of(config)
    optimiser = torch.optim.Adam(patcher.entropy_model.parameters(), lr=1e-2)

    def mixture(seed: int) -> Tensor:
        noise = draw(16, 48, seed)
        run = noise[:, :1].expand(-1, 24) % 4 * 64
        return torch.cat([torch.cat([run, noise[:, 24:]], 1)[:8], torch.cat([noise[:, 24:], run], 1)[8:]])

    untrained = lengths_of(patcher(mixture(1000)).patches)
    assert {one for row in untrained for one in row} == {2}, "all is noise to a fresh model"
    for seed in range(100):
        optimiser.zero_grad()
        given = mixture(seed)
        next_byte_loss(patcher(given).logits, given).backward()
        optimiser.step()
    patches = patcher(mixture(1000)).patches
    length_BN = patches.lengths.gather(1, patches.which).float()
    run, noise = length_BN[:8, :20].mean().item(), length_BN[8:, 4:20].mean().item()
    assert run > 6, "of at most 8"
    assert noise < 3, "of at least 2"


def test_a_vector_hangs_on_all_bytes_of_its_patch_and_on_no_others():
    patcher, given = patcher_of(config_of(24)), draw(1, 24)
    patches = cut(torch.full((1, 24), LOW), patcher.config)
    assert lengths_of(patches) == [[8, 8, 8]]

    def vectors(bytes_BN: Tensor) -> Tensor:
        return patcher.encoder(bytes_BN, patches)[0]

    for changed_at in range(24):
        other = given.clone()
        other[0, changed_at] ^= 1
        moved = (vectors(other) != vectors(given)).any(-1).nonzero()[:, 0]
        assert moved.tolist() == [changed_at // 8]
    turned = given.reshape(1, 3, 8).flip(2).reshape(1, 24)
    assert (vectors(turned) != vectors(given)).any(-1)[:3].all(), "the order of bytes counts"


def test_padding_changes_nothing():
    patcher, decoder = patcher_of(config_of(48)), PatchDecoder(16, 5, 8)
    given, lengths = draw(6, 48), torch.tensor([48, 47, 30, 9, 1, 0])
    padded = torch.where(torch.arange(48) < lengths[:, None], given, draw(6, 48, seed=1))
    assert (padded != given).any()
    one, other = patcher(given, lengths), patcher(padded, lengths)
    assert torch.equal(one.vectors, other.vectors)
    assert torch.equal(one.patches.lengths, other.patches.lengths)
    assert not one.vectors[one.patches.lengths == 0].any(), "where there is no patch there is nothing"
    told = [decoder(found.vectors, found.patches) for found in (one, other)]
    assert torch.equal(*told)
    assert not told[0][~one.patches.real].any()
    for row, length in enumerate(lengths[:5].tolist()):
        alone = patcher_of(config_of(length))(given[row : row + 1, :length])
        count = int(alone.patches.counts)
        torch.testing.assert_close(one.vectors[row, :count], alone.vectors[0, :count], atol=1e-6, rtol=1e-5)


def test_each_byte_gets_the_vector_of_its_patch():
    patches = cut(torch.tensor([[LOW, LOW, LOW, HIGH, LOW, LOW]]), config_of(6))
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])
    assert spread(vectors, patches.which).tolist() == [[[1.0, 2.0]] * 3 + [[3.0, 4.0]] * 3]


def test_bytes_can_be_learned_back_from_the_vectors_of_their_patches():
    config = config_of(16, width=48, max_length=4)
    patcher, decoder = patcher_of(config), PatchDecoder(48, 16, 4)
    optimiser = torch.optim.Adam([*patcher.encoder.parameters(), *decoder.parameters()], lr=5e-3)

    def told(given: Tensor) -> Tensor:
        found = patcher(given)
        return decoder(found.vectors, found.patches)

    for seed in range(150):
        given = draw(32, 16, seed) // 16
        optimiser.zero_grad()
        F.cross_entropy(told(given).flatten(0, 1), given.long().flatten()).backward()
        optimiser.step()
    unseen = draw(64, 16, 1000) // 16
    assert (told(unseen).argmax(-1) == unseen).float().mean() > 0.95, "by chance 1 in 16"


def test_only_the_loss_of_the_next_byte_teaches_the_entropy_model():
    patcher, given = patcher_of(config_of(48)), draw(2, 48)
    found = patcher(given)
    found.vectors.square().sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in patcher.entropy_model.parameters())
    assert all(weight.grad is not None for weight in patcher.encoder.parameters())
    next_byte_loss(found.logits, given).backward()
    assert all(weight.grad is not None for weight in patcher.entropy_model.parameters())


def test_mixed_precision_cuts_the_same_patches():
    patcher, given = patcher_of(config_of(48, threshold=5.3)), draw(4, 48)
    plain = patcher(given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = patcher(given)
        decoded = PatchDecoder(16, 5, 8)(mixed.vectors, mixed.patches)
    assert all(map(torch.equal, plain.patches, mixed.patches))
    assert decoded.isfinite().all()
    torch.testing.assert_close(mixed.vectors.float(), plain.vectors, atol=0.05, rtol=0.05)


class ThereAndBack(nn.Module):
    """All of it in one graph: patches, their vectors, and numbers for their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.patcher = patcher_of(config_of(40, threshold=5.3))
        self.decoder = PatchDecoder(16, 5, 8).eval()

    def forward(self, bytes_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        found = self.patcher(bytes_BN, lengths_B)
        told = self.decoder(found.vectors, found.patches)
        return found.vectors, told, found.patches.which, found.patches.lengths, found.patches.counts


def test_exported_it_cuts_the_same_patches_and_a_row_is_the_same_alone_or_in_company(tmp_path):
    model, results = ThereAndBack(), ("vectors", "told", "which", "lengths", "counts")
    example, given = (draw(3, 40), torch.tensor([40, 9, 21])), draw(9, 40, seed=1)
    lengths = torch.tensor([40, 39, 40, 1, 7, 40, 25, 40, 12])
    write_onnx(model, example, ("bytes", "lengths_given"), results, tmp_path / "patcher.onnx")
    session = ort.InferenceSession(tmp_path / "patcher.onnx")
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(model, example)
        eager = model(given, lengths)
        for name, ours, scripted in zip(results, eager, traced(given, lengths), strict=True):
            torch.testing.assert_close(scripted, ours, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)
    together = session.run(None, {"bytes": given.numpy(), "lengths_given": lengths.numpy()})
    for name, ours, exported in zip(results, eager, together, strict=True):
        np.testing.assert_allclose(exported, ours.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
    assert len({tuple(row) for row in together[3].tolist()}) > 5, "rows differ"
    for row in range(9):
        for name, one, ours in zip(results, model(given[row : row + 1], lengths[row : row + 1]), eager, strict=True):
            torch.testing.assert_close(one[0], ours[row], atol=1e-6, rtol=1e-5, msg=name)
        one_of_two = slice(row - 1, row + 1) if row else slice(0, 2)
        pair = session.run(None, {"bytes": given[one_of_two].numpy(), "lengths_given": lengths[one_of_two].numpy()})
        for name, few, many in zip(results, pair, together, strict=True):
            assert few.tobytes() == many[one_of_two].tobytes(), f"{name} of row {row}, to the bit"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"length": 0}, "length must be a whole number of at least 1, got 0", id="no bytes"),
        pytest.param({"min_length": 0}, "min_length must be a whole number of at least 1, got 0", id="empty patches"),
        pytest.param({"max_length": 1}, "max_length must be at least min_length 2, got 1", id="limits that cross"),
        pytest.param({"threshold": math.nan}, "threshold must be a number of nats, got nan", id="no number"),
        pytest.param({"rise": "fast"}, "rise must be a number of nats, got 'fast'", id="a word"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config_of(**settings)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="rows must have 48 bytes, padded if need be, got 47"):
        patcher_of(config_of(48))(draw(1, 47))
    with pytest.raises(ValueError, match="rows must have 48 bytes, padded if need be, got 50"):
        cut(torch.zeros(1, 50), config_of(48))
