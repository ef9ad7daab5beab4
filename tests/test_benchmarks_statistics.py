"""The arithmetic of the measures: percentiles, arrivals, and slices added up."""

import numpy as np
import pytest

from benchmarks.arrivals import arrivals
from benchmarks.hardware import Hardware
from benchmarks.statistics import Slice, percentile, summarise


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([], 50, None, id="of nothing there is none"),
        pytest.param([3.0], 99, 3.0, id="one value is every percentile"),
        pytest.param([4.0, 1.0, 3.0, 2.0], 50, 2.0, id="the median is a value that was met"),
        pytest.param(list(range(1, 101)), 99, 99, id="p99 of a hundred leaves one above"),
        pytest.param(list(range(1, 11)), 99, 10, id="p99 of ten is the slowest"),
        pytest.param(list(range(1, 11)), 100, 10, id="p100 is the slowest"),
    ],
)
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], share: float, expected: float | None
) -> None:
    assert percentile(np.array(values, float), share) == expected


@pytest.mark.parametrize("share", [0.0, 100.5])
def test_a_share_beyond_the_values_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be in"):
        percentile(np.ones(3), share)


def test_a_summary_weighs_each_slice_by_what_it_did() -> None:
    slow = Slice(seconds=3.0, thoughts=30, ticks=300, latencies=np.full(30, 2.0), cpu_seconds=3.0, occupancy=0.5)
    fast = Slice(
        seconds=1.0,
        thoughts=70,
        ticks=350,
        latencies=np.full(70, 1.0),
        cpu_seconds=1.0,
        client_cpu_seconds=0.7,
        occupancy=1.0,
        correct=60,
        labelled=70,
        rejected=2,
    )
    summary = summarise([slow, fast])
    assert summary.thoughts_per_second == 25.0
    assert (summary.slowest, summary.fastest) == (10.0, 70.0)
    assert summary.mean_ticks == 6.5
    assert (summary.p50_seconds, summary.p99_seconds) == (1.0, 2.0)
    assert summary.cpu_seconds_per_thought == pytest.approx(0.04)
    assert summary.client_cpu_seconds_per_thought == pytest.approx(0.01), "only slices that had a client count"
    assert summary.occupancy == pytest.approx(0.625)
    assert summary.accuracy == pytest.approx(60 / 70)
    assert summary.rejected == 2


def test_a_slice_without_an_answer_has_no_ratios() -> None:
    summary = summarise([Slice(seconds=1.0, thoughts=0, ticks=0, cpu_seconds=None)])
    assert summary.thoughts_per_second == 0
    assert (summary.mean_ticks, summary.p50_seconds, summary.cpu_seconds_per_thought) == (None, None, None)


def test_a_fixed_rate_sends_at_even_distances() -> None:
    np.testing.assert_allclose(arrivals(4.0, 1.0, poisson=False, seed=0), [0.0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_poisson_arrivals_have_exponential_gaps(seed: int) -> None:
    times = arrivals(1000.0, 50.0, poisson=True, seed=seed)
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 50.0
    assert len(times) == pytest.approx(50_000, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03), "an exponential deviates by its mean"
    assert (gaps > 2 / 1000).mean() == pytest.approx(np.exp(-2), rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, again, other = (arrivals(100.0, 2.0, poisson=True, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or (first != other).any()


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_a_rate_or_time_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        arrivals(rate, seconds, poisson=False, seed=0)


@pytest.mark.parametrize(
    ("cpu", "cores", "slug"),
    [
        pytest.param(
            "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", 4, "intel-xeon-platinum-8370c-4-cores", id="xeon"
        ),
        pytest.param("AMD EPYC 7B13", 1, "amd-epyc-7b13-1-core", id="one core"),
        pytest.param("", 2, "cpu-2-cores", id="unknown"),
    ],
)
def test_hardware_names_a_file(cpu: str, cores: int, slug: str) -> None:
    hardware = Hardware(cpu=cpu, cores=cores, memory_gb=1.0, system="", versions={}, load_average=0.0)
    assert hardware.slug == slug
