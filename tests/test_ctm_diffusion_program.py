"""A diffusion model as a program: run link by link, by torch or by ONNX Runtime, it draws what the sampler draws."""

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from small_diffusion import CONTROL, DIFFUSION, SENSES, small_model
from torch import Tensor, nn

from ctm.diffusion import program
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.linear_attention import LinearAttentionConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import CLEAN, spaced_levels
from ctm.diffusion.sampling import Samples, sample
from ctm.diffusion.wina import WINAConfig
from ctm.program import TensorSpec
from export.onnx_graph import write_onnx
from export.torchscript import quiet, write_torchscript

Function = Callable[..., list[NDArray[np.generic]]]
ROWS, STEPS, ETA = 4, 6, 0.6
DTYPES = {"FP32": torch.float32, "INT64": torch.int64, "BOOL": torch.bool}


def noise(step: int) -> Tensor:
    return torch.randn(ROWS, 6, 6, generator=torch.Generator().manual_seed(100 + step))


def functions(model: EnhancedCTMDiffusion) -> dict[str, tuple[nn.Module, tuple, tuple]]:
    """The three functions with the tensors that go in and come out."""
    thought, finish = program.specify(model), program.specify_finish(model)
    after = tuple(spec for spec in (*thought.state, *thought.outputs))
    return {
        "encode": (program.Encode(model), thought.inputs, thought.context),
        "tick": (
            program.tick(model, program.thinker_of(model).config.ticks),
            (*thought.context, *thought.state),
            after,
        ),
        "finish": (program.ReverseStep(model), finish.arguments, finish.results),
    }


def in_torchscript(model: EnhancedCTMDiffusion, folder: Path) -> dict[str, Function]:
    def run(graph: torch.jit.ScriptModule) -> Function:
        def call(*arguments: NDArray[np.generic]) -> list[NDArray[np.generic]]:
            with torch.no_grad():
                return [tensor.numpy() for tensor in graph(*map(torch.from_numpy, arguments))]

        return call

    made = {}
    for name, (function, arguments, _) in functions(model).items():
        path = folder / f"{name}.ts"
        write_torchscript(function.eval(), _examples(arguments), path)
        with quiet():
            made[name] = run(torch.jit.load(path))
    return made


def in_onnx(model: EnhancedCTMDiffusion, folder: Path) -> dict[str, Function]:
    def run(session: ort.InferenceSession, names: list[str]) -> Function:
        read = {argument.name for argument in session.get_inputs()}

        def call(*arguments: NDArray[np.generic]) -> list[NDArray[np.generic]]:
            given = {name: values for name, values in zip(names, arguments, strict=True) if name in read}
            return session.run(None, given)

        return call

    made = {}
    for name, (function, arguments, results) in functions(model).items():
        example = _examples(arguments)
        names, path = [spec.name for spec in arguments], folder / f"{name}.onnx"
        outs = [f"out_{spec.name}" for spec in results]
        write_onnx(function.eval(), example, names, outs, path)
        made[name] = run(ort.InferenceSession(path, providers=["CPUExecutionProvider"]), names)
    return made


def _all_of(table: Mapping[str, dict[str, Any]], *names: str) -> dict[str, Any]:
    return {key: value for name in names for key, value in table[name].items()}


def _examples(specs: tuple[TensorSpec, ...]) -> list[Tensor]:
    return [torch.zeros(3, *spec.shape, dtype=DTYPES[spec.datatype]) for spec in specs]


def draw(
    model: EnhancedCTMDiffusion, run: Mapping[str, Function], labels: Tensor, threshold: float, certain: float
) -> Samples:
    """Sampling as a server does it: encode, ticks until certain, finish, the next link."""
    assert model.thinker is not None
    start = [value.numpy() for value in model.thinker.start_values().values()]
    seen = [spec.name for spec in program.specify(model).outputs]
    fed = [np.zeros((len(labels), *shape), np.float32) for shape in model.fed.values()]
    levels, image = [*map(int, spaced_levels(DIFFUSION.levels, STEPS)), CLEAN], noise(0).numpy()
    label, rows = labels.numpy(), len(labels)
    estimates, certainties, abstained, used = [], [], [], []
    for step in range(STEPS):
        level, following = (np.full(rows, levels[step + k], np.int64) for k in (0, 1))
        context = run["encode"](image, level, label, *fed)
        state = [np.repeat(value[None], rows, 0) for value in start]
        best, ticks, alive = [None] * 3, np.zeros(rows, np.int64), np.ones(rows, bool)
        for _ in range(model.thinker.config.ticks):
            results = run["tick"](*context, *state)
            state, tick = results[: len(start)], dict(zip(seen, results[len(start) :], strict=True))
            certainty = tick["certainty"]
            ticks += alive
            better = alive if best[0] is None else alive & (certainty > best[1])
            found = tick["prediction"], certainty, tick["guide"]
            best = [
                new if old is None else np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
                for old, new in zip(best, found, strict=True)
            ]
            alive &= (certainty < certain) & (tick.get("done", np.zeros(rows)) < 0.5)
        gives_up = best[1] < threshold
        fresh = noise(step + 1).numpy() if following[0] != CLEAN else np.zeros_like(image)
        eta = np.full(rows, ETA, np.float32)
        reads = {spec.name for spec in program.specify_finish(model).arguments}
        again = [value for name, value in zip(model.fed, fed, strict=True) if name in reads]
        image, estimate, *fed = run["finish"](image, level, label, following, eta, fresh, gives_up, *best, *again)
        for kept, value in zip(
            (estimates, certainties, abstained, used), (estimate, best[1], gives_up, ticks), strict=True
        ):
            kept.append(torch.from_numpy(np.asarray(value)))
    return Samples(
        torch.from_numpy(image), *map(torch.stack, (estimates, certainties, abstained, used)), labels * 0 + STEPS
    )


def drawn_clearly(model: EnhancedCTMDiffusion, labels: Tensor) -> tuple[Samples, float, float]:
    """Samples with thresholds that some pass and others do not, and of which no certainty is near."""
    found = sample(model, labels, noise, steps=STEPS, eta=ETA).certainties.flatten().sort().values
    between = ((found[1:] + found[:-1]) / 2).tolist()
    for low, high in product(between[4:-4], between[len(found) // 2 :]):
        wanted = sample(model, labels, noise, steps=STEPS, eta=ETA, certainty_threshold=high, confidence_threshold=low)
        seen = wanted.certainties
        near = min((seen - low).abs().min(), (seen - high).abs().min())
        mixed = 0 < wanted.abstained.float().mean() < 1 and wanted.ticks_used.min() < wanted.ticks_used.max()
        if near > 5e-4 and mixed:
            return wanted, low, high
    raise AssertionError("no threshold is clear of all certainties")


CASES: dict[str, dict[str, Any]] = {
    "noise": {},
    "velocity": {"target": "velocity"},
    "refined": {"refine": True},
    "twice": {"twice": True},
    "margin": {"margin": 1},
    **{name: {name: settings} for name, settings in CONTROL.items()},
    **SENSES,
    "margin, senses, wina": {
        "margin": 1,
        "refine": True,
        "wina": WINAConfig(sparsity=0.5),
        **_all_of(SENSES, "tracker", "granularity", "patcher", "jepa"),
    },
    "wina": {"wina": WINAConfig(sparsity=0.5)},
    "linear attention": {"linear_attention": LinearAttentionConfig(key_width=4, exact=2)},
    "hierarchical": {"ticks": 6, "hierarchical": HierarchicalConfig(low_ticks=2, high_width=16, high_heads=2)},
    "reasoning": {"seed": 5, "reasoning": BidirectionalConfig(max_moves=5, places=3, memory_width=6)},
    "consciousness": {"consciousness": ConsciousnessConfig(start=0.4, threshold=1.2)},
}
# An export to ONNX takes seconds: parts that can be on together are exported together.
IN_ONNX = ("margin, senses, wina", "dynamic", "linear attention", "hierarchical", "reasoning", "consciousness")


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        *(pytest.param("torchscript", settings, id=f"{name}, TorchScript") for name, settings in CASES.items()),
        *(pytest.param("onnx", CASES[name], id=f"{name}, ONNX") for name in IN_ONNX),
    ],
)
def test_link_by_link_gives_the_samples_of_the_sampler(form, settings, tmp_path):
    model, labels = small_model(**settings), torch.arange(ROWS)
    wanted, threshold, certain = drawn_clearly(model, labels)
    assert model.diffusion.reasoning is not None or wanted.ticks_used.max() == program.thinker_of(model).config.ticks
    found = draw(model, (in_onnx if form == "onnx" else in_torchscript)(model, tmp_path), labels, threshold, certain)
    assert torch.equal(found.ticks_used, wanted.ticks_used)
    assert torch.equal(found.abstained, wanted.abstained)
    for name in ("images", "estimates", "certainties"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-4, rtol=1e-4, msg=name)


def test_a_denoiser_alone_makes_no_program():
    alone = small_model(guided=False)
    for make in (program.specify, program.specify_finish, program.Encode, program.ReverseStep):
        with pytest.raises(ValueError, match="a denoiser alone does not think"):
            make(alone)
