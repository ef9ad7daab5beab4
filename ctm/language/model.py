"""GPT-2 + CTM: GPT-2 reads the text so far, and a thought about it decides what comes next, one thought a token.

    tokens ── GPT-2 ──> features ─┬─ + positions ─> keys, values ──> ticks ──> out sync ── readout ─┐ alpha
                                  └──────────────────────────────────────────────────────────────> + ── head ──> logits
                                                                                         1 - alpha

The thought's logits and GPT-2's are mixed by a learned alpha. Both come from the same head, which is linear, so what is
mixed is what goes into it: one product with the vocabulary instead of two, and the same numbers.
"""

# Shapes: B sequences, L tokens, N = B * L thoughts, one for each token to come, T ticks, E features, V vocabulary,
# O out pairs.

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ctm.attention import MaskedContext
from ctm.certainty import certainty, most_certain
from ctm.config import CTMConfig
from ctm.language.config import LanguageConfig
from ctm.language.features import Gpt2
from ctm.model import CTM, RootBeta, State

Advance = Callable[[MaskedContext, State, Tensor, Tensor], tuple[State, Tensor]]


class TokenLoss(NamedTuple):
    """What to descend, and what the most certain tick of each thought did."""

    value: Tensor
    """Scalar."""
    right: Tensor
    """[N] whether the token that came was the likeliest."""
    tick: Tensor
    """[N] from 0."""


class TokenThoughts(NamedTuple):
    """How each thought fared at every tick, [N, T]; logits are not kept."""

    losses: Tensor
    """Nats."""
    certainties: Tensor
    right: Tensor
    confidences: Tensor
    """Probability of the likeliest token."""


class LanguageCTM(nn.Module):
    """A language model that thinks about every next token."""

    def __init__(self, config: CTMConfig, language: LanguageConfig, *, seed: int | None = None) -> None:
        """`config` is the CTM's over GPT-2's features; raises ValueError when the two do not fit."""
        super().__init__()
        language.check_core(config)
        self.config, self.language = config, language
        self.gpt2 = Gpt2(language)
        self.core = None if language.alone else CTM(config, seed=seed)
        self.skip = nn.Parameter(torch.tensor(float(language.skip_weight)), requires_grad=not language.alone)
        self.advance: Advance = self._advance

    @property
    def alpha(self) -> Tensor:
        """The thought's share of the logits; what is left is GPT-2's."""
        return torch.sigmoid(self.skip)

    def encode(self, tokens_BL: Tensor) -> tuple[Tensor, MaskedContext | None]:
        """GPT-2's features, [B, L, E], and what thoughts after each token may look at: it and those before."""
        read = self.gpt2(tokens_BL)
        if self.core is None:
            return read.features, None
        length = tokens_BL.shape[1]
        later_LL = torch.ones(length, length, dtype=torch.bool, device=tokens_BL.device).triu(1)
        context = self.core.encode(read.placed.transpose(1, 2))
        return read.features, MaskedContext(*context, hidden=later_LL)

    def mix(self, sync_NO: Tensor, features_NE: Tensor) -> Tensor:
        """What goes into the head, [N, E]."""
        assert self.core is not None, "GPT-2 alone has nothing to mix"
        thought_NE: Tensor = self.core.readout(sync_NO)
        return self.alpha * thought_NE + (1 - self.alpha) * features_NE

    def logits(self, mixed_NE: Tensor) -> Tensor:
        """[N, V], outside autocast's half precision."""
        return F.linear(mixed_NE, self.gpt2.head).float()

    def certainty(self, logits_NV: Tensor) -> Tensor:
        """1 - normalised entropy over the vocabulary, [N]."""
        return certainty(logits_NV, logits_NV.shape[-1:])

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor) -> TokenLoss:
        """Think after every token about the next one, and compare.

        The gradient is that of the loss at two ticks (three with `any_tick`), so only these are read with a gradient:
        which they are is found without one, and no other tick's logits are kept.
        """
        features_BLE, context = self.encode(tokens_BL)
        features_NE, targets_N = features_BLE.flatten(0, 1), targets_BL.flatten()
        if context is None:
            return self._final_loss(features_NE, targets_N)
        syncs = self._think(context, len(targets_N))
        if self.language.final_only:
            return self._final_loss(self.mix(syncs[-1], features_NE), targets_N)
        losses_NT, certainties_NT, right_NT, _ = self._judge(syncs, features_NE, targets_N)
        judged_N, sync_NTO = most_certain(certainties_NT), torch.stack(syncs, dim=1)

        def loss_at(tick_N: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(self.mix(_at(sync_NTO, tick_N), features_NE)), targets_N)

        value = (loss_at(losses_NT.argmin(-1)) + loss_at(judged_N)) / 2
        if share := self.language.any_tick:
            value = (1 - share) * value + share * loss_at(torch.randint_like(judged_N, len(syncs)))
        return TokenLoss(value, right_NT.gather(1, judged_N[:, None]).squeeze(1), judged_N)

    @torch.no_grad()
    def judge(self, tokens_BL: Tensor, targets_BL: Tensor) -> TokenThoughts:
        """How every thought fares at every tick."""
        features_BLE, context = self.encode(tokens_BL)
        features_NE, targets_N = features_BLE.flatten(0, 1), targets_BL.flatten()
        if context is None:
            return TokenThoughts(*(values[:, None] for values in self._read(self.logits(features_NE), targets_N)))
        return self._judge(self._think(context, len(targets_N)), features_NE, targets_N)

    def project_decays(self) -> None:
        """Move all decays back into [0, 15], in place; belongs after the optimiser's update."""
        if self.core is not None:
            self.core.project_decays()

    def _think(self, context: MaskedContext, thoughts: int) -> list[Tensor]:
        """The out sync after every tick, [N, O] each."""
        assert self.core is not None, "GPT-2 alone does not think"
        state, syncs = self.core.start(thoughts), []
        for root_beta in islice(self.core.root_betas(), self.config.ticks):
            state, sync = self._one(context, state, root_beta)
            syncs.append(sync)
        return syncs

    def _one(self, context: MaskedContext, state: State, root_beta: RootBeta) -> tuple[State, Tensor]:
        if self.language.checkpoint_ticks and torch.is_grad_enabled():
            advanced: tuple[State, Tensor] = checkpoint(self.advance, context, state, *root_beta, use_reentrant=False)
            return advanced
        return self.advance(context, state, *root_beta)

    def _advance(
        self, context: MaskedContext, state: State, root_beta_action: Tensor, root_beta_out: Tensor
    ) -> tuple[State, Tensor]:
        """What is compiled, and computed again."""
        assert self.core is not None, "GPT-2 alone does not tick"
        state, seen = self.core.advance(context, state, root_beta_action, root_beta_out)
        return state, seen.sync_out

    @torch.no_grad()
    def _judge(self, syncs: list[Tensor], features_NE: Tensor, targets_N: Tensor) -> TokenThoughts:
        by_tick = [self._read(self.logits(self.mix(sync, features_NE)), targets_N) for sync in syncs]
        return TokenThoughts(*(torch.stack(values, dim=1) for values in zip(*by_tick, strict=True)))

    def _read(self, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, certainty, whether right, and confidence of one tick, [N] each."""
        losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
        best_N, token_N = logits_NV.max(dim=-1)
        confidence_N = (best_N - logits_NV.logsumexp(dim=-1)).exp()
        return losses_N, self.certainty(logits_NV), (token_N == targets_N).float(), confidence_N

    def _final_loss(self, mixed_NE: Tensor, targets_N: Tensor) -> TokenLoss:
        """Of the one tick that is read."""
        logits_NV = self.logits(mixed_NE)
        right_N = (logits_NV.detach().argmax(-1) == targets_N).float()
        last_N = torch.full_like(targets_N, self.config.ticks - 1)
        return TokenLoss(F.cross_entropy(logits_NV, targets_N), right_N, last_N)


def _at(sync_NTO: Tensor, tick_N: Tensor) -> Tensor:
    """Each row's sync at a tick of its own, [N, O]."""
    return sync_NTO.gather(1, tick_N[:, None, None].expand(-1, 1, sync_NTO.shape[-1])).squeeze(1)
