"""What several test files share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A runner in the background may ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many small graphs: threads would only get in each other's way


@pytest.fixture(scope="session")
def model_store() -> Path:
    """The bundles that ship with the project."""
    return ROOT / "model_store"


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one exported CTM of random weights, `tiny`."""
    pytest.importorskip("torch", reason="a bundle is exported with torch")
    from tiny_bundle import publish_tiny_bundle

    store = tmp_path_factory.mktemp("store")
    publish_tiny_bundle(store)
    return store


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state a process: a run begins with none, and leaves none behind."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
