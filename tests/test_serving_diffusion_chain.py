"""A chain of reverse steps, by hand and through the engine: what each step is told, and what becomes of the image."""

from math import inf
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedBackend
from scripted_diffusion import BUNDLE, HEIGHT, SPOILT, TICKS, WIDTH, WILD, ScriptedDiffusion, certainty_of

from ctm.diffusion import reverse
from serving.chance import Chance
from serving.diffusion.chain import DiffusionChain
from serving.diffusion.levels import certain_stride, planned_levels
from serving.diffusion.options import DiffusionOptions
from serving.engine import Engine, StepReport
from serving.errors import BackendFailed
from serving.events import Answer, Event, Failure, Summary, Tick
from serving.request import AnswerRule, ChainEnd, Request, StopPolicy, StopReason, StreamPolicy
from serving.scheduler import Scheduler

MODEL = BUNDLE.diffusion
PLAIN, QUICK = 0, 1
SHAPE = (HEIGHT, WIDTH)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chain_of(*labels: int, seed: int = 7, above: float = 0.0, predictions: bool = False, **options: Any) -> Any:
    how = DiffusionOptions(**{"steps": 4, "eta": 0.5, **options})
    made = np.array(labels, np.int64)
    return DiffusionChain(MODEL, how, made, seed=seed, stride_above=above, predictions=predictions)


def asked(*labels: int, below: float = 0.0, deadline: float = inf, every: int = 0, **fields: Any) -> Request:
    stop = {name: fields.pop(name) for name in ("certainty_threshold", "max_ticks") if name in fields}
    rule = fields.pop("answer_rule", AnswerRule.MOST_CERTAIN)
    chain = chain_of(*labels, above=below, **fields)
    return Request(
        request_id="r",
        inputs=chain.begin(),
        rows=len(labels),
        stop=StopPolicy(**{"max_ticks": TICKS, **stop}),
        stream=StreamPolicy(every=every),
        answer_rule=rule,
        abstain_below=below,
        deadline=deadline,
        chain=chain,
    )


def make_engine(num_slots: int = 4, admissions: int = 8, clock: Clock | None = None) -> Engine:
    scheduler = Scheduler(
        num_slots=num_slots, max_waiting=64, admissions_per_plan=admissions, positions=BUNDLE.program.positions
    )
    backend = ScriptedDiffusion(num_slots, admissions)
    return Engine(backend, scheduler, clock=clock or Clock(), deadline_margin_seconds=0.0)


def run(
    engine: Engine, *requests: Request, read: bool = True, reasons: list[StopReason] | None = None
) -> dict[Request, list[Event]]:
    """Step until idle; every request's events.

    Args:
        reasons: of thoughts that ended are added to it.
    """
    events: dict[Request, list[Event]] = {}
    for request in requests:
        engine.submit(request)
        events[request] = []
    for _ in range(1000):
        if engine.idle:
            return events
        report = StepReport()
        engine.step(report)
        if reasons is not None:
            reasons += [end.reason for end in report.ended]
        for request, event in report.events:
            events[request].append(event)
            if read and isinstance(event, Answer):
                engine.read(request, 1)
    raise AssertionError("still not idle after 1000 steps")


def answers(events: list[Event], row: int = 0) -> list[Answer]:
    return [event for event in events if isinstance(event, Answer) and event.row == row]


def drawn(label: int, *, row: int = 0, seed: int = 7, below: float = 0.0, ticks: int = TICKS) -> list[np.ndarray]:
    """The images of a row as the model's arithmetic has them: the first, and after each of four steps."""
    chance = Chance(seed)
    noise = [chance.normal(row, link, HEIGHT * WIDTH).reshape(SHAPE) for link in range(5)]
    images, guide = [noise[0]], 0.0 if certainty_of(label, ticks) < below else float(ticks)
    for step in range(1, 5):
        images.append(0.5 * images[-1] + guide + (0.5 * noise[step] if step < 4 else 0.0))
    return images


# ---- levels


@pytest.mark.parametrize("levels", [2, 3, 10, 200, 1000])
def test_the_plan_is_that_of_the_sampler(levels):
    for steps in {1, 2, 3, 7, 20, levels - 1, levels} & set(range(1, levels + 1)):
        assert planned_levels(levels, steps) == (*reverse.spaced_levels(levels, steps).tolist(), reverse.CLEAN)


def test_the_strides_are_those_of_the_sampler():
    for certainty in np.linspace(0, 1, 21):
        for threshold in (0.0, 0.3, 0.9, 1.0):
            for most in (1, 2, 5):
                expected = reverse.certain_stride(certainty, threshold, most)
                assert certain_stride(certainty, threshold, most) == expected


# ---- the chain


def test_it_begins_with_noise_of_its_own_and_what_the_first_step_is_told():
    first = chain_of(3, 1).begin()
    assert {name: values.shape for name, values in first.items()} == {
        **dict.fromkeys(("level", "label", "next_level", "eta"), (2,)),
        **dict.fromkeys(("image", "noise"), (2, *SHAPE)),
        "links": (2, 1),
    }
    assert (first["level"].tolist(), first["next_level"].tolist()) == ([9, 9], [6, 6])
    assert (first["label"].tolist(), first["eta"].tolist(), first["links"].tolist()) == ([3, 1], [0.5, 0.5], [[0], [0]])
    np.testing.assert_array_equal(first["image"][1], Chance(7).normal(1, 0, 6).reshape(SHAPE))
    np.testing.assert_array_equal(first["noise"][1], Chance(7).normal(1, 1, 6).reshape(SHAPE))


def test_a_single_step_keeps_its_prediction_and_needs_no_noise():
    chain = chain_of(0, steps=1)
    first = chain.begin()
    assert (first["level"].tolist(), first["next_level"].tolist()) == ([9], [-1])
    assert not first["noise"].any()
    (one,) = answers(run(make_engine(), asked(0, steps=1)).popitem()[1])
    assert one.prediction is not None
    assert (one.chain_end, one.outputs["level"]) == (ChainEnd.MAX_LINKS, -1)


# ---- through the engine


def test_each_reverse_step_is_a_thought_with_its_own_image():
    request = asked(QUICK)
    events = run(make_engine(), request)[request]
    *links, summary = events
    assert [answer.link for answer in links] == [0, 1, 2, 3]
    assert [int(answer.outputs["level"]) for answer in links] == [6, 3, 0, -1]
    assert [answer.chain_end for answer in links] == [ChainEnd.GOES_ON] * 3 + [ChainEnd.MAX_LINKS]
    assert all(answer.prediction is None for answer in links)
    before, *expected = drawn(QUICK)
    for answer, image, level in zip(links, expected, (9, 6, 3, 0), strict=True):
        np.testing.assert_allclose(answer.outputs["image"], image, rtol=1e-5)
        np.testing.assert_allclose(answer.outputs["estimate"], before - level, rtol=1e-5)
        before = image
    assert isinstance(summary, Summary)
    assert (summary.seed, summary.ticks_used) == (7, 16)
    np.testing.assert_array_equal(summary.outputs["image"][0], links[-1].outputs["image"])
    np.testing.assert_array_equal(summary.outputs["estimate"][0], links[-1].outputs["estimate"])


@pytest.mark.parametrize(
    ("every", "shown"),
    [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2, 3]), (0, [3]), (9, [3])],
    ids=["each", "every second", "every third and the last", "the last", "beyond the end"],
)
def test_which_links_show_their_image(every, shown):
    request = asked(PLAIN)
    chain = chain_of(PLAIN, every=every)
    request = Request(request_id="", inputs=chain.begin(), rows=1, stop=StopPolicy(max_ticks=2), chain=chain)
    found = answers(run(make_engine(), request)[request])
    assert [answer.link for answer in found if "image" in answer.outputs] == shown
    assert [answer.link for answer in found if "estimate" in answer.outputs] == shown


def test_what_the_step_before_handed_on_is_fed_back():
    class Watched(ScriptedDiffusion):
        def admit(self, slots: Any, inputs: Any) -> None:
            super().admit(slots, inputs)
            seen.append(inputs["links"][0, 0])

    seen: list[float] = []
    scheduler = Scheduler(num_slots=2, max_waiting=8, admissions_per_plan=2, positions=BUNDLE.program.positions)
    run(Engine(Watched(2, 2), scheduler, clock=Clock()), asked(PLAIN))
    assert seen == [0, 1, 2, 3]


def test_each_row_and_link_abstains_by_itself():
    plain, quick = certainty_of(PLAIN, TICKS), certainty_of(QUICK, TICKS)
    below = (plain + quick) / 2
    request = asked(PLAIN, QUICK, below=below)
    events = run(make_engine(), request)[request]
    assert [answer.abstained for answer in answers(events, 0)] == [True] * 4
    assert [answer.abstained for answer in answers(events, 1)] == [False] * 4
    summary = events[-1]
    assert (summary.abstain_mask, summary.abstentions) == ([True, False], [4, 0])
    for row, label in enumerate((PLAIN, QUICK)):
        np.testing.assert_allclose(summary.outputs["image"][row], drawn(label, row=row, below=below)[-1], rtol=1e-5)


def test_finish_reads_the_tick_that_answers():
    last = asked(PLAIN, answer_rule=AnswerRule.LAST, max_ticks=2)
    sure = asked(QUICK, certainty_threshold=certainty_of(QUICK, 2))
    found = run(make_engine(), last, sure)
    for request, label in ((last, PLAIN), (sure, QUICK)):
        assert [answer.ticks_used for answer in answers(found[request])] == [2] * 4
        np.testing.assert_allclose(found[request][-1].outputs["image"][0], drawn(label, ticks=2)[-1], rtol=1e-5)


def test_rows_that_end_together_are_finished_together():
    engine = make_engine(4)
    run(engine, asked(PLAIN, PLAIN, PLAIN), asked(PLAIN))
    assert engine.backend.finished_rows == [4, 4, 4, 4]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_company_and_slots_change_nothing(slots):
    alone = asked(QUICK, certainty_threshold=0.5)
    crowd = [asked(*labels, seed=seed, certainty_threshold=0.7) for seed, labels in enumerate([(0, 1), (1,), (0, 0)])]
    again = asked(QUICK, certainty_threshold=0.5)
    single = run(make_engine(1), alone)[alone]
    together = run(make_engine(slots, admissions=2), crowd[0], again, *crowd[1:])[again]
    for one, other in zip(answers(single), answers(together), strict=True):
        np.testing.assert_array_equal(one.outputs["image"], other.outputs["image"])
        assert (one.ticks_used, one.certainty, one.abstained) == (other.ticks_used, other.certainty, other.abstained)


def test_a_certain_row_takes_several_planned_steps_at_once():
    """Of ten levels in ten steps: the first step goes one level, later ones as far as the thought before was sure."""
    request = asked(QUICK, PLAIN, steps=10, stride=3, below=0.0)
    events = run(make_engine(), request)[request]
    quick = certain_stride(certainty_of(QUICK, TICKS), 0.0, 3)
    plain = certain_stride(certainty_of(PLAIN, TICKS), 0.0, 3)
    assert (quick, plain) == (3, 3)
    assert [int(answer.outputs["level"]) for answer in answers(events)] == [8, 5, 2, -1]
    shy = asked(PLAIN, steps=10, stride=3, below=0.9)
    levels = [int(answer.outputs["level"]) for answer in answers(run(make_engine(), shy)[shy])]
    assert levels == list(range(8, -2, -1)), "less certain than the threshold: one at a time"


def test_a_program_without_a_finish_keeps_predictions_alone():
    plain, finished = ScriptedBackend(2), ScriptedDiffusion(2)
    assert (set(plain._kept), set(plain._began)) == ({"prediction"}, set())
    assert set(finished._kept) == {"prediction", "certainty", "guide"}
    assert set(finished._began) == {"image", "level", "label", "links", "next_level", "eta", "noise"}


# ---- what goes wrong


@pytest.mark.parametrize(
    ("label", "answer_tick"),
    [pytest.param(WILD, 0, id="its thought"), pytest.param(SPOILT, 1, id="its reverse step")],
)
def test_a_row_that_is_not_finite_ends_alone_with_its_last_good_image(label, answer_tick):
    request = asked(PLAIN, label, max_ticks=1)
    events = run(make_engine(), request)[request]
    assert [answer.stop_reason for answer in answers(events, 0)] == [StopReason.TICK_BUDGET] * 4
    *good, last = answers(events, 1)
    assert [int(answer.outputs["level"]) for answer in good] == [6, 3]
    assert (last.stop_reason, last.chain_end) == (StopReason.DIVERGED, ChainEnd.INTERRUPTED)
    assert (last.abstained, last.answer_tick, int(last.outputs["level"])) == (True, answer_tick, 3)
    np.testing.assert_array_equal(last.outputs["image"], good[-1].outputs["image"])
    np.testing.assert_array_equal(last.outputs["estimate"], good[-1].outputs["estimate"])
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert summary.abstain_mask == [False, True]
    assert np.isfinite(summary.outputs["image"]).all()


def test_a_finish_that_fails_fails_the_requests_that_it_held_and_no_other():
    engine = make_engine(4)
    slow, one, other = asked(PLAIN, max_ticks=3), asked(PLAIN, QUICK, max_ticks=2), asked(PLAIN, max_ticks=2)
    engine.backend.fail_next_finish = True
    reasons: list[StopReason] = []
    found = run(engine, slow, one, other, reasons=reasons)
    assert reasons == [StopReason.CANCELLED] * 3 + [StopReason.TICK_BUDGET] * 4
    for failed in (one, other):
        (event,) = found[failed]
        assert isinstance(event, Failure)
        assert isinstance(event.error, BackendFailed)
        assert "failed to finish a thought (RuntimeError)" in str(event.error)
    assert len(answers(found[slow])) == 4
    assert isinstance(found[slow][-1], Summary)
    assert (engine.num_requests, engine.scheduler.num_running) == (0, 0)


def test_a_deadline_in_mid_thought_takes_the_step_with_the_best_answer_so_far():
    clock = Clock()
    engine, request = make_engine(clock=clock), asked(QUICK, deadline=10.0)
    engine.submit(request)
    reports = [StepReport() for _ in range(TICKS + 3)]
    for report in reports[:-1]:
        engine.step(report)
    clock.now = 10.0
    engine.step(reports[-1])
    first, last, summary = (event for report in reports for _, event in report.events if not isinstance(event, Tick))
    assert (last.stop_reason, last.ticks_used, last.chain_end) == (StopReason.DEADLINE, 2, ChainEnd.INTERRUPTED)
    assert int(last.outputs["level"]) == 3
    noise = Chance(7).normal(0, 2, 6).reshape(SHAPE)
    np.testing.assert_allclose(last.outputs["image"], 0.5 * first.outputs["image"] + 2 + 0.5 * noise, rtol=1e-5)
    np.testing.assert_array_equal(summary.outputs["image"][0], last.outputs["image"])


def test_a_row_whose_next_link_waited_has_its_image_in_the_summary():
    clock = Clock()
    engine, request = make_engine(1, clock=clock), asked(QUICK, PLAIN, deadline=10.0)
    engine.submit(request)
    events: list[Event] = []
    for seconds in (0, 0, 0, 0, 10):
        clock.now = seconds
        report = StepReport()
        engine.step(report)
        events += [event for _, event in report.events]
    assert [answer.link for answer in answers(events, 0)] == [0]
    assert not answers(events, 1) or answers(events, 1)[0].answer_tick == 0
    summary = events[-1]
    assert isinstance(summary, Summary)
    np.testing.assert_allclose(summary.outputs["image"][0], drawn(QUICK)[1], rtol=1e-5)


def test_cancelling_in_mid_chain_frees_the_slot():
    engine, request = make_engine(1), asked(PLAIN)
    engine.submit(request)
    for _ in range(TICKS + 1):
        engine.step(StepReport())
    report = StepReport()
    engine.cancel(request, report)
    assert [end.reason for end in report.ended] == [StopReason.CANCELLED]
    assert engine.idle


def test_a_caller_who_does_not_read_parks_the_chain():
    engine = make_engine(1)
    engine._callers.chain_ahead = 2
    request = asked(PLAIN)
    assert len(answers(run(engine, request, read=False)[request])) == 2
    assert engine.num_requests == 1
    engine.read(request, 2)
    later: list[Event] = []
    while not engine.idle:
        report = StepReport()
        engine.step(report)
        later += [event for _, event in report.events]
    assert [event.link for event in later if isinstance(event, Answer)] == [2, 3]
