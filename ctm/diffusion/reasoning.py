"""A CTM whose rows go back, stay or go forward as a controller decides, one move a tick, as a model and as a program.

context, walk ── tick ──> next walk, prediction and certainty of where the row now is, done
"""

# Shapes: B rows, C places in a history, T ticks, A / O action / out pairs.

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm import program
from ctm.attention import Context, MaskedContext
from ctm.certainty import certainty
from ctm.diffusion.bidirectional import (
    BidirectionalConfig,
    BidirectionalReasoningController,
    Walk,
    ending_chances,
    gumbel_noise,
)
from ctm.diffusion.root_betas import RootBetas, root_betas
from ctm.model import CTM, State
from ctm.program import Program, TensorSpec

DONE = TensorSpec(name="done", shape=(), role="done", description="1 where the row has ended by itself, else 0")
"""What a tick of the program says besides a CTM's."""


class MoveOutput(NamedTuple):
    """What can be seen of one move."""

    prediction: Tensor
    """[B, C] logits, of the state that the row is now at."""
    certainty: Tensor
    """[B]"""
    done: Tensor
    """[B] 1.0 where the row has ended, else 0.0."""
    gate: Tensor
    """[B] probability that it should."""
    move: Tensor
    """[B] what it did: 0 back, 1 stay, 2 forward."""
    attention: Tensor
    """[B, h, L] of the tick that was computed, whether or not it was taken."""
    sync_out: Tensor
    """[B, O]"""
    post: Tensor
    """[B, D] post-activations, of the state that the row is now at."""


class Moves(NamedTuple):
    """What a batch of inputs led to, move by move; each [B, T, ...]."""

    predictions: Tensor
    certainties: Tensor
    done: Tensor
    gates: Tensor
    moves: Tensor
    ending: Tensor
    """Probability that a row ends there, to weigh the ticks' losses with."""


class ReasoningCTM(nn.Module):
    """A CTM and the controller that walks it."""

    def __init__(self, core: CTM, config: BidirectionalConfig) -> None:
        super().__init__()
        self.core = core
        self.controller = BidirectionalReasoningController(core.config.width, core.config.out_pairs, config)

    def encode(self, inputs: Tensor) -> Context:
        """All that does not change over ticks, computed once."""
        return self.core.encode(inputs)

    def start(self, rows: int) -> Walk:
        """Rows that have not moved."""
        state = self.core.start(rows)
        ticks_done = torch.zeros(rows, dtype=torch.int64, device=state.post.device)
        # Of one product each, so the sums are what they are divided to.
        return self.controller.start((*state, ticks_done), state.post, state.out_sum)

    def tables(self) -> RootBetas:
        """What `tick` divides by, in the graph, by the ticks that lead to a row's state: [moves + 1, A] and [.., O]."""
        terms = self.controller.config.max_moves + 1
        return RootBetas(root_betas(self.core.action_sync, terms), root_betas(self.core.out_sync, terms))

    def frozen_tables(self) -> RootBetas:
        """The same, computed in float64 and out of the graph."""
        terms, core = self.controller.config.max_moves + 1, self.core
        return RootBetas(core.action_sync.root_betas(terms, first=1), core.out_sync.root_betas(terms, first=1))

    def tick(
        self, context: Context | MaskedContext, walk: Walk, tables: RootBetas, noise: Tensor | None = None
    ) -> tuple[Walk, MoveOutput]:
        """One move of all rows, a pure function; with noise, [B, 3], moves are drawn and the gate ends nobody."""
        core, controller = self.core, self.controller
        *values, ticks_done = controller.present(walk)
        state = State(*values)
        state = state._replace(post=state.post + controller.detour(walk))
        root_beta = F.embedding(ticks_done, tables.action)
        # Nobody reads this tick's out sync: what a row ends up with is read below, wherever it came from.
        after, seen = core.advance(context, state, root_beta, torch.ones_like(tables.out[0]))
        walk, move = controller.move(walk, (*after, ticks_done + 1), noise)

        *values, ticks_done = controller.present(walk)
        state = State(*values)
        sync_out = state.out_sum / F.embedding(ticks_done, tables.out)
        walk, gate = controller.look(walk, state.post, sync_out, ends=noise is None)
        prediction = core.readout(sync_out).to(state.post.dtype)
        sure = certainty(prediction, core.config.answer_shape)
        done = walk.ended.to(state.post.dtype)
        return walk, MoveOutput(prediction, sure, done, gate, move, seen.attention, sync_out, state.post)

    def forward(self, inputs: Tensor, *, generator: torch.Generator | None = None) -> Moves:
        """All the moves that a row may make.

        Args:
            generator: draws moves, to learn them; None makes the likeliest, and rows stay where they end.
        """
        context, walk, tables = self.encode(inputs), self.start(len(inputs)), self.tables()
        outputs = []
        for _ in range(self.controller.config.max_moves):
            noise = None
            if generator is not None:
                noise = gumbel_noise((len(inputs), 3), generator).to(inputs.device)
            walk, output = self.tick(context, walk, tables, noise)
            outputs.append(output)
        stacked = MoveOutput(*(torch.stack(values, dim=1) for values in zip(*outputs, strict=True)))
        ending = ending_chances(stacked.gate)
        return Moves(stacked.prediction, stacked.certainty, stacked.done, stacked.gate, stacked.move, ending)

    def project_decays(self) -> None:
        """Move all decays back into [0, 15], in place; belongs after the optimiser's update."""
        self.core.project_decays()


def specify(model: ReasoningCTM, input_name: str = "input") -> Program:
    """The tensors of a model's program; `done` is 1 where the program says that a row has ended.

    Raises:
        ValueError: the configuration does not know the shape of an input.
    """
    plain = program.specify(model.core, input_name)
    prediction, sure, *_, attention = plain.outputs
    return Program(
        inputs=plain.inputs,
        context=plain.context,
        state=specify_state(model),
        outputs=(prediction, sure, DONE, attention),
    )


def specify_state(model: ReasoningCTM) -> tuple[TensorSpec, ...]:
    """What a thought carries from move to move."""
    config = model.controller.config
    history = [
        TensorSpec(name=f"past_{spec.name}", shape=(config.places, *spec.shape), datatype=spec.datatype)
        for spec in program.specify_state(model.core.config)
    ]
    counters = [
        TensorSpec(name=name, shape=(), datatype="INT64", description=description)
        for name, description in (
            ("at", "the place of the past that is the present"),
            ("behind", "states that can be gone back to"),
            ("turned", "how often the row has gone back"),
            ("ticks_done", "moves made"),
            ("ended", "1 once the row is done"),
        )
    ]
    memory = TensorSpec(name="memory", shape=(config.memory_width,), description="the controller's")
    return *history, *counters, memory


@torch.no_grad()
def start_values(model: ReasoningCTM) -> dict[str, Tensor]:
    """The start value of every state tensor by its name, without the row dimension."""
    values = flatten(model.start(1))
    return {spec.name: value[0].clone() for spec, value in zip(specify_state(model), values, strict=True)}


def flatten(walk: Walk) -> tuple[Tensor, ...]:
    """A walk as the program's state tensors, in order."""
    return *walk.history, *walk[1:]


class Tick(nn.Module):
    """One move of rows that may each be anywhere in their thoughts."""

    action: Tensor
    out: Tensor

    def __init__(self, model: ReasoningCTM) -> None:
        super().__init__()
        self.model = model
        tables = model.frozen_tables()
        self.register_buffer("action", tables.action)
        self.register_buffer("out", tables.out)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        past_trace: Tensor,
        past_post: Tensor,
        past_action_sum: Tensor,
        past_out_sum: Tensor,
        past_ticks_done: Tensor,
        at: Tensor,
        behind: Tensor,
        turned: Tensor,
        ticks_done: Tensor,
        ended: Tensor,
        memory: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify`: context, state; next state, outputs."""
        past = (past_trace, past_post, past_action_sum, past_out_sum, past_ticks_done)
        walk = Walk(past, at, behind, turned, ticks_done, ended, memory)
        walk, seen = self.model.tick(Context(keys, values), walk, RootBetas(self.action, self.out))
        prediction = torch.unflatten(seen.prediction, -1, self.model.core.config.answer_shape)
        return *flatten(walk), prediction, seen.certainty, seen.done, seen.attention
