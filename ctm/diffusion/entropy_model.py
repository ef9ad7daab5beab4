"""How surprising the next byte is: a small causal convolutional model of bytes, and the entropy of what it expects.

    h_0 = embedding of each byte        h_{i+1} = h_i + GELU(conv of width k, dilation 2^i, to the left only)
    p_t = softmax(head of h at t - 1)   H_t = -sum p_t ln p_t   in nats, of byte t before it is read

Nothing is known before the first byte: p_0 is uniform and H_0 = ln 256. Convolutions in place of a recurrence see
`field` bytes and no more, train in parallel, and export as plain graphs. After the entropy model of the Byte Latent
Transformer (arXiv 2412.09871, section 2.3).
"""

# Shapes: B rows, N bytes, C channels.

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyModelConfig:
    """How large the model of the next byte is."""

    width: int = 64
    """[C] Channels."""

    layers: int = 5
    """Convolutions; each doubles how far the last one looked."""

    kernel: int = 3
    """Bytes that one convolution brings together."""

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 2 if field.name == "kernel" else 1
            value = getattr(self, field.name)
            if type(value) is not int or value < least:
                raise ValueError(f"entropy.{field.name} must be a whole number of at least {least}, got {value!r}")

    @property
    def field(self) -> int:
        """How many bytes before a byte have a say in what is expected of it."""
        return 1 + (self.kernel - 1) * ((1 << self.layers) - 1)


class EntropyModel(nn.Module):
    """Expects each byte from those before it."""

    def __init__(self, config: EntropyModelConfig) -> None:
        super().__init__()
        self.reach = config.kernel - 1
        self.embedding = nn.Embedding(BYTES, config.width)
        self.layers = nn.ModuleList(
            nn.Conv1d(config.width, config.width, config.kernel, dilation=1 << depth) for depth in range(config.layers)
        )
        self.head = nn.Linear(config.width, BYTES)

    def forward(self, bytes_BN: Tensor) -> Tensor:
        """Logits of every byte before it is read, float32 [B, N, 256]; zeros for the first.

        In float32 under autocast too: where patches begin is decided by these, and must not differ between training
        in mixed precision and serving without.

        Args:
            bytes_BN: whole numbers in 0..255, of any integer type.
        """
        with torch.autocast(bytes_BN.device.type, enabled=False):
            x_BCN = self.embedding(bytes_BN.long()).transpose(1, 2)
            for depth, layer in enumerate(self.layers):
                x_BCN = x_BCN + F.gelu(layer(F.pad(x_BCN, (self.reach << depth, 0))))
            expected_BN256: Tensor = self.head(x_BCN.transpose(1, 2))
        # What follows the last byte is nobody's.
        return torch.cat([torch.zeros_like(expected_BN256[:, :1]), expected_BN256[:, :-1]], dim=1)


def entropies(logits_BN256: Tensor) -> Tensor:
    """Entropy of each distribution in nats, [B, N]: from 0, sure, to ln 256 = 5.545, clueless."""
    log_p = logits_BN256.float().log_softmax(-1)
    with torch.autocast(log_p.device.type, enabled=False):
        # A matrix product: ONNX Runtime's own sums differ in their last bit with a row's place in the batch.
        return F.linear(log_p.exp() * log_p, log_p.new_full((1, BYTES), -1.0)).squeeze(-1)


def next_byte_loss(logits_BN256: Tensor, bytes_BN: Tensor, lengths_B: Tensor | None = None) -> Tensor:
    """Cross-entropy of the bytes after the first, in nats a byte: scalar, the mean over all of them.

    The first byte is left out: it costs ln 256 whatever is learned.

    Args:
        logits_BN256: as `EntropyModel` makes them.
        lengths_B: how many bytes of each row count; None for all.
    """
    nats_BN = F.cross_entropy(logits_BN256.transpose(1, 2).float(), bytes_BN.long(), reduction="none")[:, 1:]
    if lengths_B is None:
        return nats_BN.mean()
    real_BN = torch.arange(1, bytes_BN.shape[1], device=bytes_BN.device) < lengths_B[:, None]
    return (nats_BN * real_BN).sum() / real_BN.sum().clamp(min=1)


def bits(nats: float) -> float:
    """The same information in bits: 8 of them for a byte nothing is known of."""
    return nats / math.log(2)


def check_length(rows: Tensor, length: int) -> None:
    """ValueError unless rows are [B, length, ...]."""
    # A tracer cannot ask, and has an example that fits. torch does not say of what type its question is.
    if not torch.jit.is_tracing() and rows.shape[1] != length:  # type: ignore[attr-defined, no-untyped-call]
        raise ValueError(f"rows must have {length} bytes, padded if need be, got {rows.shape[1]}")
