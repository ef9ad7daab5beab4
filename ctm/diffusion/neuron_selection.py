"""Neurons whose synchronisation is worth reading: chosen once, after a warm-up, and frozen into the weights.

    warm-up updates ── observe ──> NeuronActivity ── rule ──> scores ── choose_pairs ──> left, right of a sync

Every decay and every weight that reads a sync belongs to one pair of neurons, so pairs cannot change from call to call:
they are buffers, drawn at first as `ctm.sync` draws them, replaced once, and from then on part of every checkpoint.
"""

# Shapes: D neurons, P pairs, n neurons chosen.

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ctm.config import CTMConfig
from ctm.diffusion.neuron_activity import NeuronActivity
from ctm.diffusion.neuron_rules import RULES, of_neurons, shuffled_order
from ctm.model import CTM
from ctm.sync import Synchronisation, pair_each_with_each

Where = Literal["both", "action", "out"]
Pairs = tuple[Tensor, Tensor]
"""The left and the right neurons of each pair, [P] each."""
Begun = tuple[Tensor, Tensor]
"""Weights of which some began anew, and a mask of their shape that is true where they did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """How the neurons of a sync are chosen."""

    rule: str
    """One of `RULES`."""

    where: Where = "both"
    """Which sync's pairs are chosen; the other keeps those that it began with."""

    warmup_updates: int = 100
    """Updates after which they are."""

    keep: float = 0.99
    """Share of what was observed that outlives a batch."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"selection.rule must be one of {tuple(RULES)}, got {self.rule!r}")
        if self.where not in get_args(Where):
            raise ValueError(f"selection.where must be one of {get_args(Where)}, got {self.where!r}")
        updates = self.warmup_updates
        if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
            raise ValueError(f"selection.warmup_updates must be a whole number of at least 1, got {updates!r}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"selection.keep must be a number in (0, 1], got {self.keep!r}")


def choose_neurons(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The best, best first, [count]; equals in an order of chance."""
    if count > len(scores):
        raise ValueError(f"{count} of {len(scores)} neurons cannot be chosen")
    return shuffled_order(of_neurons(scores), generator)[:count]


def choose_pairs(scores: Tensor, count: int, generator: torch.Generator) -> Pairs:
    """The best pairs of two neurons, no two alike in either order.

    Args:
        scores: of pairs, [D, D], left first: the best pairs are taken, each the better way round. Or of neurons, [D]:
            the best make a pool, at most half of all unless more are needed, in which everyone has as many partners,
            drawn by chance.
    """
    neurons = len(scores)
    if count > neurons * (neurons - 1) // 2:
        raise ValueError(
            f"{neurons} neurons have {neurons * (neurons - 1) // 2} different pairs, got {count} to choose"
        )
    if scores.dim() == 1:
        pool = fewest = next(size for size in range(2, neurons + 1) if size * (size - 1) // 2 >= count)
        pool = max(fewest, min(neurons // 2, count))
        members = shuffled_order(scores, generator)[:pool]
        members = members[torch.randperm(pool, generator=generator).to(members.device)]
        # Around a table: first everyone with the next, then with the next but one, until half way round.
        left = torch.arange(count, device=members.device) % pool
        distance = torch.arange(count, device=members.device) // pool + 1
        return members[left], members[(left + distance) % pool]
    first, second = torch.triu_indices(neurons, neurons, 1, device=scores.device)
    forth, back = scores[first, second], scores[second, first]
    best = shuffled_order(torch.maximum(forth, back), generator)[:count]
    turned = (back > forth)[best]
    first, second = first[best], second[best]
    return torch.where(turned, second, first), torch.where(turned, first, second)


def select_by(
    config: CTMConfig, scores: Tensor, generator: torch.Generator, where: Where = "both"
) -> tuple[Pairs | None, Pairs | None]:
    """The pairs of the action and of the out sync, in the numbers and the form of `ctm.sync.select_pairs`.

    Out takes the best and action the best that are left; None for a sync that keeps its own.
    """
    wanted = {name: getattr(config, f"{name}_neurons") for name in ("out", "action") if where in ("both", name)}
    total, neurons = sum(wanted.values()), len(scores)
    if config.neuron_selection == "random-pairing":
        selves = config.self_pairs
        alone = choose_neurons(scores, selves, generator)
        left, right = choose_pairs(scores, total - selves * len(wanted), generator)
        numbers = [count - selves for count in wanted.values()]
        chosen = [
            (torch.cat([alone, some_left]), torch.cat([alone, some_right]))
            for some_left, some_right in zip(torch.split(left, numbers), torch.split(right, numbers), strict=True)
        ]
    else:
        best = choose_neurons(scores, min(total, neurons), generator)
        # Where there are too few for both, both take the best.
        firsts = [0, wanted["out"]] if len(wanted) == 2 and total <= neurons else [0, 0]
        some = [best[first : first + count] for first, count in zip(firsts, wanted.values(), strict=False)]
        if any(len(taken) < count for taken, count in zip(some, wanted.values(), strict=True)):
            raise ValueError(f"{neurons} neurons are fewer than those to choose, {wanted}")
        chosen = [pair_each_with_each(taken, taken) for taken in some]
    pairs = dict(zip(wanted, chosen, strict=True))
    return pairs.get("action"), pairs.get("out")


@torch.no_grad()
def install(sync: Synchronisation, pairs: Pairs, readers: Sequence[nn.Linear]) -> list[Begun]:
    """Give a sync other pairs, in place, and say which weights began anew.

    A new pair begins as a fresh one does, without forgetting, and with no say: what was learned of the pair in its
    place means nothing now.

    Args:
        readers: the layers that read the sync, in their first inputs.
    """
    left, right = (neurons.to(sync.left) for neurons in pairs)
    assert left.shape == sync.left.shape == right.shape, "a sync keeps the number of its pairs"
    new_P = (left != sync.left) | (right != sync.right)
    sync.left.copy_(left)
    sync.right.copy_(right)
    begun: list[Begun] = [(sync.decay, new_P)]
    for reader in readers:
        new = torch.zeros_like(reader.weight, dtype=torch.bool)
        new[:, : len(new_P)] = new_P
        begun.append((reader.weight, new))
    for weight, where in begun:
        weight[where] = 0
    return begun


def select_and_freeze(
    model: CTM, activity: NeuronActivity, config: SelectionConfig, seed: int, readers: Sequence[nn.Linear] = ()
) -> list[Begun]:
    """Choose pairs by a rule and give them to a CTM's syncs; says which weights began anew.

    Args:
        readers: layers that read the out sync besides the model's own, in their first inputs.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    scores = RULES[config.rule](activity, generator)
    action, out = select_by(model.config, scores, generator, config.where)
    begun: list[Begun] = []
    if action is not None:
        begun += install(model.action_sync, action, [model.query])
    if out is not None:
        own = [model.readout] if model.energy is None else [model.readout, model.energy.hidden]
        begun += install(model.out_sync, out, [*own, *readers])
    return begun


def after_update(model: CTM, activity: NeuronActivity, config: SelectionConfig, done: int, seed: int) -> bool:
    """What a training loop calls after every update: true at the one after which pairs were chosen and frozen.

    An average of the weights has to begin anew then: the old ones are of other pairs. Where there are several
    processes, they must have observed the same, or share the first one's buffers.
    """
    if done != config.warmup_updates:
        return False
    select_and_freeze(model, activity, config, seed)
    return True


@contextmanager
def overheard(model: CTM) -> Iterator[list[Tensor]]:
    """The post-activations of every tick that a model thinks meanwhile, [B, D] each, without a gradient."""
    posts: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, post_BD: Tensor) -> None:
        posts.append(post_BD.detach())

    hook = model.neurons.register_forward_hook(keep)
    try:
        yield posts
    finally:
        hook.remove()
