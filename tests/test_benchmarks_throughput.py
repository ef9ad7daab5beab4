"""Every arm of the benchmark for a moment, on a tiny bundle: the table, the JSON, and that the arms agree."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load, models, saturation, throughput
from benchmarks.arm import fastest
from benchmarks.bare_engine import BareEngine, EngineSetting
from benchmarks.graphs import BoundGraphs, Runtime, open_session
from benchmarks.hardware import inspect
from benchmarks.lockstep import AllTicks, StopWithLast
from benchmarks.models import Subject, recorded_ticks, think_through
from benchmarks.report import wide_console
from benchmarks.server import ServerProcess
from benchmarks.statistics import Slice
from benchmarks.unrolled import unroll
from benchmarks.workload import Workload, random_workload
from serving.bundle import Bundle

ONE_THREAD = Runtime(threads=1)


@pytest.fixture(scope="module")
def bundle(tiny_store: Path) -> Bundle:
    return models.newest(tiny_store, "tiny")


@pytest.fixture(scope="module")
def asked(bundle: Bundle) -> Workload:
    """Random rows, stopped by certainty, and labels that are often right."""
    random = random_workload(bundle.manifest, rows=48, seed=3)
    return Workload(
        model=random.model,
        inputs=random.inputs,
        max_ticks=random.max_ticks,
        threshold=random.threshold,
        labels=np.arange(48) % 10,
    )


def test_every_arm_runs_and_is_reported(bundle: Bundle, asked: Workload, tmp_path: Path, capfd) -> None:
    ticks_used, right = think_through(bundle, asked)
    subject = Subject(bundle=bundle, workload=asked, mean_ticks=float(ticks_used.mean()), accuracy=float(right.mean()))
    plan = throughput.Plan(arms="abcdefg", slice_seconds=0.25, rounds=1, trial_seconds=0.005, warm_up_seconds=0.0)
    console = wide_console()
    found = {"tiny": throughput.measure_and_tell(subject, plan, tmp_path, console)}
    document = throughput.describe(inspect(), found)
    path = throughput.save(document, inspect(), tmp_path / "results")

    assert json.loads(path.read_text()) == json.loads(json.dumps(document))
    assert path.name.startswith("throughput_")
    arms = found["tiny"]["arms"]
    assert set(arms) == set("abcdefg")
    for key, arm in arms.items():
        assert arm["thoughts_per_second"] > 0, key
        assert arm["failed"] == arm["rejected"] == 0, key
        assert (arm["p50_seconds"] is None) == (key == "f"), key
        assert (arm["client_cpu_seconds_per_thought"] is None) == (key in "abef"), key
    assert arms["a"]["mean_ticks"] == bundle.manifest.ticks
    assert arms["e"]["ratio_to_f"] > 0
    told = capfd.readouterr().err
    assert "lockstep batches, all ticks" in told
    assert "c against e" in told


def test_all_ways_to_answer_agree(bundle: Bundle, asked: Workload) -> None:
    """The unrolled graph and the loop give the same answers; the engine uses the same ticks as lockstep rows do."""
    ticks = bundle.manifest.ticks
    rows = np.arange(8)
    whole = Workload(model=asked.model, inputs=asked.inputs, max_ticks=asked.max_ticks)
    unrolled = AllTicks(bundle, whole, open_session(unroll(bundle, ticks), ONE_THREAD), 8, ticks)
    looped = StopWithLast(whole, BoundGraphs(bundle, 8, ONE_THREAD))
    np.testing.assert_allclose(unrolled.think(rows).predictions, looped.think(rows).predictions, atol=1e-4)

    ticks_used, right = think_through(bundle, asked)
    assert ticks_used.min() < ticks_used.max(), "rows stop at different ticks"
    engine = BareEngine(bundle, asked, EngineSetting(num_slots=4, encode_rows_per_step=2, runtime=ONE_THREAD))
    part, seconds = engine.run(0.3), 0.3
    while part.thoughts < len(asked):  # the machine was too busy for every row to be seen
        seconds *= 2
        part = engine.run(seconds)
    assert part.occupancy is not None
    assert 0.9 < part.occupancy <= 1
    assert part.ticks / part.thoughts == pytest.approx(ticks_used.mean(), rel=0.25)
    assert part.correct / part.labelled == pytest.approx(right.mean(), abs=0.25)


def test_the_bare_engine_goes_on_where_its_last_run_ended(bundle: Bundle, asked: Workload) -> None:
    """One slot answers in the order of asking: after the 64 that fill the engine, one thought a run, none left out."""
    begin = time.perf_counter()
    engine = BareEngine(bundle, asked, EngineSetting(num_slots=1, encode_rows_per_step=1, runtime=ONE_THREAD))
    ticks_used, _ = think_through(bundle, asked)
    ticks, paused, latest = [], 0.0, 0.0
    for _ in range(4):
        part = engine.run(1e-9)
        ticks.append(part.ticks)
        latest = max(latest, part.latencies.max())
        pause = time.perf_counter()
        time.sleep(0.1)
        paused += time.perf_counter() - pause
    assert ticks == ticks_used[(64 + np.arange(4)) % len(asked)].tolist()
    assert latest < time.perf_counter() - begin - paused, "between two runs nobody's latency grows"


def test_the_fastest_candidate_is_kept() -> None:
    class Fixed:
        key = title = setting = ""

        def __init__(self, rate: int) -> None:
            self.rate = rate

        def run(self, seconds: float) -> Slice:
            return Slice(seconds=seconds, thoughts=self.rate, ticks=0, cpu_seconds=0.0)

    assert fastest([3, 9, 5], Fixed, 0.1).rate == 9


def test_recorded_ticks_are_stretched_to_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "ticks.json"
    path.write_text(json.dumps({"thoughts_by_ticks_used": [0, 50, 0, 50]}))
    ticks = recorded_ticks(50, 4000, seed=1, path=path)
    assert set(ticks.tolist()) == {25, 50}
    assert (ticks == 25).mean() == pytest.approx(0.5, abs=0.05)


def test_the_committed_distribution_is_whole() -> None:
    recorded = json.loads(models.RECORDED.read_text())
    counts = np.array(recorded["thoughts_by_ticks_used"])
    assert counts.sum() == 10_000, "one thought for each digit of the test set"
    assert (counts * np.arange(1, len(counts) + 1)).sum() / counts.sum() == pytest.approx(recorded["mean_ticks"])


def test_a_load_and_a_sweep_against_a_real_server(bundle: Bundle, asked: Workload, tmp_path: Path, capfd) -> None:
    asked.save(tmp_path / "workload.npz")
    with ServerProcess(bundle.path.parent.parent, "tiny") as server:
        arguments = ["--address", server.address, "--model", "tiny", "--rate", "50", "--poisson"]
        seconds = 0.5
        while status := load.main([*arguments, "--seconds", str(seconds)]):
            seconds *= 4  # the machine was too busy for an answer in so short a window
            assert seconds < 60, "nothing is ever answered"
            capfd.readouterr()
        summary = json.loads(capfd.readouterr().out)
        parts = saturation.sweep(server, tmp_path / "workload.npz", [0.1], seconds=1.0, seed=1)
    assert status == 0
    assert summary["thoughts"] > 0
    assert parts[0][0] == "64 in flight"
    assert all(part.thoughts > 0 for _, part in parts)


def test_a_server_that_is_not_there_is_one_line(capfd) -> None:
    assert load.main(["--address", "127.0.0.1:1", "--model", "tiny", "--seconds", "0.2"]) == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"arms": "az"}, "arms must be of a to g, got z", id="unknown arm"),
        pytest.param({"rounds": 0}, "rounds must be at least 1", id="no rounds"),
        pytest.param({"slice_seconds": 0.0}, "more than 0", id="no time"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        throughput.Plan(**options)
