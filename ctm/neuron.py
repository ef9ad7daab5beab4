"""Neuron-level models (NLMs): each neuron's private map from its trace to its post-activation (paper eq. 3).

The weights are kept neuron-major, [D, in, out], so that all neurons are one batched matrix product over views.
"""

# Shapes: B rows, D neurons, M memory, H hidden, K inputs and N outputs of a layer, R rank of a change.

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.config import CTMConfig
from ctm.hyper import LowRankChange


class NeuronLayer(nn.Module):
    """One linear layer for each neuron, all divided by one learned temperature.

    Where there is a change, it is one for all neurons, made from the post-activations before this tick.
    """

    def __init__(self, neurons: int, inputs: int, outputs: int, *, layernorm: bool, dropout: float) -> None:
        super().__init__()
        bound = (inputs + outputs) ** -0.5
        self.weight = nn.Parameter(torch.empty(neurons, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(neurons, outputs))
        self.temperature = nn.Parameter(torch.ones(()))
        self.norm = nn.LayerNorm(inputs) if layernorm else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.change: LowRankChange | None = None

    def forward(self, x_DBK: Tensor, last_post_BD: Tensor) -> Tensor:
        x_DBK = self.norm(self.dropout(x_DBK))
        # The weights are divided, not the product: less to do from K rows on, and in a frozen graph nothing at all.
        weight_DKN, bias_DN = self.weight / self.temperature, self.bias / self.temperature
        y_DBN: Tensor = torch.baddbmm(bias_DN[:, None], x_DBK, weight_DKN)
        if self.change is not None:
            left_BKR, right_BNR = self.change(last_post_BD)
            # K x N is small here, unlike in a synapse model: N is 2.
            changed_BDN = x_DBK.transpose(0, 1) @ (left_BKR @ right_BNR.transpose(-1, -2))
            y_DBN = y_DBN + changed_BDN.transpose(0, 1) / self.temperature
        return y_DBN


class NeuronLevelModels(nn.Module):
    """All neurons of a CTM: layers ending in a gate, the last of which leaves one number a neuron."""

    def __init__(self, config: CTMConfig) -> None:
        super().__init__()
        sizes = [config.memory, config.nlm_hidden, 1] if config.nlm_deep else [config.memory, 1]
        dropout = config.dropout if config.nlm_dropout is None else config.nlm_dropout
        self.layers = nn.ModuleList(
            NeuronLayer(config.width, inputs, 2 * outputs, layernorm=config.nlm_layernorm, dropout=dropout)
            for inputs, outputs in pairwise(sizes)
        )
        if config.hyper_nlm_rank is not None:
            # Only the last layer changes, which leaves few numbers to be made.
            self.layers[-1].change = LowRankChange(
                config.width, (sizes[-2], 2), config.hyper_nlm_rank, gated=config.hyper_gate
            )

    def forward(self, trace_BDM: Tensor, last_post_BD: Tensor) -> Tensor:
        """Post-activations, [B, D]; unbounded.

        Args:
            last_post_BD: those before this tick; only a hyper layer looks at them.
        """
        x = trace_BDM.transpose(0, 1)
        for layer in self.layers:
            x = F.glu(layer(x, last_post_BD), dim=-1)
        return x.squeeze(-1).transpose(0, 1).contiguous()
