"""Pipelining an update: while the denoiser works on one part of the rows, the thought about the next part goes on.

    first device   think 0 | think 1   | think 2   |
    second device          | denoise 0 | denoise 1 | denoise 2

One host thread begins everything: an accelerator's work is only queued, so that two of them work at the same time.
What a part's denoising needs is sent before the next thought is queued, as a copy waits for all that is queued before
it. The backward pass overlaps likewise, by autograd's one thread for each device. On one device, or on a CPU, the
order is the same, the numbers are those of the whole batch, and nothing is gained.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P")
Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """Where thought and denoiser are while they learn, and in how many parts rows go through them."""

    devices: tuple[str, str] = ("cuda:0", "cuda:1")
    """Of the thought, and of the denoiser; as torch names them."""
    parts: int = 4
    """Of an update's rows."""

    def __post_init__(self) -> None:
        if isinstance(self.parts, bool) or not isinstance(self.parts, int) or self.parts < 1:
            raise ValueError(f"diffusion.pipeline.parts must be a whole number of at least 1, got {self.parts!r}")
        if len(self.devices) != 2:
            raise ValueError(f"diffusion.pipeline.devices must be two, got {list(self.devices)}")
        for device in self.devices:
            try:
                torch.device(device)
            except RuntimeError as error:
                raise ValueError(
                    f"diffusion.pipeline.devices must be names such as cpu or cuda:1, got {device!r}"
                ) from error

    def check_present(self) -> None:
        """Raise ValueError unless this machine has the devices."""
        for name in self.devices:
            device, kind = torch.device(name), torch.accelerator.current_accelerator(check_available=True)
            count = torch.accelerator.device_count() if kind is not None and kind.type == device.type else 0
            if device.type != "cpu" and (device.index or 0) >= count:
                raise ValueError(
                    f"diffusion.pipeline.devices names {name}, but of {device.type} devices there are {count} here"
                )


def overlapped(parts: Iterable[P], think: Callable[[P], Q], denoise: Callable[[Q], R]) -> list[tuple[Q, R]]:
    """What was thought about each part, sent on by `think`, and what `denoise` made of it, queued one part later."""
    made: list[tuple[Q, R]] = []
    waiting: list[Q] = []
    for part in parts:
        thought = think(part)
        made += [(earlier, denoise(earlier)) for earlier in waiting]
        waiting = [thought]
    return made + [(last, denoise(last)) for last in waiting]


def sent(value: Any, device: torch.device) -> Any:
    """A tensor, or a named tuple of such, on a device; the host does not wait where it need not."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        # To a CPU, a copy that is not waited for may be read before it has come.
        return value.to(device, non_blocking=device.type != "cpu")
    return type(value)(*(sent(field, device) for field in value))
