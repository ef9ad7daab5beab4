"""Stopping by energy, from training to the answer: a small model of digits, trained, exported, asked over a channel."""

import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from served import Served, served

from ctm.energy import StopRule, stop
from ctm.tasks import load_task
from ctm.tasks.config import TaskConfig
from ctm.training.cli import main as train
from export.cli import main as export
from serving.client import Answer, AsyncClient, StopReason, Tick

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TICKS, ROWS = 6, 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model, trained for some seconds."""
    folder = tmp_path_factory.mktemp("energy")
    options = {
        "output-dir": folder,
        "threads": 1,
        "updates": 200,
        "optimiser.warmup-updates": 10,
        "optimiser.learning-rate": 1e-2,
        "report.evaluate-every": 200,
        "report.checkpoint-every": 200,
        "model.ticks": TICKS,
        "model.width": 32,
        "model.energy-hidden": 8,
        "loss.energy-scale": 0.02,
    }
    typed = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    assert train([str(CONFIGS / "digits.toml"), *typed]) == 0
    assert export([str(folder / "digits"), "--store", str(folder / "store"), "--agreement-rows", "32"]) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """Of the test rows."""
    inputs, _ = load_task(TaskConfig(name="digits")).test.take(torch.arange(ROWS))
    return {"image": inputs.numpy()}


async def test_energy_stops_thoughts_and_saves_real_ticks(store: Path, digits: dict[str, Any]):
    # In one slot every tick is one row's; and none gives way to a newer one, however late it is sent.
    one_slot = ("--engine.num-slots", "1", "--stream-buffer", "1000")
    async with served(store, *one_slot) as server, AsyncClient(server.address) as client:
        async with client.think(
            "digits", digits, disabled=[StopReason.CERTAIN, StopReason.ENERGY], top_k=1
        ) as thinking:
            events = [event async for event in thinking]
        seen = _Seen(events)
        manifest = await client.get_model("digits")
        assert max(manifest.quality.energy.separation) > 0.6, "low energy means right"

        threshold = _between(seen.energy_NT, 0.5)
        delta = _between(np.abs(np.diff(seen.energy_NT, axis=1)), 0.3)
        for rule, options in (
            (StopRule(energy=threshold), {"energy_threshold": threshold}),
            (StopRule(energy=threshold, min_ticks=4), {"energy_threshold": threshold, "min_ticks": 4}),
            (StopRule(delta=delta), {"energy_threshold": -np.inf, "energy_delta": delta}),
            (StopRule(energy=np.inf, min_ticks=3), {"energy_threshold": np.inf, "min_ticks": 3}),
        ):
            before = _metrics(server)
            result = await client.answer("digits", digits, disabled=[StopReason.CERTAIN], **options)
            counted = {name: value - before.get(name, 0) for name, value in _metrics(server).items()}
            expected = stop(seen.certainty_NT, seen.energy_NT, rule)
            answers = sorted(result.answers, key=lambda answer: answer.row)
            by_energy = [answer.stop_reason == StopReason.ENERGY for answer in answers]
            assert [answer.ticks_used for answer in answers] == expected.used.tolist(), rule
            assert [answer.answer_tick - 1 for answer in answers] == expected.answer.tolist(), rule
            assert by_energy == expected.by_energy.tolist(), rule
            assert sum(by_energy) > 0, "energy stopped somebody"
            assert min(answer.ticks_used for answer in answers) >= rule.min_ticks

            used = int(expected.used.sum())
            assert used < ROWS * TICKS
            assert counted["ctm_tick_seconds_count"] == used, "ticks that were saved were not run"
            assert counted["ctm_thoughts_total ENERGY"] == sum(by_energy)
            assert counted["ctm_thoughts_total CERTAIN"] == 0
            assert counted["ctm_thoughts_total TICK_BUDGET"] == ROWS - sum(by_energy)
            saved = sum(TICKS - answer.ticks_used for answer in answers if answer.stop_reason == StopReason.ENERGY)
            assert counted["ctm_ticks_saved_total"] == saved
            assert all(answer.energy is not None for answer in answers)


async def test_a_request_may_switch_off_either_rule_that_ships(store: Path, digits: dict[str, Any]):
    async with served(store) as server, AsyncClient(server.address) as client:
        reasons = {}
        for off in ((), (StopReason.CERTAIN,), (StopReason.ENERGY,), (StopReason.CERTAIN, StopReason.ENERGY)):
            # Both rules fire at the first tick.
            result = await client.answer("digits", digits, threshold=0.0, energy_threshold=1e9, disabled=off)
            reasons[off] = {answer.stop_reason for answer in result.answers}
    assert reasons == {
        (): {StopReason.CERTAIN},
        (StopReason.CERTAIN,): {StopReason.ENERGY},
        (StopReason.ENERGY,): {StopReason.CERTAIN},
        (StopReason.CERTAIN, StopReason.ENERGY): {StopReason.TICK_BUDGET},
    }


class _Seen:
    """What the server told of every row at every tick."""

    def __init__(self, events: Sequence[object]) -> None:
        self.certainty_NT, self.energy_NT = np.zeros((2, ROWS, TICKS), np.float32)
        ticks = [event for event in events if isinstance(event, Tick)]
        assert len(ticks) == ROWS * TICKS, "no rule stopped a thought"
        for tick in ticks:
            place = tick.row, tick.tick - 1
            self.certainty_NT[place], self.energy_NT[place] = tick.certainty, tick.energy
        assert {event.ticks_used for event in events if isinstance(event, Answer)} == {TICKS}


def _between(values: np.ndarray, share: float) -> float:
    """A number with that share of the values below it, and far from the next: nothing hangs on a last bit."""
    ordered = np.unique(values)
    gaps = np.diff(ordered)
    place = int(share * len(gaps))
    near = slice(max(0, place - 5), place + 5)
    widest = near.start + int(gaps[near].argmax())
    return float(np.float32((ordered[widest] + ordered[widest + 1]) / 2))


def _metrics(server: Served) -> dict[str, float]:
    """Every number of the metrics page, by name and stop reason."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        " ".join(filter(None, (sample.name, sample.labels.get("stop_reason")))): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }
