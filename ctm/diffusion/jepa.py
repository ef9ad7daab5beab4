"""Joint embedding prediction (JEPA): from one stretch of a row's patches, tell the vectors of another.

    context = f(row) on a contiguous block of 30 to 70 % of its patches
    target  = stop-gradient of g(row) on one block that does not touch the context's patches
    loss    = |predictor(context, places of the target) - target|^2, the mean over the target
    g <- decay g + (1 - decay) f     after each update: weights and buffers, decay 0.996

What is predicted are vectors, not bytes; g is a slow copy of f, and no gradient reaches it. After I-JEPA
(arXiv 2301.08243), with one target block of a line in place of four of an image. For training alone.
"""

# Shapes: B rows, P patches there is room for, E width of a patch's vector, H hidden width.

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DRAWS = 4
"""Random numbers that the two views of a row take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JEPAConfig:
    """Which patches are seen and which are to be told, and how slow the copy is."""

    context_share: tuple[float, float] = (0.3, 0.7)
    """The least and the largest share of a row's patches that is context."""

    target_share: tuple[float, float] = (0.1, 0.3)
    """The least and the largest share that is target; less where there is no room beside the context."""

    hidden: int = 128
    """[H] Width of the predictor."""

    decay: float = 0.996
    """How much of the slow copy stays at each update."""

    def __post_init__(self) -> None:
        for name in ("context_share", "target_share"):
            shares = tuple(getattr(self, name))
            if len(shares) != 2 or not 0 < shares[0] <= shares[1] < 1:
                raise ValueError(f"jepa.{name} must be two rising numbers in (0, 1), got {shares}")
            object.__setattr__(self, name, shares)  # The only way in while we are being made.
        if type(self.hidden) is not int or self.hidden < 1:
            raise ValueError(f"jepa.hidden must be a whole number of at least 1, got {self.hidden!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"jepa.decay must be in [0, 1), got {self.decay}")


class Views(NamedTuple):
    """What is seen and what is to be told of each row; each a contiguous block, and no patch is in both."""

    context: Tensor
    """[B, P] true for patches that are seen; at least one."""
    target: Tensor
    """[B, P] true for patches to be told; none in a row of fewer than two patches."""


def draw_views(uniform: Tensor, count_B: Tensor, patches: int, config: JEPAConfig) -> Views:
    """Two views of each row.

    Args:
        uniform: numbers in [0, 1), [B, DRAWS]: they alone decide.
        count_B: patches of each row.
        patches: patches there is room for, P.
    """
    share_B, start_B, target_share_B, place_B = uniform.unbind(1)
    context_B = torch.clamp(_between(share_B, config.context_share) * count_B, min=1).round().long()
    context_B = torch.minimum(context_B, (count_B - 1).clamp(min=1))
    first_B = (start_B * (count_B - context_B + 1)).long()
    last_B = first_B + context_B

    # A place among the patches that are left, and then no further than the side of the context it is on.
    rest_B = (count_B - context_B).clamp(min=0)
    begin_B = (place_B * rest_B).long()
    before_B = begin_B < first_B
    side_end_B = torch.where(before_B, first_B, count_B)
    begin_B = torch.where(before_B, begin_B, begin_B + context_B)
    wanted_B = torch.clamp(_between(target_share_B, config.target_share) * count_B, min=1).round().long()
    end_B = torch.minimum(begin_B + wanted_B, side_end_B)

    patch_P = torch.arange(patches, device=count_B.device)
    return Views(_block(patch_P, first_B, last_B), _block(patch_P, begin_B, end_B))


def _between(uniform: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + uniform * (limits[1] - limits[0])


def _block(patch_P: Tensor, first_B: Tensor, end_B: Tensor) -> Tensor:
    return (patch_P >= first_B[:, None]) & (patch_P < end_B[:, None])


class JEPAPredictor(nn.Module):
    """Tells the vectors of target patches from those of the context and from where both are."""

    places: Tensor

    def __init__(self, width: int, patches: int, config: JEPAConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.register_buffer("places", waves(patches, hidden), persistent=False)
        self.context = nn.Linear(width, hidden)
        self.summary = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.predict = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, width),
        )  # fmt: skip

    def forward(self, vectors_BPE: Tensor, context_BP: Tensor) -> Tensor:
        """What each patch would be, [B, P, E], as far as the context tells; only context patches are looked at."""
        seen_BP1 = context_BP[..., None]
        known_BPH = self.summary(self.context(vectors_BPE.masked_fill(~seen_BP1, 0.0)) + self.places)
        summary_B1H = torch.where(seen_BP1, known_BPH, 0.0).sum(1, keepdim=True) / seen_BP1.sum(1, keepdim=True)
        asked_BPH = self.places.expand(*context_BP.shape, -1)
        told: Tensor = self.predict(torch.cat([summary_B1H.expand_as(asked_BPH), asked_BPH], dim=-1))
        return told


def waves(patches: int, width: int) -> Tensor:
    """Places as sines and cosines of wave lengths from 2 pi to 10,000 times that, [P, width]."""
    rates = torch.logspace(0, -4, (width + 1) // 2)
    angles = torch.arange(patches)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def jepa_loss(predicted_BPE: Tensor, target_BPE: Tensor, target_BP: Tensor) -> Tensor:
    """Mean squared error over the target patches, float32 scalar: of each row alike, and 0 where no row has a target.

    No gradient goes into `target_BPE`.
    """
    error_BP = (predicted_BPE.float() - target_BPE.detach().float()).square().mean(-1)
    count_B = target_BP.sum(1)
    error_B = torch.where(target_BP, error_BP, 0.0).sum(1) / count_B.clamp(min=1)
    return error_B.sum() / (count_B > 0).sum().clamp(min=1)


class SlowCopy(nn.Module):
    """A module's exponential moving average: it runs without gradients, and always as in evaluation."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SlowCopy":
        """Its own flag alone: what it copies stays in evaluation."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the copy makes of the module's inputs."""
        return self.module(*inputs)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move every weight and buffer towards the module's; belongs after the optimiser's update.

        What cannot be averaged, such as a count, is taken over.
        """
        ours, theirs = _tensors(self.module), _tensors(module)
        assert ours.keys() == theirs.keys(), "a copy has the names of what it copies"
        for name, slow in ours.items():
            if slow.is_floating_point():
                slow.lerp_(theirs[name].to(slow), 1 - self.decay)
            else:
                slow.copy_(theirs[name])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
