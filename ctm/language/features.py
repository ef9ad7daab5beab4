"""GPT-2 as the reader: tokens to features that a CTM attends to, and its own guess at the next token."""

# Shapes: B sequences, L tokens, E features, V vocabulary.

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctm.language.config import LanguageConfig

FILE = "model.safetensors"
_SAME = (
    "activation_function",
    "n_inner",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "add_cross_attention",
    "tie_word_embeddings",
)
"""Settings of `transformers` by which the same weights make other numbers; ours have their usual values."""


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
        self.train()

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
        Gpt2Error: it is no GPT-2, one of other sizes, or one that computes otherwise; names both sides.
    """
    found = _find(config.gpt2)
    _check_sizes(found.config, config)
    ours = gpt2.transformer.config
    for name in _SAME:
        if (theirs := _setting(found.config, name)) != (expected := _setting(ours, name)):
            raise Gpt2Error(
                f"language.gpt2: the GPT-2 at {config.gpt2} has {name} = {theirs!r}, only {expected!r} is read"
            )
    weights = found.state_dict()
    weights["wpe.weight"] = weights["wpe.weight"][: config.context]
    gpt2.transformer.load_state_dict(weights)


def _find(source: str) -> Any:
    """The GPT-2 at a folder or in a repository, as `transformers` has it."""
    from transformers import AutoConfig, GPT2Model
    from transformers.utils import logging

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
    # Damaged files raise errors of many libraries, and not all of them have one kind of their own.
    except Exception as error:
        raise Gpt2Error(f"language.gpt2: no GPT-2 at {source}: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise Gpt2Error(f"language.gpt2: {source} lacks {len(missing)} weights of a GPT-2, such as {missing[0]}")
    return found


def _check_sizes(theirs: Any, config: LanguageConfig) -> None:
    sizes = {
        "vocabulary": theirs.vocab_size,
        "width": theirs.n_embd,
        "layers": theirs.n_layer,
        "heads": theirs.n_head,
    }
    for name, size in sizes.items():
        if (ours := getattr(config, name)) != size:
            raise Gpt2Error(f"language.{name} must be {size}, as the GPT-2 at {config.gpt2} has it, got {ours}")
    if config.context > theirs.n_positions:
        raise Gpt2Error(
            f"language.context must be at most {theirs.n_positions}, what the GPT-2 at {config.gpt2} reads, "
            f"got {config.context}"
        )


def _setting(config: Any, name: str) -> Any:
    value = getattr(config, name)
    return 4 * config.n_embd if name == "n_inner" and value is None else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of loading."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
