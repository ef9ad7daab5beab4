"""The CTM's tick: against independent formulas, pure, the same alone or in company, exportable."""

import numpy as np
import onnxruntime
import pytest
import torch
from numpy_ctm import NumpyCTM
from torch import Tensor, nn

from ctm.config import PLANE_POSITIONALS, CTMConfig
from ctm.model import CTM, Context, State

SMALL = {
    "ticks": 6,
    "width": 20,
    "memory": 5,
    "attention_width": 8,
    "heads": 2,
    "out_neurons": 7,
    "action_neurons": 6,
    "out_dims": 12,
    "nlm_hidden": 3,
    "in_channels": 3,
}


def build(seed: int = 0, **settings) -> CTM:
    """A small model in eval mode, with every weight away from its start value."""
    torch.manual_seed(seed)
    model = CTM(CTMConfig(**{**SMALL, **settings}), seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sync.decay"):
                parameter.uniform_(0, 2)
            else:
                # Changes of weights multiply, and made of many large numbers they would run away.
                parameter.add_((0.03 if ".change." in name else 0.3) * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="pairs, gated synapse, deep neurons"),
        pytest.param({"self_pairs": 3, "prediction_shape": (4, 3)}, id="self pairs, four positions"),
        pytest.param({"neuron_selection": "first-last"}, id="first-last"),
        pytest.param({"neuron_selection": "random", "synapse_depth": 2}, id="random, U-Net of two"),
        pytest.param({"synapse_depth": 4, "width": 31, "nlm_deep": False}, id="U-Net of four, shallow neurons"),
        pytest.param({"nlm_layernorm": True}, id="deep neurons with LayerNorm"),
        pytest.param({"nlm_deep": False, "nlm_layernorm": True, "heads": 1}, id="shallow with LayerNorm, one head"),
        pytest.param({"energy_hidden": 5, "memory": 1}, id="energy head, memory of one"),
        pytest.param({"prediction_shape": (2, 2, 3), "heads": 8}, id="a plane of positions, eight heads"),
        pytest.param({"synapse_depth": 3, "hyper_layers": "bottleneck", "hyper_rank": 3}, id="hyper bottleneck"),
        pytest.param({"synapse_depth": 2, "hyper_layers": "all", "hyper_rank": 1, "hyper_gate": True}, id="gated"),
        pytest.param(
            {
                "synapse_depth": 4,
                "hyper_layers": (0, 2),
                "hyper_nlm_rank": 2,
                "hyper_gate": True,
                "nlm_layernorm": True,
            },
            id="a hyper level, hyper neurons, gated",
        ),
        pytest.param({"hyper_nlm_rank": 3, "nlm_deep": False}, id="hyper neurons, shallow"),
    ],
)
def test_the_model_is_the_formulas_of_the_paper(settings):
    model = build(**settings).double()
    features = torch.randn(3, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        thoughts = model(features, track=True)
    track = thoughts.track
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for row in range(3):
        other = NumpyCTM(weights, heads=model.config.heads, answer_shape=model.config.answer_shape)
        tokens = other.tokens(features[row].numpy())
        for tick in range(model.config.ticks):
            for name, value in other.tick(tokens).items():
                ours = track.states.post[row, tick + 1] if name == "post" else getattr(track.outputs, name)[row, tick]
                np.testing.assert_allclose(ours, value, rtol=1e-9, atol=1e-10, err_msg=f"{name}, row {row}, {tick=}")


def test_a_tick_leaves_its_state_alone_and_says_the_same_twice():
    model, inputs = build(), torch.randn(2, 3, 4)
    table = model.root_beta_table(1)
    with torch.no_grad():
        context, state = model.encode(inputs), model.start(2)
        before = [value.clone() for value in (*context, *state)]
        first, second = (model.tick(context, state, table[0][0], table[1][0]) for _ in range(2))
    for value, copy in zip((*context, *state), before, strict=True):
        assert torch.equal(value, copy)
    for one, other in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_a_forward_changes_no_weight():
    model = build(backbone="digit", in_channels=1)
    with torch.no_grad():
        model.out_sync.decay[0], model.action_sync.decay[0] = 20, -3
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model(torch.rand(2, 1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_at_different_ticks_can_share_a_tick():
    model, inputs = build(), torch.randn(4, 3, 4)
    action_table, out_table = model.root_beta_table(6)
    with torch.no_grad():
        track = model(inputs, track=True).track
        ticks = torch.tensor([0, 5, 2, 3])
        state = State(*(value[torch.arange(4), ticks] for value in track.states))
        after, output = model.tick(model.encode(inputs), state, action_table[ticks], out_table[ticks])
    for row, tick in enumerate(ticks):
        torch.testing.assert_close(output.prediction[row], track.outputs.prediction[row, tick], rtol=0, atol=1e-6)
        for ours, expected in zip(after, track.states, strict=True):
            torch.testing.assert_close(ours[row], expected[row, tick + 1], rtol=0, atol=1e-6)


def test_the_table_of_roots_is_the_recurrence():
    model = build()
    with torch.no_grad():
        recurrence = model(torch.randn(1, 3, 4), ticks=40, track=True).track.root_beta
    for table, root in zip(model.root_beta_table(40), recurrence, strict=True):
        assert table.dtype == torch.float32
        torch.testing.assert_close(table, root, rtol=1e-6, atol=0)


def test_a_row_thinks_the_same_alone_or_in_company():
    model, inputs = build(synapse_depth=3), torch.randn(5, 3, 4)
    with torch.no_grad():
        together = model(inputs).predictions
        alone = torch.cat([model(row[None]).predictions for row in inputs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_more_ticks_only_add_ticks():
    model, inputs = build(), torch.randn(2, 3, 4)
    with torch.no_grad():
        assert torch.equal(model(inputs, ticks=9).predictions[:, :6], model(inputs).predictions)
    with pytest.raises(ValueError, match="at least 1 tick, got 0"):
        model(inputs, ticks=0)


def test_tracking_changes_nothing_but_what_is_shown():
    model, inputs = build(energy_hidden=4), torch.randn(2, 3, 4)
    with torch.no_grad():
        plain, tracked = model(inputs), model(inputs, track=True)
    assert plain.track is None
    assert torch.equal(plain.predictions, tracked.track.outputs.prediction)
    assert torch.equal(plain.energies, tracked.track.outputs.energy)
    assert torch.equal(plain.sync_out, tracked.track.outputs.sync_out[:, -1])
    torch.testing.assert_close(tracked.track.outputs.attention.sum(-1), torch.ones(2, 6, 2))


def test_every_weight_learns():
    model = build(backbone="digit", in_channels=1, energy_hidden=4, nlm_layernorm=True, synapse_depth=2).train()
    thoughts = model(torch.rand(3, 1, 8, 8))
    (thoughts.predictions.square().sum() + thoughts.energies.sum() + thoughts.certainties.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_seeds_fix_weights_and_pairs():
    def drawn(weight_seed: int, seed: int | None) -> dict[str, Tensor]:
        torch.manual_seed(weight_seed)
        return CTM(CTMConfig(**SMALL), seed=seed).state_dict()

    def same(one: dict[str, Tensor], other: dict[str, Tensor], name: str) -> bool:
        return torch.equal(one[name], other[name])

    pairs, weight = "out_sync.right", "readout.weight"
    assert same(drawn(1, 7), drawn(2, 7), pairs)
    assert not same(drawn(1, 7), drawn(2, 7), weight)
    assert not same(drawn(1, 7), drawn(1, 8), pairs)
    assert same(drawn(1, 7), drawn(1, 8), weight)
    assert same(drawn(3, None), drawn(3, None), pairs)
    assert not same(drawn(3, None), drawn(4, None), pairs)


def test_normalisation_is_part_of_encode():
    settings = {"backbone": "digit", "in_channels": 3}
    plain = build(**settings)
    normalising = build(**settings, input_mean=(0.1, 0.2, 0.3), input_std=(0.5, 1.0, 2.0))
    image = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    with torch.no_grad():
        for ours, expected in zip(normalising.encode(image), plain.encode((image - mean) / std), strict=True):
            torch.testing.assert_close(ours, expected)
    assert normalising.state_dict().keys() == plain.state_dict().keys()


def test_answers_keep_full_precision_under_autocast():
    model, inputs = build(energy_hidden=4).train(), torch.randn(4, 3, 4)
    exact = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        thoughts = model(inputs, track=True)
    for value in (thoughts.predictions, thoughts.certainties, thoughts.energies, *thoughts.track.states):
        assert value.dtype == torch.float32
    torch.testing.assert_close(thoughts.certainties[:, 0], exact.certainties[:, 0], rtol=0, atol=0.1)
    thoughts.predictions.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_dropout_works_in_training_only():
    model, inputs = build(dropout=0.4, nlm_dropout=0.0), torch.randn(2, 3, 4)
    with torch.no_grad():
        assert torch.equal(model(inputs).predictions, model(inputs).predictions)
        model.train()
        assert not torch.equal(model(inputs).predictions, model(inputs).predictions)
        rates = {type(m).__name__: m.p for m in model.neurons.modules() if isinstance(m, nn.Dropout)}
    assert rates == {}, "nlm_dropout of 0 is not the same as None"


class Encode(nn.Module):
    def __init__(self, model: CTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(inputs))


class Tick(nn.Module):
    def __init__(self, model: CTM) -> None:
        super().__init__()
        self.model = model
        self.roots = [table[0].clone() for table in model.root_beta_table(1)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        state, output = self.model.tick(Context(*tensors[:2]), State(*tensors[2:]), *self.roots)
        return (*state, *(value for value in output if value is not None))


EXPORTED = [
    pytest.param({"backbone": "digit", "in_channels": 1}, (1, 8, 8), id="digit"),
    pytest.param({"backbone": "parity", "positional": "custom-rotational-1d"}, (9,), id="parity"),
    pytest.param({"backbone": "digit", "positional": "custom-rotational"}, (3, 8, 8), id="rotational"),
    pytest.param(
        {"backbone": "resnet18-1", "positional": "multi-learnable-fourier", "synapse_depth": 3, "energy_hidden": 4,
         "input_mean": (0.5,), "input_std": (0.2,), "nlm_layernorm": True, "neuron_selection": "first-last"},
        (3, 8, 6), id="resnet",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "shape"), EXPORTED)
@pytest.mark.parametrize("how", ["export", "trace"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported).*")
def test_the_exported_graphs_take_any_number_of_rows(settings, shape, how):
    model = build(**settings).requires_grad_(False)
    encode, tick = Encode(model), Tick(model)
    pair, crowd = torch.rand(2, *shape).round(), torch.rand(5, *shape).round()
    arguments = (*model.encode(pair), *(value.clone() for value in model.start(2)))
    if how == "export":
        rows = torch.export.Dim("rows", min=1, max=64)
        frozen_encode = torch.export.export(encode, (pair,), dynamic_shapes=({0: rows},)).module()
        dynamic = (tuple({0: rows} for _ in arguments),)
        frozen_tick = torch.export.export(tick, arguments, dynamic_shapes=dynamic).module()
    else:
        frozen_encode, frozen_tick = torch.jit.trace(encode, (pair,)), torch.jit.trace(tick, arguments)
    for inputs in (crowd, crowd[:1]):
        context = model.encode(inputs)
        torch.testing.assert_close(frozen_encode(inputs), tuple(context))
        arguments = (*context, *model.start(len(inputs)))
        torch.testing.assert_close(frozen_tick(*arguments), tick(*arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_onnx_graph_of_a_tick_takes_any_number_of_rows():
    model = build(backbone="digit", in_channels=1).requires_grad_(False)
    tick = Tick(model)
    arguments = (*model.encode(torch.rand(2, 1, 8, 8)), *(value.clone() for value in model.start(2)))
    rows = torch.export.Dim("rows", min=1, max=64)
    dynamic = (tuple({0: rows} for _ in arguments),)
    program = torch.onnx.export(tick, arguments, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    arguments = (*model.encode(torch.rand(5, 1, 8, 8)), *model.start(5))
    fed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), arguments, strict=True)}
    for ours, expected in zip(session.run(None, fed), tick(*arguments), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        pytest.param(
            {"ticks": 50, "width": 4096, "attention_width": 1024, "out_neurons": 8196, "action_neurons": 2048,
             "self_pairs": 32, "nlm_hidden": 64, "backbone": "resnet152-4", "out_dims": 1000},
            185_989_886, id="ImageNet",
        ),
        pytest.param(
            {"ticks": 75, "width": 2048, "attention_width": 512, "out_neurons": 64, "action_neurons": 32,
             "neuron_selection": "first-last", "nlm_hidden": 32, "backbone": "resnet34-2", "out_dims": 500,
             "prediction_shape": (100, 5)},
            31_998_330, id="maze-large",
        ),
    ],
)  # fmt: skip
def test_the_published_models_have_their_size(settings, parameters):
    common = {"memory": 25, "heads": 16, "synapse_depth": 8, "in_channels": 3}
    with torch.device("meta"):
        model = CTM(CTMConfig(**common, **settings), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("backbone", "shape", "features"),
    [
        pytest.param("resnet18-1", (2, 3, 16, 16), (2, 64, 8, 8), id="resnet18-1"),
        pytest.param("resnet34-2", (2, 3, 16, 16), (2, 128, 4, 4), id="resnet34-2"),
        pytest.param("resnet50-3", (2, 3, 16, 16), (2, 1024, 2, 2), id="resnet50-3"),
        pytest.param("resnet101-1", (2, 3, 39, 39), (2, 256, 20, 20), id="resnet101-1, odd size"),
        pytest.param("resnet152-2", (2, 3, 16, 16), (2, 512, 4, 4), id="resnet152-2"),
        pytest.param("resnet18-4", (2, 3, 16, 16), (2, 512, 1, 1), id="resnet18-4"),
        pytest.param("shallow-wide", (2, 3, 16, 16), (2, 2048, 8, 8), id="shallow-wide"),
        pytest.param("digit", (2, 3, 16, 16), (2, 8, 4, 4), id="digit"),
        pytest.param("parity", (2, 16), (2, 8, 16), id="parity"),
        pytest.param("none", (2, 3, 16), (2, 3, 16), id="none"),
        pytest.param("none", (2, 3, 4, 5), (2, 3, 4, 5), id="none, a plane"),
    ],
)
def test_each_backbone_makes_its_features(backbone, shape, features):
    with torch.device("meta"):
        model = CTM(CTMConfig(**{**SMALL, "backbone": backbone}), seed=0)
        made = model.features(torch.empty(shape))
        assert tuple(made.shape) == features
        keys, _ = model.attention.context(model.embed(made))
    assert keys.shape == (2, 2, int(np.prod(features[2:])), 4)


@pytest.mark.parametrize("positional", PLANE_POSITIONALS)
@pytest.mark.parametrize("image", [(8, 8), (8, 12), (4, 4)], ids=["square", "wide", "one position"])
def test_positional_embeddings_fit_any_plane(positional, image):
    model = build(backbone="digit", in_channels=1, positional=positional)
    with torch.no_grad():
        keys, values = model.encode(torch.rand(2, 1, *image))
    assert keys.isfinite().all()
    assert values.isfinite().all()
    assert keys.shape[2] == image[0] * image[1] // 16
