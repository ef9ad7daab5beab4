"""A frozen program gives the model's numbers, whatever the model is made of and whatever tick its rows are at."""

from typing import Any

import pytest
import torch
from tiny_bundle import tiny_inputs, tiny_model
from torch import Tensor

from ctm.model import CTM
from ctm.program import Encode, Tick, pack_context, pack_state, specify, start_values

MODELS = [
    pytest.param({}, id="tiny"),
    pytest.param({"synapse_depth": 3, "energy_hidden": 4}, id="U-Net and energy head"),
    pytest.param({"nlm_layernorm": True}, id="normalised neurons"),
    pytest.param({"nlm_deep": False, "memory": 1}, id="shallow neurons without memory"),
    pytest.param({"synapse_depth": 3, "hyper_layers": "bottleneck", "hyper_rank": 3}, id="hyper bottleneck"),
    pytest.param(
        {"synapse_depth": 3, "hyper_layers": "all", "hyper_rank": 1, "hyper_nlm_rank": 1, "hyper_gate": True},
        id="hyper synapses and neurons of rank 1, gated",
    ),
    pytest.param({"hyper_nlm_rank": 2, "nlm_layernorm": True}, id="hyper neurons, normalised"),
    pytest.param({"hyper_nlm_rank": 2, "nlm_deep": False}, id="hyper neurons, shallow"),
    pytest.param({"neuron_selection": "first-last", "out_neurons": 5, "action_neurons": 4}, id="first-last"),
    pytest.param({"neuron_selection": "random", "out_neurons": 5, "action_neurons": 4}, id="random"),
    pytest.param({"out_dims": 12, "prediction_shape": (4, 3)}, id="structured prediction"),
    pytest.param(
        {
            "backbone": "digit",
            "positional": "learnable-fourier",
            "in_channels": 1,
            "input_shape": (1, 12, 8),
            "input_mean": (0.3,),
            "input_std": (0.4,),
        },
        id="convolutions with positions",
    ),
    pytest.param(
        {"backbone": "parity", "positional": "custom-rotational-1d", "input_shape": (9,)}, id="parity with positions"
    ),
]


@pytest.mark.parametrize("convolve", [False, True], ids=["matmul", "convolution"])
@pytest.mark.parametrize("overrides", MODELS)
def test_every_tick_gives_the_models_numbers(overrides: dict[str, Any], convolve: bool) -> None:
    model = tiny_model(**overrides)
    inputs = tiny_inputs(model, rows=5)
    program, encode, tick = specify(model), Encode(model).eval(), Tick(model, 8, convolve=convolve).eval()
    with torch.no_grad():
        thoughts = model(inputs, track=True)
        context, state = encode(inputs), _start(model, rows=5)
        torch.testing.assert_close(context, pack_context(model.encode(inputs)), atol=1e-5, rtol=1e-5)
        for index in range(model.config.ticks):
            results = tick(*context, *state)
            state, outputs = results[: len(program.state)], results[len(program.state) :]
            for value, expected in zip(outputs, _outputs(thoughts, index, model), strict=True):
                torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
            track = thoughts.track
            assert track is not None
            for value, values in zip(state, track.states, strict=False):
                torch.testing.assert_close(value, values[:, index + 1], atol=1e-4, rtol=1e-4)
            assert (state[-1] == index + 1).all(), "every row counts its ticks"


@pytest.mark.parametrize("overrides", MODELS)
def test_tensors_have_the_shapes_that_the_program_states(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    program = specify(model, "image")
    assert [spec.name for spec in program.inputs] == ["image"]
    with torch.no_grad():
        inputs = tiny_inputs(model, rows=3)
        context, state = Encode(model)(inputs), _start(model, rows=3)
        results = Tick(model, 4)(*context, *state)
    stated = (*program.inputs, *program.context, *program.state, *program.state, *program.outputs)
    for spec, tensor in zip(stated, (inputs, *context, *state, *results), strict=True):
        assert tuple(tensor.shape) == (3, *spec.shape), spec.name
        assert tensor.dtype == {"FP32": torch.float32, "INT64": torch.int64}[spec.datatype], spec.name


def test_rows_at_different_ticks_think_as_if_alone() -> None:
    model = tiny_model()
    inputs, ticks = tiny_inputs(model, rows=4), model.config.ticks
    with torch.no_grad():
        expected = model(inputs).predictions
        context, tick = Encode(model)(inputs), Tick(model, ticks)
        start = _start(model, rows=4)
        state = start
        for now in range(2 * ticks):
            # Row r begins at tick r: until then it is put back to the start, as a slot is when a thought is admitted.
            fresh = torch.arange(4) >= now
            state = tuple(torch.where(_like(fresh, old), new, old) for old, new in zip(state, start, strict=True))
            results = tick(*context, *state)
            state = results[: len(state)]
            for row in range(4):
                if 0 <= now - row < ticks:
                    torch.testing.assert_close(results[5][row], expected[row, now - row], atol=1e-4, rtol=1e-4)


def test_a_row_past_the_cap_stays_at_the_last_row_of_the_tables() -> None:
    model = tiny_model()
    with torch.no_grad():
        context, tick = Encode(model)(tiny_inputs(model, rows=3)), Tick(model, 4)
        *state, _ = _start(model, rows=3)
        last, past, far = (tick(*context, *state, torch.full((3,), done)) for done in (3, 4, 10**9))
    for results in (past, far):
        assert torch.equal(results[5], last[5])
        assert torch.equal(results[2], last[2])


def test_start_values_are_the_models_start_without_rows() -> None:
    model = tiny_model()
    values, state = start_values(model), model.start(1)
    assert list(values) == ["trace", "post", "action_sum", "out_sum", "ticks_done"]
    for value, expected in zip(values.values(), state, strict=False):
        assert torch.equal(value, expected[0])
    assert values["ticks_done"].dtype == torch.int64
    assert torch.equal(values["ticks_done"], torch.tensor(0))


def test_freezing_leaves_the_model_as_it_was() -> None:
    model = tiny_model(synapse_depth=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Encode(model), Tick(model, 4, convolve=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_program_needs_the_shape_of_its_input() -> None:
    with pytest.raises(ValueError, match="input_shape must be known"):
        specify(tiny_model(input_shape=()))


def test_a_program_needs_at_least_one_tick() -> None:
    with pytest.raises(ValueError, match="tick_cap must be at least 1, got 0"):
        Tick(tiny_model(), 0)


def _start(model: CTM, rows: int) -> tuple[Tensor, ...]:
    return pack_state(model.start(rows), torch.zeros(rows, dtype=torch.int64))


def _outputs(thoughts: Any, index: int, model: CTM) -> list[Tensor]:
    """What the model put out at a tick, in the program's order."""
    prediction = thoughts.predictions[:, index].unflatten(-1, model.config.answer_shape)
    energy = [] if thoughts.energies is None else [thoughts.energies[:, index]]
    return [prediction, thoughts.certainties[:, index], *energy, thoughts.track.outputs.attention[:, index]]


def _like(mask_B: Tensor, tensor: Tensor) -> Tensor:
    return mask_B.view(-1, *(1,) * (tensor.dim() - 1))
