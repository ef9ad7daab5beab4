"""Neuron-level models (NLMs): each neuron's private map from its trace to its post-activation (paper eq. 3).

The weights are kept neuron-major, [D, in, out], so that all neurons are one batched matrix product over views.
"""

# Shapes: B rows, D neurons, M memory, H hidden, K inputs and N outputs of a layer.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.config import CTMConfig


class NeuronLayer(nn.Module):
    """One linear layer for each neuron, all divided by one learned temperature."""

    def __init__(self, neurons: int, inputs: int, outputs: int, *, layernorm: bool, dropout: float) -> None:
        super().__init__()
        bound = (inputs + outputs) ** -0.5
        self.weight = nn.Parameter(torch.empty(neurons, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(neurons, outputs))
        self.temperature = nn.Parameter(torch.ones(()))
        self.norm = nn.LayerNorm(inputs) if layernorm else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x_DBK: Tensor) -> Tensor:
        x_DBK = self.norm(self.dropout(x_DBK))
        # The weights are divided, not the product: less to do from K rows on, and in a frozen graph nothing at all.
        weight_DKN, bias_DN = self.weight / self.temperature, self.bias / self.temperature
        y_DBN: Tensor = torch.baddbmm(bias_DN[:, None], x_DBK, weight_DKN)
        return y_DBN


class NeuronLevelModels(nn.Module):
    """All neurons of a CTM: layers ending in a gate, the last of which leaves one number a neuron."""

    def __init__(self, config: CTMConfig) -> None:
        super().__init__()
        sizes = (
            [(config.memory, config.nlm_hidden), (config.nlm_hidden, 1)] if config.nlm_deep else [(config.memory, 1)]
        )
        dropout = config.dropout if config.nlm_dropout is None else config.nlm_dropout
        self.layers = nn.ModuleList(
            NeuronLayer(config.width, inputs, 2 * outputs, layernorm=config.nlm_layernorm, dropout=dropout)
            for inputs, outputs in sizes
        )

    def forward(self, trace_BDM: Tensor) -> Tensor:
        """Post-activations, [B, D]; unbounded."""
        x = trace_BDM.transpose(0, 1)
        for layer in self.layers:
            x = F.glu(layer(x), dim=-1)
        return x.squeeze(-1).transpose(0, 1).contiguous()
