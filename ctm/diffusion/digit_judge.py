"""An independent judge of digits: a small convolutional network that no diffusion model ever learns from.

    pixels ── 5x5 ──> 16 ── 3x3 ──> 32 ── pool ── 3x3 ──> 64 ── pool ── linear ──> features ── linear ──> logits

It says whether a sample is the digit that was asked for; its features are what two sets of images are compared by
(`ctm.diffusion.frechet`). The first layer of a judge of 28 x 28 pixels goes in strides of two, so that behind it both
sizes are one network.
"""

# Shapes: N rows, S side, F features.

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

SIDES = (14, 28)
CLASSES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """What is judged, and by how many numbers it is compared."""

    side: int = 28
    """[S] Pixels along each side: 28, or 14."""

    features: int = 64
    """[F] Numbers before the last layer."""

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"judge.side must be one of {SIDES}, got {self.side!r}")
        if isinstance(self.features, bool) or not isinstance(self.features, int) or self.features < 1:
            raise ValueError(f"judge.features must be a whole number of at least 1, got {self.features!r}")


class Verdict(NamedTuple):
    """What is seen in some images."""

    features: Tensor
    """[N, F]"""
    logits: Tensor
    """[N, 10]"""


class DigitJudge(nn.Module):
    """About 60,000 weights; in evaluation a row's verdict does not depend on its company."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=config.side // 14, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, config.features, bias=False),
            nn.BatchNorm1d(config.features),
            nn.ReLU(),
        )
        self.read = nn.Linear(config.features, CLASSES)

    def forward(self, pixels_NSS: Tensor) -> Verdict:
        """Look at images with pixels in [0, 1], strokes bright."""
        side = self.config.side
        if pixels_NSS.shape[1:] != (side, side):
            raise ValueError(f"this judge knows images of {side} x {side} pixels, got shape {tuple(pixels_NSS.shape)}")
        features_NF = self.layers(2 * pixels_NSS.unsqueeze(1) - 1)
        return Verdict(features_NF, self.read(features_NF))


@torch.inference_mode()
def judge_images(judge: DigitJudge, pixels_NSS: Tensor, *, batch_size: int = 1000) -> Verdict:
    """The verdict on any number of images, in evaluation mode."""
    assert not judge.training, "a judge that is still learning looks at the whole batch"
    verdicts = [judge(some) for some in torch.split(pixels_NSS, batch_size)]
    return Verdict(*(torch.cat(parts) for parts in zip(*verdicts, strict=True)))


def pooled(pixels_N1AA: Tensor, side: int) -> Tensor:
    """Larger images as a judge sees them: averaged over squares, [N, S, S]."""
    if pixels_N1AA.shape[-1] % side:
        raise ValueError(f"side must divide the images' {pixels_N1AA.shape[-1]} pixels, got {side}")
    return F.avg_pool2d(pixels_N1AA, pixels_N1AA.shape[-1] // side).squeeze(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """How many samples show what was asked for."""

    rows: int
    share: float
    """Of all rows."""
    by_class: tuple[float | None, ...]
    """Of the rows that were asked for each digit; None where nobody asked."""
    confidence: float
    """Mean probability of the digit that was asked for."""


def recognised(logits: Tensor, asked_N: Tensor) -> Recognised:
    """Compare a judge's logits, [N, 10], with the digits that samples should show, int64 [N]; at least one row."""
    if len(logits) != len(asked_N) or not len(logits):
        raise ValueError(f"every sample needs its digit, got {len(logits)} samples and {len(asked_N)} digits")
    if not torch.isfinite(logits).all():
        raise ValueError("logits must be finite: some samples are not")
    right_N = logits.argmax(-1) == asked_N
    probability_N = logits.softmax(-1).gather(1, asked_N.unsqueeze(1))
    return Recognised(
        rows=len(asked_N),
        share=right_N.double().mean().item(),
        by_class=tuple(_shares(right_N, asked_N)),
        confidence=probability_N.double().mean().item(),
    )


def _shares(right_N: Tensor, asked_N: Tensor) -> Iterator[float | None]:
    for digit in range(CLASSES):
        mine_N = asked_N == digit
        yield right_N[mine_N].double().mean().item() if mine_N.any() else None


def save_judge(judge: DigitJudge, path: Path) -> None:
    """Write the weights, and in the file's header what they are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"family": "digit-judge", "side": str(judge.config.side), "features": str(judge.config.features)}
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, path, metadata=config)


def load_judge(path: Path) -> DigitJudge:
    """What `save_judge` wrote, ready to judge.

    Raises:
        ValueError: it is the file of something else. FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; python -m benchmarks.digit_judge trains judges")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, only like one
    except SafetensorError as error:
        raise ValueError(f"{path} holds no safetensors: {error}") from error
    if about.get("family") != "digit-judge":
        raise ValueError(f"{path} must be of family digit-judge, got {about.get('family')!r}")
    judge = DigitJudge(JudgeConfig(side=int(about["side"]), features=int(about["features"])))
    judge.load_state_dict(weights)
    return judge.eval()
