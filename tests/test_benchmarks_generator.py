"""The load generator's loops, on a service that is a coroutine."""

import asyncio
import time
from itertools import count

import numpy as np
import pytest

from benchmarks.callers import Reply
from benchmarks.generator import Outcome, Window, closed_loop, count_outcomes, open_loop
from benchmarks.server_side import ServerWatch, totals
from benchmarks.workload import Workload, load
from protos import ctm_serving_pb2 as pb


def answer(ticks_used: int = 3, best: int = 0) -> Reply:
    prediction = np.zeros(4, "<f4")
    prediction[best] = 1
    return Reply(pb.Answer(ticks_used=ticks_used, prediction=pb.Tensor(data=prediction.tobytes())))


def workload(rows: int = 4, labels: list[int] | None = None) -> Workload:
    return Workload(
        model="tiny",
        inputs={"x": np.arange(rows, dtype=np.float32)[:, None]},
        max_ticks=np.full(rows, 3, np.int32),
        labels=None if labels is None else np.array(labels),
    )


class Probe:
    """Counts how often it is told: when the window begins, and when it is over."""

    def __init__(self) -> None:
        self.calls = 0
        self.over = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        if self.calls == 2:
            self.over.set()


async def test_latency_begins_when_a_request_should_have_been_sent() -> None:
    """A service that holds the whole client up makes later requests late; their latencies say so."""

    async def ask(row: int) -> Reply:
        if row == 0:
            time.sleep(0.2)  # noqa: ASYNC251 - the client itself stalls: this is what must not be hidden
        return answer()

    times = np.array([0.0, 0.01, 0.02, 0.03])
    outcomes, window = await open_loop(ask, 4, times, seconds=0.04, patience_seconds=1.0, probe=Probe())
    part = count_outcomes(outcomes, window, workload(), None)
    latencies = np.sort(part.latencies)
    assert len(latencies) == 4
    np.testing.assert_array_less([0.16, 0.17, 0.18, 0.19], latencies)


async def test_an_open_loop_asks_no_less_of_a_slow_server() -> None:
    in_flight = most = 0
    probe = Probe()

    async def ask(_row: int) -> Reply:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await probe.over.wait()
        in_flight -= 1
        return answer()

    times = np.linspace(0, 0.09, 10)
    outcomes, window = await open_loop(ask, 4, times, seconds=0.1, patience_seconds=5.0, probe=probe)
    part = count_outcomes(outcomes, window, workload(), None)
    assert most == 10, "requests did not wait for answers"
    assert (part.thoughts, len(part.latencies)) == (0, 10), "answers after the window are late, not lost"


async def test_who_is_never_answered_has_failed() -> None:
    async def ask(row: int) -> Reply:
        if row == 1:
            await asyncio.Event().wait()
        return answer()

    outcomes, window = await open_loop(ask, 4, np.array([0.0, 0.0]), seconds=0.05, patience_seconds=0.05, probe=Probe())
    part = count_outcomes(outcomes, window, workload(), None)
    assert (part.thoughts, part.failed, part.rejected) == (1, 1, 0)


async def test_rejections_are_counted_and_have_no_latency() -> None:
    async def ask(row: int) -> Reply:
        return answer() if row % 2 else Reply(None, rejected=True)

    times = np.zeros(6)
    outcomes, window = await open_loop(ask, 2, times, seconds=0.05, patience_seconds=1.0, probe=Probe())
    part = count_outcomes(outcomes, window, workload(), None)
    assert (part.thoughts, part.rejected, part.failed, len(part.latencies)) == (3, 3, 0, 3)


async def test_a_closed_loop_keeps_as_many_in_flight_as_it_has_callers() -> None:
    rows, in_flight, seen = [], 0, set()

    async def ask(row: int) -> Reply:
        nonlocal in_flight
        in_flight += 1
        rows.append(row)
        await asyncio.sleep(0.005)
        seen.add(in_flight)
        in_flight -= 1
        return answer()

    probe = Probe()
    outcomes, window = await closed_loop(
        ask, 4, concurrency=3, seconds=0.1, warm_up_seconds=0.05, probe=probe, first_row=2
    )
    assert rows[:3] == [2, 3, 0]
    assert max(seen) == 3
    assert probe.calls == 2
    assert outcomes
    assert all(window.begin <= outcome.ended <= window.end for outcome in outcomes), "the warm-up does not count"


async def test_a_closed_loop_goes_on_until_somebody_was_answered() -> None:
    async def ask(_row: int) -> Reply:
        await asyncio.sleep(0.3)
        return answer()

    outcomes, window = await closed_loop(ask, 4, concurrency=1, seconds=0.001, warm_up_seconds=0.001, probe=Probe())
    assert len(outcomes) == 1
    assert count_outcomes(outcomes, window, workload(), None).thoughts == 1


async def test_a_closed_loop_waits_no_longer_than_its_patience() -> None:
    async def ask(_row: int) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError("nobody is answered")

    outcomes, _ = await closed_loop(
        ask, 4, concurrency=1, seconds=0.001, warm_up_seconds=0.001, probe=Probe(), patience_seconds=0.05
    )
    assert outcomes == []


async def test_a_closed_loop_ends_with_the_error_of_a_caller() -> None:
    async def ask(_row: int) -> Reply:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await closed_loop(ask, 4, concurrency=2, seconds=5, warm_up_seconds=5, probe=Probe())


def test_accuracy_counts_what_was_answered_in_time() -> None:
    outcomes = [
        Outcome(row, 0.0, ended, answer(best=best))
        for row, ended, best in [(0, 0.5, 1), (1, 0.6, 2), (2, 0.7, 0), (3, 1.5, 3)]
    ]
    part = count_outcomes(outcomes, Window(0.0, 1.0, 0.1), workload(labels=[1, 2, 3, 3]), None)
    assert (part.correct, part.labelled, part.thoughts, part.ticks) == (2, 3, 3, 9)


def test_a_workload_survives_a_file(tmp_path) -> None:
    before = workload(labels=[3, 2, 1, 0])
    before.save(tmp_path / "workload.npz")
    after = load(tmp_path / "workload.npz")
    assert (after.model, after.threshold, after.stops_by_itself) == ("tiny", float("inf"), False)
    for mine, theirs in ((before.inputs["x"], after.inputs["x"]), (before.labels, after.labels)):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"max_ticks": np.ones(3, np.int32)}, "same number of rows", id="rows differ"),
        pytest.param({"max_ticks": np.zeros(4, np.int32)}, "at least 1", id="no ticks"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    good = {"model": "tiny", "inputs": {"x": np.zeros((4, 1))}, "max_ticks": np.ones(4, np.int32)}
    with pytest.raises(ValueError, match=message):
        Workload(**good | changes)


def test_the_servers_own_numbers_are_of_one_model_and_its_process() -> None:
    text = "\n".join(
        [
            "# TYPE process_cpu_seconds_total counter",
            "process_cpu_seconds_total 12.5",
            "# TYPE ctm_occupancy_ratio histogram",
            'ctm_occupancy_ratio_sum{model="a",version="1"} 3.0',
            'ctm_occupancy_ratio_count{model="a",version="1"} 4',
            'ctm_occupancy_ratio_sum{model="a",version="2"} 1.0',
            'ctm_occupancy_ratio_count{model="a",version="2"} 4',
            'ctm_occupancy_ratio_sum{model="b",version="1"} 100.0',
            'ctm_occupancy_ratio_count{model="b",version="1"} 100',
        ]
    )
    found = totals(text, "a")
    assert found["process_cpu_seconds_total"] == 12.5
    assert (found["ctm_occupancy_ratio_sum"], found["ctm_occupancy_ratio_count"]) == (4.0, 8)


async def test_what_happened_between_two_looks_is_their_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = ServerWatch("http://127.0.0.1:1/metrics", "a")
    numbers = count(1)

    def fetch() -> str:
        n = next(numbers)
        return (
            f"# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {n}\n# TYPE ctm_occupancy_ratio"
            f' histogram\nctm_occupancy_ratio_sum{{model="a"}} {n}\nctm_occupancy_ratio_count{{model="a"}} {4 * n}\n'
        )

    monkeypatch.setattr(watch, "_fetch", fetch)
    await watch.look()
    await watch.look()
    assert (watch.between().cpu_seconds, watch.between().occupancy) == (1.0, 0.25)


def test_metrics_are_only_read_over_http() -> None:
    with pytest.raises(ValueError, match="http"):
        ServerWatch("file:///etc/passwd", "a")
