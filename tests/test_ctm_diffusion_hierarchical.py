"""A CTM of two speeds: what changes when, that rows' counters give the numbers of plain loops, that both learn."""

import pytest
import torch
from exported_part import exported
from torch import Tensor
from torch.nn import functional as F

from ctm.attention import Attention
from ctm.certainty import certainty
from ctm.config import CTMConfig
from ctm.diffusion.hierarchical import HierarchicalConfig, HierarchicalCTM, HierarchicalState
from ctm.diffusion.hierarchical_program import Tick, specify, start_values
from ctm.program import Encode

SMALL = {
    "ticks": 12,
    "width": 14,
    "memory": 3,
    "attention_width": 8,
    "heads": 2,
    "out_neurons": 9,
    "action_neurons": 7,
    "out_dims": 6,
    "nlm_hidden": 2,
    "in_channels": 3,
    "input_shape": (3, 5),
}
LOW_TICKS = 3


def build(seed: int = 0, **settings) -> HierarchicalCTM:
    """A small model in evaluation mode, with every weight away from its start value."""
    torch.manual_seed(seed)
    hierarchy = HierarchicalConfig(low_ticks=LOW_TICKS, high_width=10, high_heads=2)
    model = HierarchicalCTM(CTMConfig(**{**SMALL, **settings}), hierarchy, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sync.decay"):
                parameter.uniform_(0, 2)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def inputs_of(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, *SMALL["input_shape"], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_low_level_changes_with_each_tick_and_the_high_level_with_each_kth():
    model = build()
    context, state, tables = model.encode(inputs_of(4)), model.start(4), model.tables(12)
    for tick in range(1, 13):
        before, (state, _) = state, model.tick(context, state, tables)
        ended = tick % LOW_TICKS == 0
        assert (before.post != state.post).any(dim=1).all(), f"every row's low level at tick {tick}"
        assert (before.high != state.high).any(dim=1).all() == ended, f"high level at tick {tick}"
        assert (before.out_sum != state.out_sum).any(dim=1).all() == ended, f"out sync at tick {tick}"
        if ended:
            assert torch.equal(state.action_sum, model.core.action_sync.products(state.post)), "begun anew"


class Oracle:
    """One row by two plain loops and lists, tokens shifted and every sync summed from its whole past."""

    def __init__(self, model: HierarchicalCTM, inputs: Tensor) -> None:
        self.model, self.core = model, model.core
        self.tokens = self.core.embed(self.core.features(inputs))

    def predictions(self, cycles: int) -> list[Tensor]:
        core, model = self.core, self.model
        trace, posts, highs, found = core.start_trace[None], [core.start_post[None]], [model.start_high[None]], []
        for _ in range(cycles):
            posts, reports = posts[-1:], []
            for _ in range(LOW_TICKS):
                query, shift = model.guide(highs[-1]).chunk(2, dim=-1)
                seen, _ = core.attention(
                    core.query(sync(core.action_sync, posts)) + query, core.attention.context(self.tokens)
                )
                pre = core.synapse(torch.cat([seen + shift, posts[-1]], dim=-1))
                trace = torch.cat([trace[:, :, 1:], pre[:, :, None]], dim=-1)
                posts.append(core.neurons(trace, posts[-1]))
                reports.append(model.report(posts[-1]))
                if len(reports) == LOW_TICKS:
                    high, level = highs[-1], model.high
                    looked, _ = level.attention(high, level.attention.context(torch.stack(reports, 1) + level.place))
                    high = level.attention_norm(high + looked)
                    highs.append(level.mlp_norm(high + level.mlp(high)))
                found.append(core.readout(sync(core.out_sync, highs)))
        return found


def sync(pairs, values: list[Tensor]) -> Tensor:
    """The definition: products of all values, each kept as often as there were values after it."""
    ages = range(len(values) - 1, -1, -1)
    total = sum(pairs.keep() ** age * pairs.products(value) for age, value in zip(ages, values, strict=True))
    return total / sum(pairs.keep() ** age for age in ages).sqrt()


@torch.no_grad()
def test_counters_of_rows_give_the_numbers_of_two_plain_loops():
    model, inputs = build(), inputs_of(3)
    expected = torch.stack([torch.cat(values) for values in zip(
        *(Oracle(model, inputs[row : row + 1]).predictions(4) for row in range(3)), strict=True
    )], dim=1)  # fmt: skip
    context, state, tables = model.encode(inputs), model.start(3), model.tables(12)
    found = []
    for _ in range(12):
        state, output = model.tick(context, state, tables)
        found.append(output.prediction)
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-4, rtol=1e-4)
    thoughts = model(inputs)
    torch.testing.assert_close(thoughts.predictions, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(thoughts.certainties, certainty(expected, (6,)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_at_different_ticks_think_as_they_would_alone():
    model, inputs = build(), inputs_of(5)
    tables, starts = model.tables(12), (0, 1, 2, 3, 7)
    alone, states, expected = model.ticks(model.encode(inputs), 5), [model.start(5)], [None]
    for _ in range(12):
        state, output = next(alone)
        states.append(state)
        expected.append(output.prediction)
    mixed = HierarchicalState(
        *(
            torch.stack([states[tick][field][row] for row, tick in enumerate(starts)])
            for field in range(len(HierarchicalState._fields))
        )
    )
    context = model.encode(inputs)
    for later in range(1, 6):
        mixed, output = model.tick(context, mixed, tables)
        for row, tick in enumerate(starts):
            torch.testing.assert_close(output.prediction[row], expected[tick + later][row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_row_does_not_feel_its_company():
    model, inputs = build(), inputs_of(4)
    other = torch.cat([inputs[:1], 100 * inputs_of(3, seed=9)])
    torch.testing.assert_close(model(inputs).predictions[0], model(other).predictions[0], atol=1e-6, rtol=1e-6)


def test_a_vector_added_to_every_token_moves_no_weight_of_attention():
    """Why the high level moves the query too, and why it need not move keys."""
    torch.manual_seed(0)
    attention = Attention(8, 2, 0.0)
    tokens, query, shift = torch.randn(3, 5, 8), torch.randn(3, 8), torch.randn(3, 1, 8)
    found, weights = attention(query, attention.context(tokens))
    shifted, weights_shifted = attention(query, attention.context(tokens + shift))
    torch.testing.assert_close(weights_shifted, weights)
    torch.testing.assert_close(shifted - found, (shift[:, 0] @ attention.value.weight.T) @ attention.out.weight.T)


@torch.no_grad()
def test_the_high_level_turns_where_the_low_level_looks():
    model = build()
    context, state, tables = model.encode(inputs_of(2)), model.start(2), model.tables(12)
    _, as_it_is = model.tick(context, state, tables)
    _, guided = model.tick(context, state._replace(high=-state.high), tables)
    assert (as_it_is.attention - guided.attention).abs().amax() > 1e-3


def test_gradients_reach_every_weight_of_both_levels():
    model = build(energy_hidden=3).train()
    thoughts = model(inputs_of(3))
    (thoughts.predictions.square().mean() + thoughts.energies.square().mean()).backward()
    # A bias that is added to every key changes no weight of attention.
    unmoved = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unmoved <= {"core.attention.key.bias", "high.attention.key.bias"}


def test_it_learns_a_parity_that_no_single_sign_tells():
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    parity = (signs < 0).long().cumsum(1) % 2
    torch.manual_seed(0)
    config = CTMConfig(
        ticks=4, width=24, memory=3, attention_width=16, heads=4, out_neurons=24, action_neurons=16, out_dims=8,
        prediction_shape=(4, 2), backbone="parity", positional="custom-rotational-1d", input_shape=(4,), nlm_hidden=2,
    )  # fmt: skip
    model = HierarchicalCTM(config, HierarchicalConfig(low_ticks=2, high_width=24, high_heads=2), seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        logits = model(signs).predictions[:, -1].view(-1, 4, 2)
        F.cross_entropy(logits.flatten(0, 1), parity.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        model.project_decays()
    right = (logits.argmax(-1) == parity).float().mean(0)
    assert right[1] > 0.9, f"the parity of two signs, chance is 0.5: {right.tolist()}"


@torch.no_grad()
@pytest.mark.parametrize("how", ["torch", "torch.jit", "onnx"])
def test_the_program_gives_the_models_numbers_for_any_number_of_rows(how, tmp_path):
    model = build(energy_hidden=3)
    program, tick, encode = specify(model), Tick(model, 12).eval(), Encode(model.core).eval()
    start = [value.unsqueeze(0) for value in start_values(model).values()]

    def rows_of(count: int) -> list[Tensor]:
        return [*encode(inputs_of(count)), *(value.repeat(count, *(1,) * (value.dim() - 1)) for value in start)]

    run = exported(how, tick, rows_of(2), program, tmp_path)
    arguments, thoughts = rows_of(5), model(inputs_of(5))
    context, state = arguments[:2], arguments[2:]
    for index in range(12):
        results = run(*context, *state)
        state, (prediction, sure, energy, attention) = results[: len(program.state)], results[len(program.state) :]
        torch.testing.assert_close(prediction, thoughts.predictions[:, index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sure, thoughts.certainties[:, index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(energy, thoughts.energies[:, index], atol=1e-4, rtol=1e-4)
    for spec, value in zip((*program.state, *program.outputs), results, strict=True):
        assert tuple(value.shape) == (5, *spec.shape), spec.name
    assert attention.shape[1:] == program.outputs[-1].shape


@pytest.mark.parametrize(
    ("settings", "core", "message"),
    [
        pytest.param({"low_ticks": 0}, {}, "low_ticks must be a whole number", id="no ticks"),
        pytest.param({"high_width": 9, "high_heads": 2}, {}, "high_heads must divide high_width 9", id="heads"),
        pytest.param({"low_ticks": 5}, {}, "low_ticks must divide ticks 12", id="cycles that do not end"),
        pytest.param(
            {"high_width": 8, "high_heads": 2},
            {"neuron_selection": "first-last", "out_neurons": 6, "action_neurons": 3},
            "high_width of at least 9, got 8",
            id="too narrow for its pairs",
        ),
    ],
)
def test_configurations_that_cannot_be_are_refused(settings, core, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalCTM(CTMConfig(**{**SMALL, **core}), HierarchicalConfig(**settings), seed=0)


def test_half_precision_leaves_the_state_whole():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        state, output = next(model.ticks(model.encode(inputs_of(2)), 2))
    assert {value.dtype for value in state} == {torch.float32, torch.int64}
    assert output.prediction.dtype == torch.float32
