"""GPT-2 as the reader: tokens to features that a CTM attends to, and its own guess at the next token."""

# Shapes: B sequences, L tokens, E features, V vocabulary.

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctm.language.config import LanguageConfig

FILE = "model.safetensors"


class Gpt2Error(ValueError):
    """What should be a GPT-2 is none, or another one."""


class Read(NamedTuple):
    """What GPT-2 makes of tokens."""

    features: Tensor
    """[B, L, E] after its last norm; the head turns them into logits."""
    placed: Tensor
    """[B, L, E] the same with the embedding of each position added: what a CTM attends to."""


class Gpt2(nn.Module):
    """A GPT-2 whose head is tied to its token embedding."""

    def __init__(self, config: LanguageConfig) -> None:
        """Weights are drawn from torch's generator; `load_gpt2` gives it those of another."""
        super().__init__()
        # Here, because it takes seconds and most models have no use for it.
        from transformers import GPT2Config, GPT2Model

        self.transformer: Any = GPT2Model(
            GPT2Config(
                vocab_size=config.vocabulary,
                n_positions=config.context,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=0,
                eos_token_id=0,
                use_cache=False,
            )
        )
        self.frozen = config.frozen
        self.requires_grad_(not config.frozen)

    @property
    def head(self) -> Tensor:
        """[V, E] the token embedding."""
        weight: Tensor = self.transformer.wte.weight
        return weight

    def forward(self, tokens_BL: Tensor) -> Read:
        """Read from left to right: a token's features know nothing of later ones."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            features_BLE: Tensor = self.transformer(input_ids=tokens_BL).last_hidden_state
        places_LE = self.transformer.wpe.weight[: tokens_BL.shape[1]]
        return Read(features_BLE, features_BLE + places_LE)

    def train(self, mode: bool = True) -> "Gpt2":
        """A frozen one stays as it is: without dropout."""
        return super().train(mode and not self.frozen)


def load_gpt2(gpt2: Gpt2, config: LanguageConfig) -> None:
    """Give a GPT-2 the weights that `config.gpt2` names: a folder, or a repository on Hugging Face (safetensors only).

    Raises:
        Gpt2Error: it is no GPT-2, or one of other sizes; names both sides.
    """
    from transformers import AutoConfig, GPT2Model
    from transformers.utils import logging

    source = config.gpt2
    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise Gpt2Error(f"language.gpt2: the folder {source} holds no safetensors, expected {FILE} and config.json")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it has no types
    try:
        with _quiet():
            # Of another family's weights it would say so in its log, and go on with drawn ones.
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != "gpt2":
                raise Gpt2Error(f"language.gpt2: {source} holds a model of family {kind!r}, expected 'gpt2'")
            answer: Any = GPT2Model.from_pretrained(source, use_safetensors=True, output_loading_info=True)
            found, loaded = answer
    except Gpt2Error:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise Gpt2Error(f"language.gpt2: no GPT-2 at {source}: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise Gpt2Error(f"language.gpt2: {source} lacks {len(missing)} weights of a GPT-2, such as {missing[0]}")
    theirs = found.config
    sizes = {
        "vocabulary": theirs.vocab_size,
        "width": theirs.n_embd,
        "layers": theirs.n_layer,
        "heads": theirs.n_head,
    }
    for name, size in sizes.items():
        if (ours := getattr(config, name)) != size:
            raise Gpt2Error(f"language.{name} must be {size}, as the GPT-2 at {source} has it, got {ours}")
    if config.context > theirs.n_positions:
        raise Gpt2Error(
            f"language.context must be at most {theirs.n_positions}, what the GPT-2 at {source} reads, "
            f"got {config.context}"
        )
    weights = found.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"][: config.context]
    gpt2.transformer.load_state_dict(weights)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of loading."""
    before = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]
        else:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = before
