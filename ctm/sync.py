"""Synchronisation: how much two neurons have acted together, kept as a decayed running sum (paper section 3.4).

sync = sum / root beta        sum' = keep * sum + left * right        beta' = keep * beta + 1
"""

# Shapes: B rows, D neurons, P pairs, n selected neurons.

import torch
from torch import Tensor, nn

from ctm.config import CTMConfig

LARGEST_DECAY = 15.0
"""exp(-15) forgets all but the newest product."""


class Synchronisation(nn.Module):
    """The pairs of one sync and how fast each forgets."""

    left: Tensor
    right: Tensor

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """`left` and `right` are the neurons of each pair, [P]; they belong to the weights and ride with them."""
        super().__init__()
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.decay = nn.Parameter(torch.zeros(len(left)))

    def products(self, post_BD: Tensor) -> Tensor:
        """What each pair does at this tick, [B, P]."""
        return post_BD.index_select(1, self.left) * post_BD.index_select(1, self.right)

    def keep(self) -> Tensor:
        """The share of a sum that survives a tick, exp(-decay) in (0, 1], [P].

        The value is that of the decay clamped to [0, 15], the gradient that of the decay unclamped: a clamp in the
        graph would stop the gradient of a decay at its limit for ever.
        """
        clamped = self.decay.clamp(0.0, LARGEST_DECAY)
        return torch.exp(-(self.decay + (clamped - self.decay).detach()))

    @torch.no_grad()
    def project_decay(self) -> None:
        """Move every decay back into [0, 15], in place; belongs after the optimiser's update."""
        self.decay.clamp_(0.0, LARGEST_DECAY)

    @torch.no_grad()
    def root_betas(self, ticks: int, *, first: int) -> Tensor:
        """The roots of `ticks` successive betas from the one of `first` terms on, float32 [ticks, P].

        Beta of n terms is the sum of keep^j over j < n; summed in float64, as a table is made once and used often.
        """
        keep = torch.exp(-self.decay.cpu().double().clamp(0.0, LARGEST_DECAY))
        powers = keep ** torch.arange(first + ticks - 1, dtype=keep.dtype)[:, None]
        return powers.cumsum(0)[first - 1 :].sqrt().float().to(self.decay.device)


def select_pairs(config: CTMConfig, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pairs (left, right) of the action and of the out sync. Draws are with replacement, as in the reference."""

    def draw(count: int) -> Tensor:
        return torch.randint(config.width, (count,), generator=generator, device="cpu")

    def pairs(neurons: int, first: int) -> tuple[Tensor, Tensor]:
        if config.neuron_selection == "first-last":
            selected = torch.arange(first, first + neurons, device="cpu")
            return pair_each_with_each(selected, selected)
        if config.neuron_selection == "random":
            return pair_each_with_each(draw(neurons), draw(neurons))
        left = draw(neurons)
        return left, torch.cat([left[: config.self_pairs], draw(neurons - config.self_pairs)])

    action = pairs(config.action_neurons, config.width - config.action_neurons)
    return action, pairs(config.out_neurons, 0)


def pair_each_with_each(left_n: Tensor, right_n: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right of the pairs (i, j), i <= j, in row-major order, [n(n+1)/2] each.

    With `left_n` other than `right_n` the pairs below the diagonal are not the same as those above. The reference
    drops them all the same, and so do we.
    """
    rows, columns = torch.triu_indices(len(left_n), len(left_n), device="cpu")
    return left_n[rows], right_n[columns]


def diagonal_of(pairs: int) -> Tensor:
    """Where `pair_each_with_each` put the pairs (i, i), [n]: the way back to the selected neurons."""
    neurons = int(((8 * pairs + 1) ** 0.5 - 1) / 2)
    assert neurons * (neurons + 1) // 2 == pairs, f"{pairs} is not n(n+1)/2 for any n"
    row = torch.arange(neurons, device="cpu")
    return row * neurons - row * (row - 1) // 2
