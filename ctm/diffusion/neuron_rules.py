"""Rules that say which neurons, or which pairs of them, are worth synchronising, from what they did in a warm-up.

    rule                    score (larger is better)
    bio-hebbian             what fires together: largest |correlation| with a target; of pairs, without targets
    bio-plasticity          mean |change| from tick to tick
    bio-competitive         mean share after lateral inhibition and a softmax
    bio-homeostatic         - |share of ticks it is active - TARGET_RATE|
    bio-evolutionary        place in an evolution by fitness mean |post| x deviation: an elite, then tournaments
    bio-stdp                of pairs: spikes of left before right, less half of those after (Song, Miller, Abbott 2000)
    bio-criticality         1 / (1 + |branching ratio - 1|), spikes that follow a spike (Beggs, Plenz 2003)
    bio-multi-objective     mean rank under hebbian, plasticity, homeostatic and criticality
    adaptive-random         a draw without replacement, the louder the likelier
    performance-guided      - correlation of loudness with the loss
    task-aware              share of the variance that the classes explain

Names are those of the description "CTM-controlled diffusion"; what they mean here, docs/design/neuron_selection.md.
"""

# Shapes: D neurons, R targets.

from collections.abc import Callable

import torch
from torch import Tensor

from ctm.diffusion.neuron_activity import NeuronActivity

Rule = Callable[[NeuronActivity, torch.Generator], Tensor]

TARGET_RATE = 0.1
"""Share of ticks that a healthy neuron is active."""
DEPRESSION = 0.5
"""What a spike in the wrong order takes, where one in the right order gives 1."""
ELITE = 0.25
"""Share of the neurons that need not win a tournament."""
TOURNAMENT = 3
"""Neurons in one."""
EXPLORATION = 0.1
"""Share of an adaptive draw that is blind."""


def hebbian(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    if activity.targets and activity["target_count"] > 0:
        return activity.target_correlation().abs().amax(-1)
    return activity.correlation().abs()


def plasticity(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    return activity["change"] / activity["changes"]


def competitive(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    return activity["wins"] / activity["count"]


def homeostatic(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    return -(activity["active"] / activity["count"] - TARGET_RATE).abs()


def evolutionary(activity: NeuronActivity, generator: torch.Generator) -> Tensor:
    fitness_D = activity["absolute"] / activity["count"] * activity.variance().sqrt()
    best = shuffled_order(fitness_D, generator).tolist()
    elite = max(1, int(ELITE * len(best)))
    ranking, rest = best[:elite], best[elite:]
    while rest:
        # `rest` is ordered by fitness, so the winner of a tournament is the first of those drawn.
        drawn = torch.randint(len(rest), (TOURNAMENT,), generator=generator)
        ranking.append(rest.pop(int(drawn.min())))
    scores_D = torch.empty_like(fitness_D)
    scores_D[torch.tensor(ranking, device=scores_D.device)] = -torch.arange(
        len(ranking), dtype=scores_D.dtype, device=scores_D.device
    )
    return scores_D


def stdp(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    timing_DD = activity["timing"]
    # By how often the two spike at all, or the busiest would win; one more, so that a single hit is not a habit.
    root_D = (activity["spikes"] + 1).sqrt()
    return (timing_DD - DEPRESSION * timing_DD.T) / torch.outer(root_D, root_D)


def criticality(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    ratio_D = activity["branches"] / activity["leading"].clamp(min=1e-12)
    return torch.where(activity["leading"] > 1e-12, 1 / (1 + (ratio_D - 1).abs()), 0.0)


def multi_objective(activity: NeuronActivity, generator: torch.Generator) -> Tensor:
    objectives = (hebbian, plasticity, homeostatic, criticality)
    return torch.stack([_ranks(of_neurons(rule(activity, generator))) for rule in objectives]).mean(0)


def _ranks(scores_D: Tensor) -> Tensor:
    """How many are worse; equals, such as all that are silent, share their ranks' mean."""
    ours, theirs = scores_D[:, None], scores_D[None]
    return (ours > theirs).double().sum(-1) + ((ours == theirs).double().sum(-1) - 1) / 2


def adaptive_random(activity: NeuronActivity, generator: torch.Generator) -> Tensor:
    loud_D = activity["absolute"]
    share_D = EXPLORATION / len(loud_D) + (1 - EXPLORATION) * loud_D / loud_D.sum().clamp(min=1e-12)
    # The largest of logarithms with Gumbel noise are a draw without replacement.
    uniform_D = torch.rand(len(loud_D), generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return share_D.log() - (-uniform_D.log()).log().to(loud_D.device)


def performance_guided(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    return -activity.loss_correlation()


def task_aware(activity: NeuronActivity, _: torch.Generator) -> Tensor:
    count, members_R = activity["target_count"], activity["target"]
    if (
        not count > 0
        or not torch.allclose(activity["target_square"], members_R)
        or not torch.isclose(members_R.sum(), count)
    ):
        raise ValueError("task-aware needs classes as targets, one-hot, got other numbers or none")
    mean_D = activity["post"] / activity["count"]
    means_DR = activity["target_product"] / members_R.clamp(min=1e-12)
    between_D = ((means_DR - mean_D[:, None]).square() * members_R / count).sum(-1)
    return torch.where(activity.variance() > 1e-12, between_D / activity.variance().clamp(min=1e-12), 0.0)


RULES: dict[str, Rule] = {
    "bio-hebbian": hebbian,
    "bio-plasticity": plasticity,
    "bio-competitive": competitive,
    "bio-homeostatic": homeostatic,
    "bio-evolutionary": evolutionary,
    "bio-stdp": stdp,
    "bio-criticality": criticality,
    "bio-multi-objective": multi_objective,
    "adaptive-random": adaptive_random,
    "performance-guided": performance_guided,
    "task-aware": task_aware,
}


def of_neurons(scores: Tensor) -> Tensor:
    """Scores of neurons, [D], from those or from scores of pairs, [D, D]: the mean over all partners, either order."""
    if scores.dim() == 1:
        return scores
    either = torch.maximum(scores, scores.T)
    return (either.sum(-1) - either.diagonal()) / (len(either) - 1)


def shuffled_order(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Indices from the best score down; equals in an order of chance."""
    shuffle = torch.randperm(len(scores), generator=generator).to(scores.device)
    return shuffle[scores[shuffle].argsort(descending=True, stable=True)]
