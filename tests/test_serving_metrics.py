"""From what a step did to what Prometheus reads."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from fake_bundle import fake_bundle
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample
from scripted import ScriptedChain
from scripted_diffusion import BUNDLE as DIFFUSION

from serving import errors
from serving.bundle import load_bundle
from serving.diffusion.chain import DiffusionChain
from serving.diffusion.options import DiffusionOptions
from serving.diffusion.series import NOISE_RANGES
from serving.engine import StepReport
from serving.metrics import REASONS, Metrics, metrics_table
from serving.progress import Progress
from serving.request import Request, StopPolicy, StopReason
from serving.scheduler import Ended
from serving.waiting import Thought

MODEL = {"model": "fake", "version": "1"}
REQUEST = Request(request_id="", inputs={}, rows=1, stop=StopPolicy(max_ticks=20), abstain_below=0.5, arrival=100.0)
PER_MODEL = 23
OF_THE_STORE = 1


class Observed:
    """Metrics that have seen some steps of `fake/1`."""

    def __init__(self, *reports: StepReport, running: int = 0, waiting: int = 0) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        for report in reports:
            self.metrics.observe("fake", 1, report, running, waiting, 4)

    def __getitem__(self, name: str) -> float | None:
        return self.get(name)

    def get(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {**MODEL, **labels})


def samples_of_models(seen: Observed) -> list[Sample]:
    found = [sample for family in seen.registry.collect() for sample in family.samples]
    return [sample for sample in found if "model" in sample.labels]


def thought(admission_time: float = 101.0) -> Thought:
    return Thought(REQUEST, 0, admitted=admission_time < inf, admission_time=admission_time)


def ended(reason: StopReason, **fields: object) -> StepReport:
    defaults = {"ticks_used": 7, "answer_tick": 5, "certainty": 0.875}
    return StepReport(ended=[Ended(thought(), reason, **{**defaults, **fields})], now=103.0)


@pytest.mark.parametrize(
    ("reason", "saved", "wasted"),
    [
        pytest.param(StopReason.CERTAIN, 13, 0, id="certain"),
        pytest.param(StopReason.ENERGY, 13, 0, id="energy"),
        pytest.param(StopReason.MODEL_DONE, 13, 0, id="model done"),
        pytest.param(StopReason.TICK_BUDGET, 0, 0, id="budget"),
        pytest.param(StopReason.DEADLINE, 0, 0, id="deadline"),
        pytest.param(StopReason.DIVERGED, 0, 0, id="diverged"),
        pytest.param(StopReason.CANCELLED, 0, 7, id="cancelled"),
    ],
)
def test_ticks_used_saved_and_wasted_by_stop_reason(reason, saved, wasted):
    seen = Observed(ended(reason))
    assert seen["ctm_ticks_saved_total"] == saved
    assert seen["ctm_ticks_wasted_total"] == wasted
    assert seen.get("ctm_thoughts_total", stop_reason=reason.name) == 1
    assert seen.get("ctm_ticks_used_sum", stop_reason=reason.name) == 7
    assert seen.get("ctm_ticks_used_bucket", stop_reason=reason.name, le="6.0") == 0
    assert seen.get("ctm_ticks_used_bucket", stop_reason=reason.name, le="8.0") == 1
    others = [other.name for other in StopReason if other is not reason]
    assert [seen.get("ctm_thoughts_total", stop_reason=name) for name in others] == [0] * 6


@pytest.mark.parametrize(
    ("report", "answers", "abstentions", "certainty"),
    [
        pytest.param(ended(StopReason.CERTAIN), 1, 0, 0.875, id="certain"),
        pytest.param(ended(StopReason.TICK_BUDGET, certainty=0.25), 1, 1, 0.25, id="not certain enough"),
        pytest.param(ended(StopReason.DIVERGED), 1, 1, 0.875, id="diverged"),
        pytest.param(
            ended(StopReason.DEADLINE, ticks_used=0, answer_tick=0, certainty=0.0), 1, 1, None, id="never ticked"
        ),
        pytest.param(ended(StopReason.CANCELLED, certainty=0.25), 0, 0, None, id="nobody is there to be told"),
    ],
)
def test_what_an_answer_counts_as(report, answers, abstentions, certainty):
    seen = Observed(report)
    assert seen["ctm_abstentions_total"] == abstentions
    assert seen["ctm_think_seconds_count"] == answers
    assert seen["ctm_think_seconds_sum"] == 2.0 * answers, "from admission at 101 to the answer at 103"
    assert seen["ctm_stop_certainty_count"] == (certainty is not None)
    assert seen["ctm_stop_certainty_sum"] == (certainty or 0)


def test_a_thought_that_never_ran_is_counted_but_says_nothing_about_ticks():
    waited = Ended(thought(inf), StopReason.DEADLINE)
    seen = Observed(StepReport(ended=[waited], now=103.0))
    assert seen.get("ctm_thoughts_total", stop_reason="DEADLINE") == 1
    assert seen.get("ctm_ticks_used_count", stop_reason="DEADLINE") == 0
    assert seen["ctm_think_seconds_count"] == 0


def test_times_of_a_step():
    report = StepReport(
        admitted=[thought(100.5), thought(102.0)],
        first_ticks=[REQUEST],
        num_ticked=3,
        encode_seconds=0.25,
        tick_seconds=0.5,
        now=104.0,
    )
    seen = Observed(report, running=3, waiting=9)
    assert (seen["ctm_queue_seconds_count"], seen["ctm_queue_seconds_sum"]) == (2, 2.5)
    assert (seen["ctm_first_tick_seconds_count"], seen["ctm_first_tick_seconds_sum"]) == (1, 4.0)
    assert (seen["ctm_encode_seconds_sum"], seen["ctm_tick_seconds_sum"]) == (0.25, 0.5)
    assert (seen["ctm_occupancy_ratio_count"], seen["ctm_occupancy_ratio_sum"]) == (1, 0.75)
    assert (seen["ctm_thoughts_running"], seen["ctm_thoughts_waiting"]) == (3, 9)


def test_a_step_that_did_nothing_observes_nothing():
    seen = Observed(StepReport())
    for name in (
        "tick_seconds",
        "encode_seconds",
        "occupancy_ratio",
        "queue_seconds",
        "request_ticks",
        "request_seconds",
    ):
        assert seen[f"ctm_{name}_count"] == 0


def test_ticks_of_a_request_are_those_of_all_its_rows_and_its_time_lasts_until_the_last():
    progress = Progress(REQUEST)
    progress.ticks_used = 300
    seen = Observed(StepReport(finished=[progress], now=103.5))
    assert (seen["ctm_request_ticks_count"], seen["ctm_request_ticks_sum"]) == (1, 300)
    assert (seen["ctm_request_seconds_count"], seen["ctm_request_seconds_sum"]) == (1, 3.5)


def chain(*links: int) -> Progress:
    """A request that ended, of rows with these many answers."""
    asked = replace(REQUEST, rows=len(links), chain=ScriptedChain())
    progress = Progress(asked)
    progress.links = list(links)
    return progress


def test_links_of_chains_are_counted_by_row_and_single_thoughts_are_not():
    single = Observed(StepReport(finished=[Progress(REQUEST)]))
    assert single["ctm_chain_links_count"] is None
    seen = Observed(StepReport(finished=[chain(3, 40)]), StepReport(finished=[chain(1)]))
    assert (seen["ctm_chain_links_count"], seen["ctm_chain_links_sum"]) == (3, 44)
    seen.metrics.forget("fake", 1)
    assert seen["ctm_chain_links_count"] is None


@pytest.mark.parametrize(("name", "links"), [("mnist", None), ("kjv", 0.0), ("digits-diffusion", 0.0)])
def test_models_of_chains_alone_have_their_links_counted_from_the_start(name, links, model_store):
    registry = CollectorRegistry()
    Metrics(registry).model_info(load_bundle(model_store / name / "1"), "onnx")
    assert registry.get_sample_value("ctm_chain_links_count", {"model": name, "version": "1"}) == links


def test_a_link_that_nobody_is_answered_is_a_thought_and_no_abstention():
    waited = Ended(Thought(REQUEST, 0, link=4), StopReason.DEADLINE)
    seen = Observed(StepReport(ended=[waited], now=103.0))
    assert seen.get("ctm_thoughts_total", stop_reason="DEADLINE") == 1
    assert seen["ctm_abstentions_total"] == 0


def test_a_link_waits_for_its_slot_since_the_answer_before():
    link = Thought(REQUEST, 0, admitted=True, admission_time=150.0, link=2, link_time=149.5)
    seen = Observed(StepReport(admitted=[link], now=150.0))
    assert (seen["ctm_queue_seconds_count"], seen["ctm_queue_seconds_sum"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(errors.InvalidRequest(""), "invalid", id="invalid"),
        pytest.param(errors.UnknownModel(""), "unknown_model", id="unknown model"),
        pytest.param(errors.QueueFull("", retry_after_seconds=1.0), "queue_full", id="queue full"),
        pytest.param(errors.Unavailable(""), "unavailable", id="draining"),
        pytest.param(errors.DeadlineExceeded(""), "deadline", id="deadline"),
        pytest.param(errors.BackendFailed(""), "backend_failed", id="backend"),
        pytest.param(errors.ServingError(""), "backend_failed", id="anything else"),
    ],
)
def test_rejections_by_reason(error, reason):
    seen = Observed(StepReport(failures=[error]))
    seen.metrics.rejected("fake", 1, error)
    counted = {name: seen.get("ctm_rejections_total", reason=name) for name in REASONS.values()}
    assert counted == {name: 2.0 * (name == reason) for name in REASONS.values()}


def test_bundles_that_must_not_serve_by_reason():
    seen = Observed()
    seen.metrics.refused("damaged")
    counted = {
        reason: seen.registry.get_sample_value("ctm_bundles_refused_total", {"reason": reason})
        for reason in errors.REFUSALS
    }
    assert counted == {reason: reason == "damaged" for reason in errors.REFUSALS}


def test_a_model_that_is_not_served_has_its_rejections_and_no_other_series():
    seen = Observed()
    seen.metrics.rejected("", 0, errors.UnknownModel(""))
    seen.metrics.rejected("", 0, errors.UnknownModel(""))
    (sample,) = samples_of_models(seen)
    assert sample.name == "ctm_rejections_total"
    assert sample.labels == {"model": "", "version": "0", "reason": "unknown_model"}
    assert sample.value == 2


@pytest.mark.parametrize(
    "write",
    [pytest.param(exposition.generate_latest, id="text"), pytest.param(openmetrics.generate_latest, id="OpenMetrics")],
)
def test_the_page_does_not_say_when_each_series_began(write):
    page = write(Observed(ended(StopReason.CERTAIN)).registry).decode()
    assert 'ctm_ticks_saved_total{model="fake",version="1"} 13.0' in page
    assert "ctm_ticks_used_bucket" in page
    assert "_created" not in page


def test_a_metric_is_registered_once():
    seen = Observed()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(seen.registry)


def test_merged_ticks():
    seen = Observed()
    seen.metrics.merged("fake", 1, 3)
    seen.metrics.merged("fake", 1, 2)
    assert seen["ctm_ticks_merged_total"] == 5


def test_a_model_is_announced_and_forgotten():
    seen = Observed(ended(StopReason.CERTAIN))
    seen.metrics.model_info(fake_bundle(), "onnx")
    seen.metrics.observe("fake", 2, StepReport(), 0, 0, 4)
    assert seen.get("ctm_model_info", family="none", task="nothing", backend="onnx", ticks="20") == 1
    seen.metrics.forget("fake", 1)
    seen.metrics.forget("fake", 1)
    assert {sample.labels["version"] for sample in samples_of_models(seen)} == {"2"}


def test_a_model_that_is_announced_shows_zeros_at_once():
    seen = Observed()
    seen.metrics.model_info(fake_bundle(), "onnx")
    assert seen["ctm_ticks_saved_total"] == 0
    assert seen.get("ctm_thoughts_total", stop_reason="CERTAIN") == 0


def test_reverse_steps_are_counted_by_the_noise_that_they_began_with():
    seen = Observed()
    seen.metrics.model_info(fake_bundle(), "onnx")
    assert seen.get("ctm_reverse_steps_total", noise="0-20%") is None, "it draws no images"
    how = DiffusionOptions(steps=4, eta=0.0)
    labels = np.zeros(1, np.int64)
    chain = DiffusionChain(DIFFUSION.diffusion, how, labels, seed=0, stride_above=0.0, predictions=False)
    asked = replace(REQUEST, inputs=chain.begin(), chain=chain)
    low = {"level": np.array([3])}
    for link, inputs, reason, certainty in (
        (0, None, StopReason.CERTAIN, 0.9),
        (1, low, StopReason.TICK_BUDGET, 0.4),
        (1, low, StopReason.DEADLINE, 0.6),
        (1, low, StopReason.DIVERGED, 0.6),
        (1, low, StopReason.CANCELLED, 0.6),
    ):
        link_thought = Thought(asked, 0, admitted=True, admission_time=101.0, link=link, link_inputs=inputs)
        end = Ended(link_thought, reason, ticks_used=7, answer_tick=5, certainty=certainty)
        seen.metrics.observe("fake", 1, StepReport(ended=[end], finish_seconds=0.25, now=103.0), 0, 0, 4)
    steps = {noise: seen.get("ctm_reverse_steps_total", noise=noise) for noise in NOISE_RANGES}
    base = {noise: seen.get("ctm_reverse_step_abstentions_total", noise=noise) for noise in NOISE_RANGES}
    assert {noise: count for noise, count in steps.items() if count} == {"20-40%": 2, "80-100%": 1}
    assert {noise: count for noise, count in base.items() if count} == {"20-40%": 1}
    assert seen["ctm_finish_seconds_sum"] == 1.25
    seen.metrics.forget("fake", 1)
    assert seen.get("ctm_reverse_steps_total", noise="20-40%") is None


def test_two_servers_of_one_process_do_not_share_numbers():
    one, other = Observed(ended(StopReason.CERTAIN)), Observed()
    assert one["ctm_ticks_saved_total"] == 13
    assert other["ctm_ticks_saved_total"] is None


def test_every_metric_is_named_for_its_unit_and_stands_in_the_table():
    registry = CollectorRegistry()
    Metrics(registry)
    families = list(registry.collect())
    table = metrics_table()
    assert len(families) == len(table.splitlines()) - 2 == PER_MODEL + OF_THE_STORE
    for family in families:
        assert family.name.startswith("ctm_")
        assert f"`{family.name}" in table
        assert family.documentation.endswith(".")
