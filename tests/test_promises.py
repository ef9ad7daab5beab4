"""What makes this server worth having: batching changes nothing, to the bit, on the models that ship."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.backends.load import load_backend
from serving.bundle import Bundle, load_bundle
from serving.engine import Engine, StepReport
from serving.events import Answer, Event, Summary, Tick
from serving.request import Request, StopPolicy, StreamPolicy
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "digits"


def make_engine(bundle: Bundle, num_slots: int, admissions: int = 8) -> Engine:
    backend = load_backend(bundle, BackendConfig(), EngineConfig(num_slots=num_slots, encode_rows_per_step=admissions))
    scheduler = Scheduler(num_slots=num_slots, max_waiting=1024, admissions_per_plan=admissions)
    return Engine(backend, scheduler, clock=time.monotonic)


def run(engine: Engine, requests: list[Request], *, feed: int = 1024) -> dict[Request, list[Event]]:
    """Think about all of them, never more than `feed` submitted at once."""
    events: dict[Request, list[Event]] = {}
    waiting, in_flight = list(requests), 0
    while waiting or not engine.idle:
        while waiting and in_flight < feed:
            engine.submit(waiting.pop(0))
            in_flight += 1
        report = StepReport()
        engine.step(report)
        in_flight -= len(report.finished)
        for asked, event in report.events:
            events.setdefault(asked, []).append(event)
    return events


def ask(bundle: Bundle, rows: np.ndarray) -> Request:
    stream = StreamPolicy(predictions=True, top_k=2)
    return Request(
        request_id="", inputs={bundle.program.inputs[0].name: rows}, rows=len(rows), stop=bundle.stop, stream=stream
    )


def fingerprint(events: list[Event]) -> list[tuple[object, ...]]:
    """Every number of a thought, to the bit."""
    marks: list[tuple[object, ...]] = []
    for event in events:
        if isinstance(event, Tick):
            marks.append((event.tick, event.certainty, event.prediction.tobytes(), event.leading.scores.tobytes()))
        elif isinstance(event, Answer):
            marks.append(
                (event.stop_reason, event.ticks_used, event.answer_tick, event.certainty, event.prediction.tobytes())
            )
    return marks


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    paths = sorted(EXAMPLES.glob("*.png"))
    assert len(paths) >= 12
    return np.stack([np.asarray(Image.open(path), np.float32)[None] / 255 for path in paths])


@pytest.fixture(scope="module")
def mnist(model_store: Path) -> Bundle:
    return load_bundle(model_store / "mnist" / "1")


@pytest.fixture(scope="module")
def alone(mnist: Bundle, digits: np.ndarray) -> list[list[tuple[object, ...]]]:
    """Each digit thought about by itself, in an engine of its own."""
    return [fingerprint(*run(make_engine(mnist, 1), [ask(mnist, digit[None])]).values()) for digit in digits]


@pytest.mark.parametrize(
    ("num_slots", "admissions", "feed"),
    [
        pytest.param(1, 8, 99, id="one slot"),
        pytest.param(2, 8, 99, id="two slots"),
        pytest.param(3, 1, 99, id="three slots, admitted one by one"),
        pytest.param(5, 8, 4, id="more slots than thoughts: gaps are closed by moves"),
        pytest.param(16, 5, 99, id="sixteen slots"),
        pytest.param(64, 64, 99, id="all at once"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_thought_is_the_same_alone_or_in_company(mnist, digits, alone, num_slots, admissions, feed, seed):
    order = np.random.default_rng(seed).permutation(len(digits))
    requests = [ask(mnist, digits[index][None]) for index in order]
    events = run(make_engine(mnist, num_slots, admissions), requests, feed=feed)
    for index, asked in zip(order, requests, strict=True):
        assert fingerprint(events[asked]) == alone[index]


def test_a_row_is_the_same_alone_or_among_other_rows_of_its_request(mnist, digits, alone):
    events = run(make_engine(mnist, 4), [ask(mnist, digits)])
    (mine,) = events.values()
    for row, expected in enumerate(alone):
        assert fingerprint([event for event in mine if getattr(event, "row", None) == row]) == expected


def test_no_state_of_one_thought_reaches_another(mnist, digits, alone):
    """Noise that runs all its ticks, and is cancelled half way, leaves nothing in the slots that digits take over."""
    engine = make_engine(mnist, 4)
    noise = np.random.default_rng(7).uniform(size=(4, *digits.shape[1:])).astype(np.float32)
    name = mnist.program.inputs[0].name
    never = StopPolicy(max_ticks=mnist.tick_cap)
    for ticks in range(1, 6):
        leaver = Request(request_id="", inputs={name: noise}, rows=4, stop=never)
        engine.submit(leaver)
        for _ in range(ticks):
            engine.step(StepReport())
        engine.cancel(leaver, StepReport())
        digit = ticks % len(digits)
        (mine,) = run(engine, [ask(mnist, digits[digit][None])]).values()
        assert fingerprint(mine) == alone[digit]


class OneAfterAnother:
    """A chain over all digits, from the one after `first`."""

    def __init__(self, name: str, digits: np.ndarray, first: int) -> None:
        self.name, self.digits, self.first = name, digits, first

    def digit(self, link: int) -> int:
        return (self.first + link) % len(self.digits)

    def follow(self, answer: Answer) -> dict[str, np.ndarray] | None:
        if answer.link + 1 == len(self.digits):
            return None
        return {self.name: self.digits[self.digit(answer.link + 1)][None]}

    def finish(self, summary: Summary) -> None:
        summary.seed = 0


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_no_link_of_a_chain_leaks_into_the_next_or_into_another_chain(mnist, digits, alone, num_slots):
    """Whatever thought before it, in its own chain or beside it, each link is what its digit is by itself."""
    engine, name = make_engine(mnist, num_slots), mnist.program.inputs[0].name
    leaver = replace(ask(mnist, digits), chain=OneAfterAnother(name, digits, 0))
    engine.submit(leaver)
    for _ in range(5):
        engine.step(StepReport())
    engine.cancel(leaver, StepReport())
    chains = [OneAfterAnother(name, digits, first) for first in range(0, len(digits), 3)]
    requests = [replace(ask(mnist, digits[chain.first][None]), chain=chain) for chain in chains]
    events = run(engine, requests)
    for chain, asked in zip(chains, requests, strict=True):
        for link in range(len(digits)):
            mine = [event for event in events[asked][:-1] if event.link == link]
            assert fingerprint(mine) == alone[chain.digit(link)]
    assert engine.scheduler.num_running == 0


def test_the_shipped_threshold_saves_ticks_on_the_examples(mnist, alone):
    used = [marks[-1][1] for marks in alone]
    assert min(used) < mnist.manifest.ticks, "easy digits stop early"
    assert len(set(used)) > 2, "and not all on one tick"
