"""An artefact that does not compute what the model does is named, and nothing of it is published."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_ctm_language_model import VOCABULARY
from test_ctm_language_program import WINDOW, wide_model
from tiny_bundle import publish_tiny_bundle, tiny_inputs, tiny_model
from torch import Tensor

from ctm.language import program as language_program
from ctm.language.model import LanguageCTM
from ctm.model import CTM
from ctm.program import Encode, Tick
from ctm.servable import servable
from export import build
from export.agreement import measure_agreement
from export.artefact import Array
from export.errors import DisagreementError

THRESHOLD = 0.7
RESULTS = (
    "next_trace",
    "next_post",
    "next_action_sum",
    "next_out_sum",
    "next_ticks_done",
    "prediction",
    "certainty",
    "energy",
)


class Frozen:
    """An artefact that is the frozen program itself, and that can be told to err."""

    backend = "frozen"

    def __init__(
        self,
        *,
        error: float = 0.0,
        result: str = "certainty",
        at_tick: int = 1,
        keys: float = 0.0,
        model: CTM | None = None,
    ) -> None:
        self._model = tiny_model() if model is None else model
        self._encode, self._tick = Encode(self._model).eval(), Tick(self._model, 16).eval()
        self._error, self._place, self._at_tick, self._keys = error, RESULTS.index(result), at_tick, keys

    @torch.inference_mode()
    def encode(self, arguments: Sequence[Array]) -> list[Array]:
        keys, values = self._encode(*map(torch.from_numpy, arguments))
        return [keys.numpy() + self._keys, values.numpy()]

    @torch.inference_mode()
    def tick(self, arguments: Sequence[Array]) -> list[Array]:
        results = [result.numpy().copy() for result in self._tick(*map(torch.from_numpy, arguments))]
        wrong = arguments[-1] == self._at_tick - 1
        results[self._place][wrong] += np.asarray(self._error, results[self._place].dtype)
        return results


def test_a_faithful_artefact_agrees_at_every_tick_and_stops_when_eager_does() -> None:
    model = tiny_model()
    agreement = measure_agreement(servable(model), Frozen(), [tiny_inputs(model, 300)], THRESHOLD)
    assert len(agreement.one_tick) == len(agreement.free_running) == model.config.ticks
    assert max(agreement.one_tick) < 1e-5
    assert max(agreement.free_running) < 1e-4
    assert agreement.equal_stop_ticks == 1.0
    assert (agreement.row_counts, agreement.rows, agreement.tolerance) == ((1, 2, 7, 32), 300, 1e-4)


@pytest.mark.parametrize(
    ("tampering", "sentence"),
    [
        pytest.param(
            {"error": 2e-4},
            r"frozen tick 1, 1 rows: certainty differs from eager's by 0.0002, at most 0.0001 is allowed",
            id="certainty",
        ),
        pytest.param({"error": 0.01, "result": "next_trace", "at_tick": 5}, r"tick 5, 1 rows: next_trace", id="trace"),
        pytest.param({"error": 1, "result": "next_ticks_done", "at_tick": 2}, r"tick 2.*next_ticks_done", id="counter"),
        pytest.param({"error": np.nan, "result": "prediction", "at_tick": 8}, r"tick 8.*prediction.*inf", id="NaN"),
        pytest.param(
            {"keys": 0.001}, r"frozen encode, 1 rows: keys differs from eager's by 0.000\d+, at most", id="keys"
        ),
    ],
)
def test_a_tampered_artefact_disagrees_by_name(tampering: dict[str, Any], sentence: str) -> None:
    model = tiny_model()
    with pytest.raises(DisagreementError, match=sentence):
        measure_agreement(servable(model), Frozen(**tampering), [tiny_inputs(model, 32)], THRESHOLD)


class FrozenText:
    """The frozen program of a language model, which can err where texts are cut to windows smaller than the whole."""

    backend = "frozen"

    def __init__(self, model: LanguageCTM, *, error: float = 0.0) -> None:
        self._encode, self._tick = language_program.Encode(model).eval(), language_program.Tick(model, 16).eval()
        self._error, self.windows = error, set[int]()

    @torch.inference_mode()
    def encode(self, arguments: Sequence[Array]) -> list[Array]:
        size = arguments[0].shape[1]
        self.windows.add(size)
        *others, base = [result.numpy() for result in self._encode(*map(torch.from_numpy, arguments))]
        return [*others, base + np.float32(self._error if size < WINDOW else 0.0)]

    @torch.inference_mode()
    def tick(self, arguments: Sequence[Array]) -> list[Array]:
        return [result.numpy() for result in self._tick(*map(torch.from_numpy, arguments))]


def _texts() -> list[Tensor]:
    """Forty texts of all lengths, padded to the window."""
    length = torch.arange(WINDOW) + 1
    tokens = torch.randint(VOCABULARY, (WINDOW, WINDOW), generator=torch.Generator().manual_seed(0))
    return [tokens.masked_fill(torch.arange(WINDOW) >= length[:, None], 0), length]


def test_texts_are_compared_in_the_windows_that_a_server_cuts_them_to() -> None:
    model = wide_model()
    artefact = FrozenText(model)
    agreement = measure_agreement(servable(model), artefact, _texts(), THRESHOLD)
    assert artefact.windows == {16, 32, WINDOW}
    assert max(*agreement.one_tick, *agreement.free_running) < 1e-4
    with pytest.raises(DisagreementError, match=r"frozen tick 1, 1 rows of cut inputs: prediction differs"):
        measure_agreement(servable(model), FrozenText(model, error=0.01), _texts(), THRESHOLD)


def test_small_differences_that_move_stopping_ticks_are_refused_too() -> None:
    model = tiny_model()
    inputs = [tiny_inputs(model, 32)]
    with torch.no_grad():
        certainties = model(*inputs).certainties
    # Within the tolerance, and enough for a row that lies right above the threshold.
    threshold = float(certainties[0, :4].max()) - 4e-5
    assert int((certainties[0] >= threshold).float().argmax()) < 4, "the row stops at one of its first four ticks"
    at_tick = int((certainties[0] >= threshold).float().argmax()) + 1
    with pytest.raises(DisagreementError, match=r"of 32 rows 9\d\.\d\d% stop on the same tick .* at least 99.9% must"):
        measure_agreement(servable(model), Frozen(error=-8e-5, at_tick=at_tick), inputs, threshold)


def test_rows_that_energy_would_stop_at_another_tick_are_refused_too() -> None:
    model = tiny_model(energy_hidden=4)
    inputs = [tiny_inputs(model, 32)]
    with torch.no_grad():
        energies = model(*inputs).energies
    assert energies is not None
    # Within the tolerance, and enough for the row that lies right below the threshold at the first tick.
    threshold = float(energies[:, 0].min()) + 4e-5
    artefact = Frozen(error=8e-5, result="energy", model=model)
    alone = {"energy_threshold": threshold}
    assert measure_agreement(servable(model), artefact, inputs, 1.0).equal_stop_ticks == 1.0
    with pytest.raises(DisagreementError, match=r"of 32 rows 9\d\.\d\d% stop on the same tick .* energy"):
        measure_agreement(servable(model), artefact, inputs, None, **alone)
    assert measure_agreement(servable(model), Frozen(model=model), inputs, None, **alone).equal_stop_ticks == 1.0


def test_without_a_shipped_threshold_stopping_ticks_are_recorded_and_decide_nothing() -> None:
    model = tiny_model()
    inputs = [tiny_inputs(model, 32)]
    artefact = Frozen(error=0.5, at_tick=4)  # where it is enough for rows that would have thought on
    agreement = measure_agreement(servable(model), artefact, inputs, None, tolerance=1.0)

    with torch.no_grad():
        eager_NT = model(*inputs).certainties.numpy()
    artefact_NT = eager_NT + np.where(np.arange(model.config.ticks) == 3, np.float32(0.5), np.float32(0.0))
    median = float(np.median(eager_NT))
    pairs = zip(eager_NT, artefact_NT, strict=True)
    same = [_first(eager_T, median) == _first(artefact_T, median) for eager_T, artefact_T in pairs]
    assert agreement.equal_stop_ticks == np.mean(same)
    assert 0 < agreement.equal_stop_ticks < 0.9, "so few would be refused, if a threshold were shipped"
    with pytest.raises(DisagreementError, match="stop on the same tick"):
        measure_agreement(servable(model), artefact, inputs, median, tolerance=1.0)


def _first(certainty_T: Array, threshold: float) -> int:
    """Index of the first tick that is certain enough, else of the last."""
    return next((tick for tick, value in enumerate(certainty_T) if value >= threshold), len(certainty_T) - 1)


def test_a_bundle_that_disagrees_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_wrong_onnx(*arguments: Any, **options: Any) -> None:
        write_onnx(*arguments, **options)
        path: Path = arguments[-1]
        if path.name == "tick.onnx":
            _tamper(path, "readout.bias")

    write_onnx = build.write_onnx
    monkeypatch.setattr(build, "write_onnx", write_wrong_onnx)
    with pytest.raises(DisagreementError, match=r"onnx tick 1, 1 rows: prediction"):
        publish_tiny_bundle(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def _tamper(path: Path, name: str) -> None:
    """Add a little to one of a graph's weights."""
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), name))
    onnx.save(model, path)
