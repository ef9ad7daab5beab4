"""What neurons did while a model warmed up, in decayed sums: all that a rule of neuron selection looks at.

    sum' = keep * sum + sum over the rows and ticks of this batch

An *active* neuron is louder than the root mean square of all. A *spike* is a post-activation of more than a standard
deviation above the mean of its own thought, so that every neuron has its own measure.
"""

# Shapes: B rows, T ticks, D neurons, R targets.

import torch
from torch import Tensor, nn

SPIKE_MEMORY = 10.0
"""Ticks after which a spike counts 1/e for the timing of others."""
INHIBITION = 1.0
"""How much of its distance to the loudest a neuron loses in competition."""
SHARPNESS = 0.5
"""Temperature of the competition."""


class NeuronActivity(nn.Module):
    """Decayed sums over batches; buffers, so that an interrupted warm-up goes on where it was."""

    def __init__(self, neurons: int, targets: int = 0, *, keep: float = 0.99) -> None:
        """`targets` numbers are told of each row, 0 where none are; `keep` is the share that outlives a batch."""
        super().__init__()
        if neurons < 2 or targets < 0:
            raise ValueError(f"activity is of at least 2 neurons and 0 targets, got {neurons} and {targets}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        self.neurons, self.targets, self.keep = neurons, targets, keep
        one, each, both = (), (neurons,), (neurons, neurons)
        shapes = {
            "count": one, "post": each, "products": both, "absolute": each, "change": each, "changes": one,
            "wins": each, "active": each, "spikes": each, "timing": both, "leading": each, "branches": each,
            "target": (targets,), "target_square": (targets,), "target_product": (neurons, targets),
            "target_count": one, "loss": one, "loss_square": one, "loss_product": each, "loss_count": one,
            "loss_absolute": each, "loss_absolute_square": each,
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(name)

    @torch.no_grad()
    def observe(self, post_BTD: Tensor, targets_BR: Tensor | None = None, losses: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            post_BTD: post-activations of at least two ticks.
            targets_BR: what each row should lead to; classes as one-hot numbers.
            losses: how wrong each row is, [B] or, at each tick, [B, T].
        """
        rows, ticks, neurons = post_BTD.shape
        if neurons != self.neurons or ticks < 2:
            raise ValueError(f"post-activations must be [B, at least 2, {self.neurons}], got {list(post_BTD.shape)}")
        post = post_BTD.double()
        loud = post.abs()
        spikes = (post > post.mean(1, keepdim=True) + post.std(1, keepdim=True, correction=0) + 1e-9).double()
        relative = loud / post.square().mean().sqrt().clamp(min=1e-12)
        loudest = relative.amax(-1, keepdim=True)
        flat = post.flatten(0, 1)
        branches, leading = _branching(spikes)
        self._add(
            count=post.new_tensor(rows * ticks),
            post=flat.sum(0),
            products=flat.T @ flat,
            absolute=loud.sum((0, 1)),
            change=post.diff(dim=1).abs().sum((0, 1)),
            changes=post.new_tensor(rows * (ticks - 1)),
            wins=((relative - INHIBITION * (loudest - relative)) / SHARPNESS).softmax(-1).sum((0, 1)),
            active=(relative > 1).double().sum((0, 1)),
            spikes=spikes.sum((0, 1)),
            timing=_timing(spikes),
            leading=leading,
            branches=branches,
        )
        if targets_BR is not None:
            self._observe_targets(post, targets_BR)
        if losses is not None:
            self._observe_losses(loud, losses)

    def _observe_targets(self, post_BTD: Tensor, targets_BR: Tensor) -> None:
        rows, ticks, _ = post_BTD.shape
        if targets_BR.shape != (rows, self.targets):
            raise ValueError(f"targets must be [{rows}, {self.targets}], got {list(targets_BR.shape)}")
        targets = targets_BR.double()
        self._add(
            target=ticks * targets.sum(0),
            target_square=ticks * targets.square().sum(0),
            target_product=post_BTD.sum(1).T @ targets,
            target_count=post_BTD.new_tensor(rows * ticks),
        )

    def _observe_losses(self, loud_BTD: Tensor, losses: Tensor) -> None:
        rows, ticks, _ = loud_BTD.shape
        if losses.shape not in ((rows,), (rows, ticks)):
            raise ValueError(f"losses must be [{rows}] or [{rows}, {ticks}], got {list(losses.shape)}")
        losses_BT = losses.double().view(rows, -1).expand(rows, ticks)
        self._add(
            loss=losses_BT.sum(),
            loss_square=losses_BT.square().sum(),
            loss_product=torch.einsum("bt,btd->d", losses_BT, loud_BTD),
            loss_count=loud_BTD.new_tensor(rows * ticks),
            loss_absolute=loud_BTD.sum((0, 1)),
            loss_absolute_square=loud_BTD.square().sum((0, 1)),
        )

    def correlation(self) -> Tensor:
        """Of each neuron with each, [D, D]; 0 for one that never changes."""
        mean = self["post"] / self._seen("count")
        covariance = self["products"] / self._seen("count") - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        return _ratio(covariance, torch.outer(deviation, deviation))

    def variance(self) -> Tensor:
        """Of each neuron, [D]."""
        count = self._seen("count")
        return (self["products"].diagonal() / count - (self["post"] / count).square()).clamp(min=0)

    def target_correlation(self) -> Tensor:
        """Of each neuron with each target, [D, R]."""
        count = self._seen("target_count")
        target = self["target"] / count
        spread = (self["target_square"] / count - target.square()).clamp(min=0).sqrt()
        covariance = self["target_product"] / count - torch.outer(self["post"] / self._seen("count"), target)
        return _ratio(covariance, torch.outer(self.variance().sqrt(), spread))

    def loss_correlation(self) -> Tensor:
        """Of each neuron's loudness with the loss, [D]."""
        count = self._seen("loss_count")
        loud, loss = self["loss_absolute"] / count, self["loss"] / count
        spread = (self["loss_absolute_square"] / count - loud.square()).clamp(min=0).sqrt()
        return _ratio(
            self["loss_product"] / count - loud * loss,
            spread * (self["loss_square"] / count - loss.square()).clamp(min=0).sqrt(),
        )

    def _seen(self, count: str) -> Tensor:
        if not self[count] > 0:
            what = {"count": "post-activations", "target_count": "targets", "loss_count": "losses"}[count]
            raise ValueError(f"no {what} have been observed, and this rule needs them")
        return self[count]

    def _add(self, **sums: Tensor) -> None:
        for name, value in sums.items():
            self[name].mul_(self.keep).add_(value)


def _timing(spikes_BTD: Tensor) -> Tensor:
    """For neurons i, j: the sum of exp(-dt / SPIKE_MEMORY) over spikes of i that came dt ticks before one of j."""
    trace_BD = torch.zeros_like(spikes_BTD[:, 0])
    timing_DD = trace_BD.new_zeros(trace_BD.shape[1], trace_BD.shape[1])
    fade = torch.exp(trace_BD.new_tensor(-1 / SPIKE_MEMORY))
    for spikes_BD in spikes_BTD.unbind(1):
        timing_DD = timing_DD + trace_BD.T @ spikes_BD
        trace_BD = fade * (trace_BD + spikes_BD)
    return timing_DD


def _branching(spikes_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """For each neuron: how many spikes followed its own, shared among those of its tick; and its spikes, [D] each."""
    number_BT = spikes_BTD.sum(-1)
    ratio_BT = number_BT[:, 1:] / number_BT[:, :-1].clamp(min=1)
    before_BTD = spikes_BTD[:, :-1]
    return torch.einsum("bt,btd->d", ratio_BT, before_BTD), before_BTD.sum((0, 1))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where there is nothing to divide by."""
    return torch.where(below > 1e-12, above / below.clamp(min=1e-12), 0.0)
