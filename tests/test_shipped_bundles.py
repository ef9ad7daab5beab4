"""What ships keeps its promises: the card's numbers are what the server computes on the real test digits."""

import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from serving.backends.load import load_backend
from serving.bundle import Bundle, load_bundle
from serving.engine import Engine, StepReport
from serving.events import Answer
from serving.request import Request, StopPolicy, StreamPolicy
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig

ROOT = Path(__file__).resolve().parent.parent
DATA = os.environ.get("CTM_MNIST_DIR")
needs_digits = pytest.mark.skipif(not DATA, reason="CTM_MNIST_DIR names no folder with MNIST's four files")


@pytest.fixture(scope="module")
def mnist() -> Bundle:
    return load_bundle(ROOT / "model_store" / "mnist" / "1")


@pytest.fixture(scope="module")
def test_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test digits in [0, 1] and their labels."""
    folder = Path(DATA or "")
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    return (images.reshape(-1, 1, 28, 28) / 255).astype(np.float32), labels


def think(bundle: Bundle, digits: np.ndarray, stop: StopPolicy) -> list[Answer]:
    """Every digit's answer, through the engine."""
    config = EngineConfig(num_slots=64, encode_rows_per_step=32, max_waiting=10_000, max_rows=10_000)
    scheduler = Scheduler(num_slots=64, max_waiting=10_000, admissions_per_plan=32)
    engine = Engine(load_backend(bundle, BackendConfig(), config), scheduler, clock=time.monotonic)
    engine.submit(
        Request(request_id="", inputs={"image": digits}, rows=len(digits), stop=stop, stream=StreamPolicy(every=0))
    )
    answers: list[Answer] = []
    while not engine.idle:
        report = StepReport()
        engine.step(report)
        answers += [event for _, event in report.events if isinstance(event, Answer)]
    return sorted(answers, key=lambda answer: answer.row)


def accuracy(answers: list[Answer], labels: np.ndarray) -> float:
    return float(np.mean([answer.prediction.argmax() == label for answer, label in zip(answers, labels, strict=True)]))


@needs_digits
def test_thinking_to_the_end_is_as_good_as_the_card_says(mnist, test_digits):
    digits, labels = test_digits
    right = accuracy(think(mnist, digits, StopPolicy(max_ticks=mnist.manifest.ticks)), labels)
    assert right == pytest.approx(mnist.manifest.quality.accuracy_most_certain, abs=2e-4)
    assert right >= 0.985


@needs_digits
def test_stopping_at_the_shipped_threshold_is_as_good_and_as_quick_as_the_card_says(mnist, test_digits):
    digits, labels = test_digits
    answers = think(mnist, digits, mnist.stop)
    threshold = mnist.manifest.stop.certainty_threshold
    card = min(mnist.manifest.quality.frontier, key=lambda point: abs(point.certainty_threshold - threshold))
    used = np.array([answer.ticks_used for answer in answers])
    assert accuracy(answers, labels) == pytest.approx(card.accuracy, abs=2e-4)
    # Digit 6605 comes within 1.2e-7 of the threshold at tick 12: it stops there or at 20, by the last bit of a sum.
    # That moves the mean by 0.0008 and the deviation by 0.003.
    assert used.mean() == pytest.approx(card.mean_ticks, abs=0.005)
    assert used.std() == pytest.approx(card.ticks_deviation, abs=0.005)
    assert card.accuracy >= 0.983
    assert card.mean_ticks <= 10
    assert card.ticks_deviation >= 2


def test_thinking_is_real(mnist):
    quality = mnist.manifest.quality
    assert 20 <= mnist.manifest.ticks <= 30
    assert len(quality.accuracy) == mnist.manifest.ticks
    assert quality.accuracy[0] <= max(quality.accuracy) - 0.10


@pytest.mark.parametrize("artefact", ["onnx", "torchscript"])
def test_artefacts_agree_with_the_model_as_trained(mnist, artefact):
    (found,) = [entry for entry in mnist.manifest.artefacts if entry.backend == artefact]
    agreement = found.agreement
    assert len(agreement.one_tick) == len(agreement.free_running) == mnist.manifest.ticks
    assert max(agreement.one_tick) <= agreement.tolerance <= 1e-4
    assert agreement.equal_stop_ticks >= 0.999
    assert agreement.rows >= 1_000


def test_the_card_names_the_command_and_what_ships_is_small(mnist):
    card = (mnist.path / "README.md").read_text()
    assert mnist.manifest.provenance.command in card
    assert mnist.manifest.provenance.command.startswith("ctm-train configs/mnist.toml")
    assert json.loads((mnist.path / "manifest.json").read_text())["provenance"]["data"]
    assert sum(path.stat().st_size for path in mnist.path.iterdir()) < 5_000_000
