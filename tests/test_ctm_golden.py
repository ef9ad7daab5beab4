"""We are the paper's model: every recorded intermediate of every tick, loss and gradient of the reference's runs."""

from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

from ctm.losses import Loss, image_loss, maze_horizon, maze_loss, parity_loss
from ctm.model import CTM, Thoughts
from ctm.reference import from_reference, to_reference
from ctm.reference_weights import weights_to_reference


def is_ctm(meta: dict[str, Any]) -> bool:
    return meta.get("cls") in ("ContinuousThoughtMachine", "HyperContinuousThoughtMachine")


def is_hyper(meta: dict[str, Any]) -> bool:
    return meta["cls"] == "HyperContinuousThoughtMachine"


@pytest.fixture(scope="module", params=golden.names(lambda meta: "cases" not in meta))
def replayed(request: pytest.FixtureRequest) -> tuple[golden.Recording, CTM, Thoughts]:
    """Each recorded run in turn, thought again by our model; `losses` is read elsewhere."""
    recording = golden.load(request.param)
    if not is_ctm(recording.meta):
        pytest.skip(f"later work: {recording.meta['cls']}")
    return replay(recording)


def replay(recording: golden.Recording) -> tuple[golden.Recording, CTM, Thoughts]:
    weights = {key: torch.from_numpy(value) for key, value in recording.group("w").items()}
    model = from_reference(recording.meta["config"], weights)
    with torch.no_grad():
        thoughts = model(torch.from_numpy(recording.group("in")["x"]), track=True)
    return recording, model, thoughts


def seen(model: CTM, thoughts: Thoughts, inputs: Tensor) -> dict[str, Tensor]:
    """Everything a recording can hold, by its name there, in its layout (ticks first, but last in predictions)."""
    track = thoughts.track
    assert track is not None
    states, outputs, beta = track.states, track.outputs, [root.square() for root in track.root_beta]
    rows, certainties = len(inputs), thoughts.certainties
    features = model.features(inputs)
    seed_beta = torch.cat([torch.ones_like(beta[1][:1]), beta[1]])
    everything = {
        "out/predictions": thoughts.predictions.transpose(1, 2),
        "out/certainties": torch.stack([1 - certainties, certainties], dim=1),
        "out/sync_out": thoughts.sync_out,
        "out/decay_params_action_after_forward": model.action_sync.decay,
        "out/decay_params_out_after_forward": model.out_sync.decay,
        "track/kv_features": features,
        "track/kv": model.embed(features),
        "track/pre_activations": outputs.pre.transpose(0, 1),
        "track/post_activations": states.post[:, 1:].transpose(0, 1),
        "track/attention": outputs.attention.transpose(0, 1).unsqueeze(3),
        "track/sync_action": outputs.sync_action.transpose(0, 1),
        "track/sync_out": outputs.sync_out.transpose(0, 1),
        "track/alpha_action": states.action_sum[:, :-1].transpose(0, 1),
        "track/alpha_out": states.out_sum.transpose(0, 1),
        "track/beta_action": beta[0][:, None].expand(-1, rows, -1),
        "track/beta_out": seed_beta[:, None].expand(-1, rows, -1),
    }
    if thoughts.energies is not None:
        everything["out/energies"] = thoughts.energies[:, None]
    return everything


def test_every_intermediate_of_every_tick_agrees(replayed):
    recording, model, thoughts = replayed
    with torch.no_grad():
        ours = seen(model, thoughts, torch.from_numpy(recording.group("in")["x"]))
    recorded = {f"{group}/{key}": value for group in ("out", "track") for key, value in recording.group(group).items()}
    assert not recorded.keys() - ours.keys(), "recorded, but not compared"
    differences = {key: golden.scaled_difference(ours[key].detach().numpy(), value) for key, value in recorded.items()}
    assert beyond(differences, recording.tolerance) == {}


def beyond(differences: dict[str, float], tolerance: float) -> dict[str, float]:
    """Those that are not within the tolerance; what is no number is not."""
    return {key: value for key, value in differences.items() if not value <= tolerance}


@pytest.mark.parametrize(
    ("difference", "fails"),
    [
        pytest.param(1e-6, False, id="at the tolerance"),
        pytest.param(2e-6, True, id="beyond it"),
        pytest.param(float("inf"), True, id="infinite"),
        pytest.param(float("nan"), True, id="no number"),
    ],
)
def test_a_difference_fails_unless_it_is_within_the_tolerance(difference, fails):
    assert list(beyond({"near": 0.0, "far": difference}, 1e-6)) == ["far"] * fails


@pytest.mark.parametrize("name", golden.names(lambda meta: is_ctm(meta) and "grad" in meta))
def test_losses_and_gradients_agree(name):
    recording, model, _ = replay(golden.load(name))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    targets = torch.from_numpy(recording.group("loss")["targets"])
    thoughts = model(torch.from_numpy(recording.group("in")["x"]))
    loss = loss_of(recording, thoughts, targets)
    loss.value.backward()

    assert golden.scaled_difference(loss.value.detach().numpy(), recording.group("loss")["value"][0]) < 2e-6
    np.testing.assert_array_equal(loss.tick, recording.group("loss")["where_most_certain"])
    if "upto_where" in recording.group("loss"):
        moves = thoughts.predictions.unflatten(-1, (targets.shape[1], -1)).argmax(-1)
        np.testing.assert_array_equal(maze_horizon(moves, targets, 5), recording.group("loss")["upto_where"])

    gradients = {key: value.grad for key, value in model.named_parameters()}
    gradients = weights_to_reference(model.config, gradients)
    assert gradients.keys() == recording.group("grad").keys()
    differences = {
        key: np.abs(gradients[key].numpy() - value).max() / max(np.abs(value).max(), 1e-3)
        for key, value in recording.group("grad").items()
    }
    assert beyond(differences, 2e-5) == {}


def loss_of(recording: golden.Recording, thoughts: Thoughts, targets: Tensor) -> Loss:
    if "upto_where" in recording.group("loss"):
        return maze_loss(thoughts.predictions, thoughts.certainties, targets)
    if targets.dim() == 2:
        return parity_loss(thoughts.predictions, thoughts.certainties, targets)
    return image_loss(thoughts.predictions, thoughts.certainties, targets)


def test_the_recorded_weights_come_back_as_they_were(replayed):
    recording, model, _ = replayed
    _, weights = to_reference(model, hyper=is_hyper(recording.meta))
    recorded = recording.group("w")
    assert weights.keys() == recorded.keys()
    for key, value in recorded.items():
        expected = value.clip(0, 15) if key.startswith("decay_params") else value
        np.testing.assert_array_equal(weights[key].numpy(), expected, err_msg=key)


def test_a_thought_ends_on_the_recorded_tick(replayed):
    recording, _, thoughts = replayed
    for threshold, ticks in recording.meta.get("exit_tick_0based", {}).items():
        sure = thoughts.certainties >= float(threshold)
        sure[:, -1] = True
        assert sure.int().argmax(1).tolist() == ticks, f"threshold {threshold}"
