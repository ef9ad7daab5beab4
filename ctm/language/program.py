"""A language model as a program: one row is a text so far, one thought is about the token that comes next.

    tokens, length ── Encode ──> keys, values, mask, base
    keys, values, mask, base, state ── Tick ──> next state, prediction (logits of the next token), certainty, attention

All rows share one window of W tokens, so that they tick together. A shorter text is padded, and the mask hides the
padding. `encode` also takes shorter windows (buckets), which is all it computes; its results have the full size.
"""

# Shapes: B rows, L tokens given, W tokens of the window, E features, V vocabulary, O out pairs, h heads.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.frozen import CertaintyReadout
from ctm.language.model import LanguageCTM
from ctm.model import CTM
from ctm.program import FrozenCore, Program, TensorSpec, specify_state

HIDDEN = -1e9
"""Added to the score of padding: its weight is exactly 0."""
SMALLEST_BUCKET = 16


def buckets(context: int) -> tuple[int, ...]:
    """Window sizes that `encode` is run at: doubling up to the whole context."""
    sizes, size = [], SMALLEST_BUCKET
    while size < context:
        sizes.append(size)
        size *= 2
    return (*sizes, context)


def specify(model: LanguageCTM) -> Program:
    """The tensors of a language model's program.

    Raises:
        ValueError: it is a GPT-2 alone, which does not think.
    """
    core, language = core_of(model), model.language
    config, window = core.config, language.context
    heads, per_head = config.heads, config.attention_width // config.heads
    return Program(
        inputs=(
            TensorSpec(
                name="tokens",
                shape=(window,),
                datatype="INT64",
                description="the text so far, then padding",
                minimum=0,
                maximum=language.vocabulary - 1,
                buckets=buckets(window),
            ),
            TensorSpec(
                name="length",
                shape=(),
                datatype="INT64",
                description="how many tokens count",
                minimum=1,
                maximum=window,
                length_of="tokens",
            ),
        ),
        context=(
            TensorSpec(name="keys", shape=(heads, window, per_head)),
            TensorSpec(name="values", shape=(heads, window, per_head)),
            TensorSpec(name="mask", shape=(window,), description="0 for a token, very low for padding"),
            TensorSpec(name="base", shape=(language.vocabulary,), description="GPT-2's part of the logits"),
        ),
        state=specify_state(config),
        outputs=(
            TensorSpec(name="prediction", shape=(language.vocabulary,), role="prediction", description="logits"),
            TensorSpec(name="certainty", shape=(), role="certainty", description="1 - normalised entropy"),
            TensorSpec(
                name="attention", shape=(heads, window), role="detail", description="weights over tokens, by head"
            ),
        ),
    )


def core_of(model: LanguageCTM) -> CTM:
    """The CTM of a language model; raises ValueError when it has none."""
    if model.core is None:
        raise ValueError("a GPT-2 alone does not think, so it makes no program")
    return model.core


class Encode(nn.Module):
    """All of a text that does not change over ticks."""

    def __init__(self, model: LanguageCTM) -> None:
        super().__init__()
        self.gpt2, self.core, self.window = model.gpt2, core_of(model), model.language.context
        with torch.no_grad():
            readout = self.core.readout
            # The bias of the thought's readout is no more a matter of ticks than GPT-2's features are.
            self.register_buffer("base_bias", model.alpha * readout.bias)
            self.register_buffer("base_share", 1 - model.alpha)

    base_bias: Tensor
    base_share: Tensor

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """INT64 [B, L], with L one of the buckets, and [B], to keys, values, mask and base."""
        read = self.gpt2(tokens)
        context = self.core.encode(read.placed.transpose(1, 2))
        padding = self.window - tokens.shape[1]
        keys, values = (F.pad(tensor, (0, 0, 0, padding)) for tensor in (context.keys, context.values))
        places_W = torch.arange(self.window, device=tokens.device)
        mask_BW = torch.where(places_W < length[:, None], 0.0, HIDDEN)
        # A row of a batch that nobody is in may have no token at all.
        last_B11 = (length - 1).clamp(min=0)[:, None, None]
        last_BE = read.features.gather(1, last_B11.expand(-1, 1, read.features.shape[-1])).squeeze(1)
        base_BV = F.linear(self.base_share * last_BE + self.base_bias, self.gpt2.head)
        return keys, values, mask_BW, base_BV


class Tick(nn.Module):
    """One tick of rows that may each be at a different tick."""

    @torch.no_grad()
    def __init__(self, model: LanguageCTM, tick_cap: int, *, convolve: bool = False) -> None:
        """Freeze a model; the arguments are as for a CTM's `Tick`."""
        super().__init__()
        core, head = core_of(model), model.gpt2.head.double()
        self.core = FrozenCore(core, tick_cap, convolve=convolve)
        # Readout, alpha and the head are linear: one product with the vocabulary.
        weight_VO = head @ core.readout.weight.double() * model.alpha.double()
        self.register_buffer("readout", weight_VO.float())
        self.certainty = CertaintyReadout((model.language.vocabulary,))

    readout: Tensor

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        base: Tensor,
        trace: Tensor,
        post: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify`: context, state; next state, outputs."""
        state, sync_out, attention = self.core(keys, values, mask, trace, post, action_sum, out_sum, ticks_done)
        prediction = base + F.linear(sync_out, self.readout)
        return *state, prediction, self.certainty(prediction), attention
