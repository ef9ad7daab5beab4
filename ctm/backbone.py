"""Backbones: what turns an input into features, [B, C, L] or [B, C, height, width], for a thought to attend to."""

from torch import Tensor, nn

from ctm.backbone_resnet import RGBResNet, resnet_channels
from ctm.config import RESNETS, CTMConfig

SHALLOW_WIDE_CHANNELS = 2048


def build_backbone(config: CTMConfig) -> nn.Module:
    """The backbone that `config.backbone` names."""
    if config.backbone in RESNETS:
        return RGBResNet(config.backbone, config.in_channels)
    if config.backbone == "shallow-wide":
        return ShallowWide(config.in_channels)
    if config.backbone == "digit":
        return Digit(config.in_channels, config.attention_width)
    if config.backbone == "lattice":
        return Lattice(config.in_channels, config.attention_width)
    if config.backbone == "parity":
        return Parity(config.attention_width)
    return nn.Identity()


def feature_channels(config: CTMConfig) -> int:
    """Channels of the features that the backbone makes."""
    if config.backbone in RESNETS:
        return resnet_channels(config.backbone)
    if config.backbone == "shallow-wide":
        return SHALLOW_WIDE_CHANNELS
    return config.in_channels if config.backbone == "none" else config.attention_width


class Parity(nn.Module):
    """Signs in {-1, 1}, [B, L], to features [B, I, L]: one learned vector for +1, one for anything else."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, channels)

    def forward(self, signs_BL: Tensor) -> Tensor:
        features: Tensor = self.embedding((signs_BL == 1).long()).transpose(1, 2)
        return features


class Digit(nn.Module):
    """Two small convolutions, each halving the image: [B, C, height, width] to [B, I, height / 4, width / 4]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)),
        )

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.layers(image)
        return features


class Lattice(nn.Module):
    """One feature for each cell of a drawn lattice, [B, C, 2 n + 1, 2 m + 1] to [B, I, n, m].

    A cell stands at odd coordinates; it sees the walls around it, then its neighbours. Local on purpose: the way
    through is for ticks to find.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
        )

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.layers(image)
        return features


class ShallowWide(nn.Module):
    """Two wide gated convolutions: [B, C, height, width] to [B, 2048, height / 2, width / 2]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        wide = 2 * SHALLOW_WIDE_CHANNELS
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, wide, 3, stride=2, padding=1), nn.GLU(dim=1), nn.BatchNorm2d(wide // 2)),
            *(nn.Conv2d(wide // 2, wide, 3, padding=1, groups=32), nn.GLU(dim=1), nn.BatchNorm2d(wide // 2)),
        )

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.layers(image)
        return features
