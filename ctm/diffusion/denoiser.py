"""The denoiser: a transformer over the patches of a noisy image, which a thought guides wherever it may.

    tokens = patches(noisy) + strength patches(estimate of x_0)
    each layer: scale, shift and gate by level, class and strength guide; attention sees the thought's tokens besides
    strength = certainty of the thought, 0 for a row that abstains
    twice: the guided path is the base path, whose tokens go through the same layers again, now with the thought

A row of strength 0 gets the base prediction, exactly: the same network, level and class, but no thought. The layers
are modulated as in DiT (arXiv 2212.09748), beginning as the identity. What maps pixels, level, class and state to
tokens and back stays dense where WINA drops inputs of the layers: it has few inputs, or few rows.
"""

# Shapes: N rows, S side, P patches, E width, G thought tokens, Q = P, J = P + G, h heads, O out pairs, D neurons.

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.denoiser_attention import HIDDEN, attend
from ctm.diffusion.grid import cut, join, windows
from ctm.diffusion.level import level_code
from ctm.diffusion.linear_attention import LinearAttention
from ctm.diffusion.recompute import computed
from ctm.diffusion.tracker import place_code
from ctm.diffusion.wina import make_sparse


class Guide(NamedTuple):
    """What a thought tells the denoiser."""

    state: Tensor
    """[N, O + D] out sync and post-activations at the tick that answers."""
    estimate: Tensor
    """[N, S, S] the clean image that the thought expects."""
    strength: Tensor
    """[N] in [0, 1]; 0 is the base path."""


class Paths(NamedTuple):
    """What both paths predict, [N, S, S] each."""

    guided: Tensor
    """The base path's in rows without strength."""
    base: Tensor | None
    """None where the guided path does not begin with the base path."""


class Denoiser(nn.Module):
    """Predicts noise or velocity."""

    def __init__(self, config: DiffusionConfig, state_width: int) -> None:
        """Weights are drawn from torch's generator.

        Args:
            state_width: O + D of the thought; unused without guidance.
        """
        super().__init__()
        width, area = config.width, config.patch**2
        self.config = config
        self.patches = nn.Linear(config.window, width)
        self.place = nn.Parameter(place_code(width, config.across, config.across, like=torch.empty(0)))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.classes, width)
        sparsities = (None,) * config.layers if config.wina is None else config.wina.of_layers(config.layers)
        self.layers = nn.ModuleList(_Layer(config, sparsity) for sparsity in sparsities)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 2 * width)
        self.pixels = nn.Linear(width, area)
        for linear in (self.last, self.pixels):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if config.guided:
            self.estimate = nn.Linear(area, width)
            self.state = nn.Sequential(nn.LayerNorm(state_width), nn.Linear(state_width, width), nn.SiLU())
            self.guidance = nn.Linear(width, width, bias=False)
            self.thought_tokens = nn.Linear(width, config.thought_tokens * width)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.last.weight.device

    @property
    def state_in(self) -> nn.Linear:
        """What reads a thought's state, its out sync first."""
        linear = self.state[1]
        assert isinstance(linear, nn.Linear), "a state is normalised, then mapped"
        return linear

    def forward(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, guide: Guide | None = None) -> Tensor:
        """The prediction for images of [N, S, S], of the same shape; None is the base path for every row."""
        if guide is not None:
            return self.paths(noisy, level_N, label_N, guide).guided
        tokens, told_NE = self._begin(noisy, level_N, label_N)
        condition_NE = F.silu(told_NE)
        for _ in range(2 if self.config.twice and not self.config.guided else 1):
            tokens = self._through(tokens, condition_NE, None)
        return self._read(tokens, condition_NE)

    def paths(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, guide: Guide) -> Paths:
        """The guided prediction, and the base path's where it was on the way."""
        tokens, told_NE = self._begin(noisy, level_N, label_N)
        base: Tensor | None = None
        if self.config.twice:
            tokens = self._through(tokens, F.silu(told_NE), None)
            base = self._read(tokens, F.silu(told_NE))
        strength_N1 = guide.strength.unsqueeze(-1)
        tokens = tokens + strength_N1.unsqueeze(-1) * self.estimate(cut(guide.estimate, self.config.patch))
        state_NE = strength_N1 * self.state(guide.state)
        extra_NGE = self.thought_tokens(state_NE).unflatten(-1, (-1, self.config.width))
        hidden_N1 = torch.where(strength_N1 > 0, 0.0, HIDDEN)
        thought = _Thought(extra_NGE, hidden_N1.expand(-1, self.config.thought_tokens))
        condition_NE = F.silu(told_NE + self.guidance(state_NE))
        guided = self._read(self._through(tokens, condition_NE, thought), condition_NE)
        if base is not None:
            guided = torch.where(strength_N1.unsqueeze(-1) > 0, guided, base)
        return Paths(guided, base)

    def _begin(self, noisy: Tensor, level_N: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, [N, P, E], and what all layers are told, [N, E]."""
        told_NE = self.level(level_code(level_N, self.config.width)) + self.label(label_N)
        return self.patches(windows(noisy, self.config.patch, self.config.margin)) + self.place, told_NE

    def _through(self, tokens: Tensor, condition_NE: Tensor, thought: "_Thought | None") -> Tensor:
        for layer in self.layers:
            tokens = computed(layer, self.config.checkpoint_gradients, tokens, condition_NE, thought)
        return tokens

    def _read(self, tokens: Tensor, condition_NE: Tensor) -> Tensor:
        shift, scale = self.last(condition_NE).unsqueeze(1).chunk(2, dim=-1)
        return join(self.pixels(_modulate(self.norm(tokens), shift, scale)), self.config.side, self.config.patch)


class _Thought(NamedTuple):
    tokens: Tensor
    """[N, G, E]"""
    hidden: Tensor
    """[N, G] added to the scores of these tokens."""


class _Layer(nn.Module):
    def __init__(self, config: DiffusionConfig, sparsity: float | None) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.attention: LinearAttention | None = None
        if config.linear_attention is None:
            self.query = nn.Linear(width, width)
            self.key_value = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, width)
        else:
            self.attention = LinearAttention(width, config.heads, config.linear_attention)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.weight_sparsity: float | None = None
        if sparsity is not None:
            assert config.wina is not None, "what is sparse is so by WINA"
            make_sparse(self, sparsity)
            self.weight_sparsity = sparsity if config.wina.attention else None
        # It tells level, class and thought: made after what is sparse, it stays dense.
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor, thought: _Thought | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        tokens = tokens + gate_a * self._attend(_modulate(self.norm_attention(tokens), shift_a, scale_a), thought)
        moved: Tensor = tokens + gate_m * self.mlp(_modulate(self.norm_mlp(tokens), shift_m, scale_m))
        return moved

    def _attend(self, tokens: Tensor, thought: _Thought | None) -> Tensor:
        seen, added_NJ = tokens, None
        if thought is not None:
            seen = torch.cat([tokens, thought.tokens], dim=1)
            added_NJ = torch.cat([torch.zeros_like(tokens[..., 0]), thought.hidden.to(tokens)], dim=1)
        if self.attention is not None:
            linearly: Tensor = self.attention(tokens, seen, None if added_NJ is None else added_NJ < 0)
            return linearly
        query, (key, value) = self.query(tokens), self.key_value(seen).chunk(2, dim=-1)
        out: Tensor = self.out(attend(query, key, value, self.heads, added_NJ, self.weight_sparsity))
        return out


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
