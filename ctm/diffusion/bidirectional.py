"""A controller that lets every row of a thought go back, stay or go forward at each tick, and end by itself.

    history (a ring of C states) ── at ──> the present state ──> the core's next tick, for rows that go forward
                                               │ post, out sync
                                               v
    memory' = memory + sigmoid(a) * (tanh(b) - memory)          a, b = Linear([Norm(post, out sync), memory])
    moves   = Linear(memory')      back, stay, forward          gate = sigmoid(Linear(memory'))      the row is done

In evaluation the likeliest move is made. In training moves are drawn by the Gumbel maximum and learned straight through
(arXiv 1611.01144), and the gate by the loss of every tick weighed with the probability of ending there (arXiv
2107.05407). After the controller in the description "CTM-controlled diffusion"; see docs/design/bidirectional.md.
"""

# Shapes: B rows, C places in a history, R controller memory, D neurons, O out pairs, T ticks.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

BACK, STAY, FORWARD = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BidirectionalConfig:
    """How far back a thought may go, and how long it may take."""

    max_moves: int = 15
    """Moves of one thought; then it is done."""

    places: int = 4
    """[C] States that are kept, the present one included: a row can go back by one less."""

    memory_width: int = 32
    """[R] What the controller remembers itself, whichever way a row goes."""

    end_at: float = 0.7
    """A row ends when its gate is this or more; in (0, 1]."""

    temperature: float = 1.0
    """Of the softmax through which moves learn."""

    def __post_init__(self) -> None:
        for name, least in (("max_moves", 1), ("places", 2), ("memory_width", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"reasoning.{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 < self.end_at <= 1:
            raise ValueError(f"reasoning.end_at must be a number in (0, 1], got {self.end_at!r}")
        if not self.temperature > 0:
            raise ValueError(f"reasoning.temperature must be a number above 0, got {self.temperature!r}")


class Walk(NamedTuple):
    """Where every row is, and all that it can go back to."""

    history: tuple[Tensor, ...]
    """[B, C, ...] for each tensor of the core's state."""
    at: Tensor
    """[B] INT64: which place of the history holds the present state."""
    behind: Tensor
    """[B] INT64: how many states can be gone back to."""
    turned: Tensor
    """[B] INT64: how often the row has gone back."""
    moves: Tensor
    """[B] INT64: moves made."""
    ended: Tensor
    """[B] INT64: 1 once the row is done."""
    memory: Tensor
    """[B, R] the controller's; going back does not undo it."""


class BidirectionalReasoningController(nn.Module):
    """Decides, row by row, which way a thought goes on and when it ends."""

    def __init__(self, width: int, out_pairs: int, config: BidirectionalConfig) -> None:
        super().__init__()
        self.config = config
        seen, memory = width + out_pairs, config.memory_width
        self.norm = nn.LayerNorm(seen)
        self.look_at = nn.Linear(seen + memory, 2 * memory)
        self.move_logits = nn.Linear(memory, 3)
        self.gate = nn.Linear(memory, 1)
        self.detour_from = nn.Linear(memory, width)
        with torch.no_grad():
            # Fresh, it does as if it were not there: forward, and rarely done.
            self.move_logits.bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
            self.gate.bias.fill_(-2.0)
            nn.init.zeros_(self.detour_from.weight)
            nn.init.zeros_(self.detour_from.bias)

    def start(self, state: Sequence[Tensor], post_BD: Tensor, sync_BO: Tensor) -> Walk:
        """Rows that have made no move; the controller has looked at the start state."""
        rows, device = len(post_BD), post_BD.device
        history = tuple(value.unsqueeze(1).repeat(1, self.config.places, *(1,) * (value.dim() - 1)) for value in state)
        zero_B = torch.zeros(rows, dtype=torch.int64, device=device)
        memory = torch.zeros(rows, self.config.memory_width, dtype=post_BD.dtype, device=device)
        memory = self._remember(memory, post_BD, sync_BO)
        return Walk(history, zero_B, zero_B, zero_B, zero_B, zero_B, memory)

    def present(self, walk: Walk) -> tuple[Tensor, ...]:
        """The core's state where each row is."""
        return tuple(_take(values, walk.at) for values in walk.history)

    def detour(self, walk: Walk) -> Tensor:
        """What to add to the post-activations before the next tick, [B, D]; 0 for rows that have never gone back.

        A restored state would lead where it led before. This is how a row that comes again goes another way.
        """
        shift_BD: Tensor = self.detour_from(walk.memory).to(walk.memory.dtype)
        return torch.where((walk.turned > 0).unsqueeze(-1), shift_BD, 0.0)

    def logits(self, walk: Walk) -> Tensor:
        """Of back, stay and forward, [B, 3]; -inf where there is nothing to go back to."""
        logits_B3: Tensor = self.move_logits(walk.memory).float()
        barred_B3 = (walk.behind == 0).unsqueeze(-1) & (torch.arange(3, device=logits_B3.device) == BACK)
        return logits_B3.masked_fill(barred_B3, -torch.inf)

    def move(self, walk: Walk, after: Sequence[Tensor], noise: Tensor | None = None) -> tuple[Walk, Tensor]:
        """Go one move, and the move that each row made, [B]; a row that is done stays.

        Args:
            after: the core's state after a tick from the present one; taken by the rows that go forward.
            noise: Gumbel noise, [B, 3], to draw moves with and learn them; None makes the likeliest.
        """
        places, logits_B3 = self.config.places, self.logits(walk)
        noisy_B3 = logits_B3 if noise is None else logits_B3 + noise
        free_B = (walk.ended == 0) & (walk.moves < self.config.max_moves)
        move_B = torch.where(free_B, noisy_B3.argmax(-1), STAY)
        forward_B, back_B = move_B == FORWARD, move_B == BACK
        next_B, last_B = (walk.at + 1).remainder(places), (walk.at + places - 1).remainder(places)
        at_B = torch.where(forward_B, next_B, torch.where(back_B, last_B, walk.at))
        history = tuple(
            _put(values, next_B, value, forward_B) for values, value in zip(walk.history, after, strict=True)
        )
        if noise is not None:
            chances_B3 = (noisy_B3 / self.config.temperature).softmax(-1) * free_B.unsqueeze(-1)
            history = tuple(
                _learn_through(new, at_B, chances_B3, (_take(old, last_B), _take(old, walk.at), value))
                for new, old, value in zip(history, walk.history, after, strict=True)
            )
        behind_B = (walk.behind + forward_B.long() - back_B.long()).clamp(max=places - 1)
        moves_B, turned_B = walk.moves + free_B.long(), walk.turned + back_B.long()
        return Walk(history, at_B, behind_B, turned_B, moves_B, walk.ended, walk.memory), move_B

    def look(self, walk: Walk, post_BD: Tensor, sync_BO: Tensor, *, ends: bool = True) -> tuple[Walk, Tensor]:
        """Take in the present state, and the gate's probability that the row is done with it, [B].

        Args:
            ends: whether the gate may end rows; not while it learns, when every tick's loss counts.
        """
        done_B = walk.ended == 1
        # A row that is done looks no more: its memory stays, and so does its gate.
        memory = torch.where(done_B.unsqueeze(-1), walk.memory, self._remember(walk.memory, post_BD, sync_BO))
        gate_B = self.gate(memory).squeeze(-1).float().sigmoid()
        done_B = done_B | (walk.moves >= self.config.max_moves)
        if ends:
            done_B = done_B | (gate_B >= self.config.end_at)
        return walk._replace(memory=memory, ended=done_B.long()), gate_B

    def _remember(self, memory_BR: Tensor, post_BD: Tensor, sync_BO: Tensor) -> Tensor:
        seen = torch.cat([self.norm(torch.cat([post_BD, sync_BO], dim=-1)), memory_BR], dim=-1)
        change, value = self.look_at(seen).to(memory_BR.dtype).chunk(2, dim=-1)
        memory_BR = memory_BR + change.sigmoid() * (value.tanh() - memory_BR)
        return memory_BR


def gumbel_noise(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Noise whose addition makes the largest logit a draw from their softmax; -ln(-ln u).

    Without a generator it is drawn from torch's, on the CPU.
    """
    device = "cpu" if generator is None else generator.device
    # Away from 0 and 1, where it would be infinite.
    uniform = torch.rand(tuple(shape), generator=generator, device=device).clamp(1e-7, 1 - 1e-7)
    return -(-uniform.log()).log()


def ending_chances(gates_BT: Tensor) -> Tensor:
    """The probability that a row ends at each tick, [B, T]; rows sum to 1, as the last tick takes what is left."""
    going_on_BT = torch.cat([torch.ones_like(gates_BT[:, :1]), (1 - gates_BT[:, :-1]).cumprod(-1)], dim=-1)
    return going_on_BT * torch.cat([gates_BT[:, :-1], torch.ones_like(gates_BT[:, :1])], dim=-1)


def _take(values: Tensor, place_B: Tensor) -> Tensor:
    """Each row's entry at its own place, [B, ...]."""
    index = place_B.view(-1, *(1,) * (values.dim() - 1))
    return values.gather(1, index.expand(-1, 1, *values.shape[2:])).squeeze(1)


def _put(values: Tensor, place_B: Tensor, value: Tensor, which_B: Tensor) -> Tensor:
    """The same with each row's entry at its own place replaced, in the rows that are asked for."""
    here_BC = (torch.arange(values.shape[1], device=values.device) == place_B.unsqueeze(-1)) & which_B.unsqueeze(-1)
    return torch.where(here_BC.view(*here_BC.shape, *(1,) * (values.dim() - 2)), value.unsqueeze(1), values)


def _learn_through(values: Tensor, at_B: Tensor, chances_B3: Tensor, ways: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The same numbers, with the gradient that the mixture of the three ways would have had.

    What is added is exactly 0, so that going back restores a state to the bit in training too.
    """
    if not values.is_floating_point():
        return values
    zero_B3 = (chances_B3 - chances_B3.detach()).to(values.dtype)
    shape = (-1, *(1,) * (values.dim() - 2))
    nothing = sum(zero_B3[:, way].view(shape) * ways[way] for way in (BACK, STAY, FORWARD))
    return _put(values, at_B, _take(values, at_B) + nothing, torch.ones_like(at_B, dtype=torch.bool))
