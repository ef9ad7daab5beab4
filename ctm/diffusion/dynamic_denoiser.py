"""The denoiser over dynamic patches: its tokens are what a patcher finds in the noisy image's own bytes.

    bytes of the noisy image ── entropy model, cut ──> which pixels make a patch
    token  = W mean over its pixels of GELU(w x + strength w' (estimate of x_0) + place) + length
    pixel  = w'' GELU(W' token + w''' x + place)          layers between as in `denoiser`, attention within a row

Where patches begin is read off the noisy image, which a sampler has at every step as training does; no template is
needed. Noise cuts short patches and calm long ones, so a sample takes the fewer tokens the cleaner it is. In training
the patches of all rows are flattened into one batch, and with them what a thought tells; in evaluation they are
padded, in numbers the same. After parallel diffusion over dynamic patches in "CTM-controlled diffusion".
"""

# Shapes: N rows, S side, B = S * S bytes, M room for patches, E width, G thought tokens; ... is flattened or N, M.

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.denoiser import Guide, Paths
from ctm.diffusion.entropy_model import EntropyModel, entropies, next_byte_loss
from ctm.diffusion.image_bytes import image_bytes
from ctm.diffusion.level import level_code
from ctm.diffusion.patches import cut
from ctm.diffusion.ragged import Flattened, Layout, Padded
from ctm.diffusion.recompute import computed

_HIDDEN = -1e9
"""Added to a score: its weight is exactly 0."""


class DynamicDenoiser(nn.Module):
    """Predicts noise or velocity; called as a `Denoiser` is."""

    def __init__(self, config: DiffusionConfig, state_width: int) -> None:
        """Weights are drawn from torch's generator; the arguments are as for a `Denoiser`."""
        super().__init__()
        assert config.dynamic is not None, "dynamic patches have their settings"
        width, patcher = config.width, config.dynamic
        self.config, self.patcher = config, patcher
        self.flattens = True
        """Whether training flattens rows; false pads them as evaluation does."""
        self.entropy_model = EntropyModel(patcher.entropy)
        self.value = nn.Linear(1, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.side**2, width))
        self.token = nn.Linear(width, width)
        self.length = nn.Embedding(patcher.max_length + 1, width)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.classes, width)
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 2 * width)
        self.back = nn.Linear(width, width)
        self.value_back = nn.Linear(1, width, bias=False)
        self.place_back = nn.Parameter(0.02 * torch.randn(config.side**2, width))
        self.pixel = nn.Linear(width, 1)
        for linear in (self.last, self.pixel):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if config.guided:
            self.estimate = nn.Linear(1, width, bias=False)
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
        layout = self.lay_out(noisy)
        value_NB1 = noisy.flatten(1).unsqueeze(-1)
        known_NBE = self.value(value_NB1) + self.place
        told_NE = self.level(level_code(level_N, self.config.width)) + self.label(label_N)
        hidden_NM = torch.zeros_like(layout.hidden, dtype=noisy.dtype).masked_fill(layout.hidden, _HIDDEN)
        beside = _Beside(None, hidden_NM)
        if guide is not None:
            strength_N1 = guide.strength.unsqueeze(-1)
            known_NBE = known_NBE + strength_N1.unsqueeze(-1) * self.estimate(guide.estimate.flatten(1).unsqueeze(-1))
            state_NE = strength_N1 * self.state(guide.state)
            told_NE = told_NE + self.guidance(state_NE)
            extra_NGE = self.thought_tokens(state_NE).unflatten(-1, (-1, self.config.width))
            unseen_NG = torch.where(strength_N1 > 0, 0.0, _HIDDEN).expand(-1, self.config.thought_tokens)
            beside = _Beside(extra_NGE, torch.cat([hidden_NM, unseen_NG.to(hidden_NM)], dim=1))
        tokens = self.token(layout.pool(F.gelu(known_NBE)).to(told_NE)) + self.length(layout.lengths)
        condition_NE = F.silu(told_NE)
        for layer in self.layers:
            tokens = computed(layer, self.config.checkpoint_gradients, tokens, condition_NE, layout, beside)
        shift, scale = layout.told(self.last(condition_NE)).chunk(2, dim=-1)
        said_NBE = layout.spread(self.back(_modulate(self.norm(tokens), shift, scale)))
        pixel_NB1 = self.pixel(F.gelu(said_NBE + self.value_back(value_NB1) + self.place_back))
        return torch.unflatten(pixel_NB1.squeeze(-1), -1, noisy.shape[1:])

    def paths(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, guide: Guide) -> Paths:
        """The guided prediction; see `Denoiser`."""
        return Paths(self(noisy, level_N, label_N, guide), None)

    def lay_out(self, noisy: Tensor) -> Layout:
        """The patches of [N, S, S], in the form that is wanted."""
        patches = cut(entropies(self.entropy_model(image_bytes(noisy)).detach()), self.patcher)
        return Flattened(patches) if self.training and self.flattens else Padded(patches)

    def next_byte_loss(self, noisy: Tensor) -> Tensor:
        """What the entropy model learns by; scalar."""
        bytes_NB = image_bytes(noisy)
        return next_byte_loss(self.entropy_model(bytes_NB), bytes_NB)


class _Beside(NamedTuple):
    tokens: Tensor | None
    """[N, G, E] what a thought adds to what attention sees."""
    hidden: Tensor
    """[N, M + G] added to scores."""


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition_NE: Tensor, layout: Layout, beside: _Beside) -> Tensor:
        told = layout.told(self.modulation(condition_NE))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = told.chunk(6, dim=-1)
        found = self._attend(_modulate(self.norm_attention(tokens), shift_a, scale_a), layout, beside)
        tokens = tokens + gate_a * found
        moved: Tensor = tokens + gate_m * self.mlp(_modulate(self.norm_mlp(tokens), shift_m, scale_m))
        return moved

    def _attend(self, tokens: Tensor, layout: Layout, beside: _Beside) -> Tensor:
        query, seen = layout.rows(self.query(tokens)), layout.rows(self.key_value(tokens))
        if beside.tokens is not None:
            seen = torch.cat([seen, self.key_value(beside.tokens)], dim=1)
        key, value = seen.chunk(2, dim=-1)
        query, key, value = (torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask = beside.hidden.to(query)[:, None, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(layout.back(found.transpose(1, 2).flatten(2)))
        return out


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
