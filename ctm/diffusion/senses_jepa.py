"""JEPA on what a thought sees: from a stretch of the noisy image, tell how another stretch of the clean one looks.

    context = the tokens of one stretch of patches of the noisy image, as the thought attends to them
    target  = a slow copy of the senses on the clean image, at the least noise, of another stretch

So the senses learn to see through noise, and to put into a token what tells of its surroundings. Patches are those of
the grid: dynamic ones lie elsewhere in the clean image than in the noisy one, so that there is no pairing them.
"""

# Shapes: N rows, S side, P patches of the grid, L tokens, E width.

import torch
from torch import Tensor, nn

from ctm.diffusion.jepa import JEPAConfig, JEPAPredictor, SlowCopy, draw_views, jepa_loss
from ctm.diffusion.senses import Fed, Seen, Senses


class SensesJEPA(nn.Module):
    """The predictor and the slow copy; for training alone."""

    def __init__(self, senses: Senses, config: JEPAConfig) -> None:
        """Weights are drawn from torch's generator."""
        super().__init__()
        self.config, self.patches = config, senses.config.tokens
        self.predictor = JEPAPredictor(senses.config.width, self.patches, config)
        self.slow = SlowCopy(senses, config.decay)

    def forward(self, seen: Seen, clean: Tensor, label_N: Tensor, fed: Fed, uniform: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            seen: what the senses made of the noisy images.
            clean: [N, S, S]
            fed: nothing, as before the first reverse step.
            uniform: numbers in [0, 1), [N, DRAWS], which decide on the stretches.
        """
        tokens_NPE = seen.tokens[:, : self.patches]
        views = draw_views(uniform, torch.full_like(label_N, self.patches), self.patches, self.config)
        looked: Seen = self.slow(clean, torch.zeros_like(label_N), label_N, fed)
        told = self.predictor(tokens_NPE, views.context)
        return jepa_loss(told, looked.tokens[:, : self.patches], views.target)
