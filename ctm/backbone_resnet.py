"""ResNet backbones for small images: a gentle stem, and only the first stages, `resnet34-2` having two of four.

Against the ImageNet classic (He et al., arXiv 1512.03385) the first convolution is 3x3 with stride 1, so that the
overall stride is 2, 4, 8 or 16 by the number of stages, and there is neither pooling nor classifier at the end.
"""

from torch import Tensor, nn

# Blocks in each stage. The 4 in the second stage of 152 layers is the reference's; the classic has 8.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 4, 36, 3)}
STEM_CHANNELS = 64


class RGBResNet(nn.Module):
    """Any channels mixed into three, then a ResNet: [B, C, height, width] to [B, channels, height / s, width / s]."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        layers, stages = _parse(name)
        self.rgb = nn.Conv2d(in_channels, 3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(STEM_CHANNELS),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        inputs = STEM_CHANNELS
        for stage in range(stages):
            planes = STEM_CHANNELS << stage
            blocks = nn.Sequential()
            for index in range(STAGES[layers][stage]):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Basic(inputs, planes, stride) if layers < 50 else Bottleneck(inputs, planes, stride)
                blocks.append(block)
                inputs = block.channels
            self.stages.append(blocks)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.stem(self.rgb(image))
        for stage in self.stages:
            x = stage(x)
        return x


def resnet_channels(name: str) -> int:
    """Channels of the features that this ResNet makes."""
    layers, stages = _parse(name)
    return (STEM_CHANNELS << (stages - 1)) * (1 if layers < 50 else Bottleneck.EXPANSION)


def _parse(name: str) -> tuple[int, int]:
    layers, stages = name.removeprefix("resnet").split("-")
    return int(layers), int(stages)


class Block(nn.Module):
    """A residual block: relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Sequential, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.body = body
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(*_convolution(inputs, channels, 1, stride))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


class Basic(Block):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        body = nn.Sequential(*_convolution(inputs, planes, 3, stride), nn.ReLU(), *_convolution(planes, planes, 3, 1))
        super().__init__(body, inputs, planes, stride)


class Bottleneck(Block):
    """A 3x3 convolution, which carries the stride, between two 1x1 that narrow and widen again."""

    EXPANSION = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        channels = planes * self.EXPANSION
        body = nn.Sequential(
            *(*_convolution(inputs, planes, 1, 1), nn.ReLU()),
            *(*_convolution(planes, planes, 3, stride), nn.ReLU()),
            *_convolution(planes, channels, 1, 1),
        )
        super().__init__(body, inputs, channels, stride)


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size (but for its stride) and the normalisation that replaces its bias."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
