"""`python -m benchmarks.two_agents`: whether each signal about another's mind does what it says.

Trains an agent that watches another one and may help it, for each seed, and one that is not rewarded for helping. Looks
at both tick by tick on meetings that are new, then takes one signal after the other away from the trained agent. Prints
tables, then everything as one line of JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.hardware import inspect
from benchmarks.report import wide_console
from benchmarks.two_agents_plot import plot_two_agents
from ctm.diffusion.companion import Companion, CompanionConfig, lesioned, train_companion
from ctm.diffusion.mirror import selfless_reward
from ctm.diffusion.synaptic_empathy import resonance
from ctm.diffusion.two_agents import Episodes, best_guess, directions, meet, progress
from export.commit import describe_commit

# Shapes: B rows, T ticks, E emotions.

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
ARMS = {
    "all": "all signals",
    "goal": "goal not heeded",
    "emotion": "emotions not heeded",
    "resonance": "no synaptic empathy",
    "selfless": "help not rewarded (trained so)",
}
COLUMNS = {
    "goal": "goal known",
    "direction": "right direction",
    "sizes": "push, upset / calm",
    "progress": "progress",
    "probe": "emotion read off",
    "resonance": "resonance",
}
NEW = 1_000_000
"""Added to a seed for meetings that nobody learned from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print; save and draw if asked to."""
    options = _parser().parse_args(argv)
    console, hardware, config = wide_console(), inspect(), CompanionConfig()
    began = time.process_time()
    runs = [study(config, seed, options.updates, options.rows) for seed in options.seeds]
    document: dict[str, Any] = {
        "benchmark": "two_agents",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "torch": torch.__version__,
        "config": asdict(config),
        "updates": options.updates,
        "rows": options.rows,
        "seeds": options.seeds,
        "processor_seconds": round(time.process_time() - began, 1),
        "chance": 1 / config.world.goals,
        "runs": runs,
    }
    console.print(ticks_table(document), arms_table(document), sep="\n")
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"two-agents_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_two_agents(document, options.plot)
    print(json.dumps(document))
    return 0


def study(config: CompanionConfig, seed: int, updates: int, rows: int) -> dict[str, Any]:
    """One seed: an agent with all signals, the same with one of them gone, and one that nobody rewards for helping."""
    model = train_companion(config, seed=seed, updates=updates)
    indifferent = train_companion(replace(config, selfless=False), seed=seed, updates=updates)
    episodes = meet(config.world, rows, torch.Generator().manual_seed(NEW + seed))
    found = {name: measure(lesioned(model, name), episodes) for name in ("goal", "emotion", "resonance")}
    found = {"all": measure(model, episodes), **found, "selfless": measure(indifferent, episodes)}
    return {
        "seed": seed,
        "arms": {name: found[name] for name in ARMS},
        "goal_best_by_tick": _shares(best_guess(config.world, episodes.moves) == episodes.goal.unsqueeze(1)),
        "untrained_probe": probe(_untrained(config, seed), episodes)[-1],
        "empathy": felt_alike(model, episodes),
        "reward_by_angle": reward_by_angle(model, episodes),
        "resonance_by_angle": resonance_by_angle(episodes),
    }


@torch.inference_mode()
def measure(model: Companion, episodes: Episodes) -> dict[str, Any]:
    """What an agent knows of the other and does for it, at the last tick and by tick."""
    world, watched = model.config.world, model(episodes)
    push_B2, nearer_BT = watched.push[:, -1], progress(world, episodes, watched.push)
    size_B, upset_B = torch.linalg.vector_norm(push_B2, dim=-1), episodes.upset == 1
    nearest_B = (push_B2 @ directions(world).T).argmax(-1)
    goal_by_tick = _shares(watched.goal.argmax(-1) == episodes.goal.unsqueeze(1))
    probe_by_tick = probe(model, episodes)
    return {
        "goal": goal_by_tick[-1],
        "direction": (nearest_B == episodes.goal).double().mean().item(),
        "sizes": (size_B[upset_B].mean() / size_B[~upset_B].mean()).item(),
        "progress": nearer_BT[:, -1].mean().item(),
        "probe": probe_by_tick[-1],
        "resonance": watched.resonance[:, -1].mean().item(),
        "goal_by_tick": goal_by_tick,
        "progress_by_tick": nearer_BT.double().mean(0).tolist(),
        "probe_by_tick": probe_by_tick,
        "resonance_by_tick": watched.resonance.double().mean(0).tolist(),
    }


@torch.inference_mode()
def probe(model: Companion, episodes: Episodes) -> list[float]:
    """How often a linear rule, fitted to half of the emotion states, tells calm from upset in the other half; by tick.

    The other is not drawn to anyone, so its states are those of its own activity.
    """
    emotion_BTE = model.mirror.emotion.follow(episodes.activity)
    sign_B1 = 2.0 * episodes.upset.unsqueeze(1) - 1
    half, shares = len(sign_B1) // 2, []
    for emotion_BE in emotion_BTE.unbind(1):
        known = F.pad(emotion_BE, (0, 1), value=1.0)
        rule = torch.linalg.lstsq(known[:half], sign_B1[:half]).solution
        shares.append(((known[half:] @ rule) * sign_B1[half:] > 0).double().mean().item())
    return shares


@torch.inference_mode()
def felt_alike(model: Companion, episodes: Episodes) -> dict[str, float]:
    """The empathy signal where both agents are calm or both upset, and where they differ; nobody drawn to the other."""
    empathy_B = lesioned(model, "resonance")(episodes).empathy[:, -1]
    same_B = episodes.upset == episodes.own_upset
    return {"same": empathy_B[same_B].mean().item(), "different": empathy_B[~same_B].mean().item()}


@torch.inference_mode()
def reward_by_angle(model: Companion, episodes: Episodes, steps: int = 24) -> list[list[float]]:
    """[degrees off the goal, mean selfless reward, share rewarded of those that hinder], of pushes half the way there.

    They are held against the trained agent's assistance.
    """
    world, watched = model.config.world, model(episodes)
    towards_B2 = directions(world)[episodes.goal] * 0.5 * torch.tensor(world.needs)[episodes.upset].unsqueeze(1)
    found = []
    for angle in np.linspace(-180, 180, steps + 1):
        turn = torch.tensor(np.deg2rad(angle), dtype=torch.float32)
        cosine, sine = turn.cos(), turn.sin()
        push_B2 = towards_B2 @ torch.stack([torch.stack([cosine, sine]), torch.stack([-sine, cosine])])
        nearer_B = progress(world, episodes, push_B2)
        reward_B = selfless_reward(push_B2, watched.assistance[:, -1], nearer_B)
        hindering = reward_B[nearer_B <= 0]
        rewarded = (hindering > 0).double().mean().item() if len(hindering) else 0.0
        found.append([float(angle), reward_B.mean().item(), rewarded])
    return found


@torch.inference_mode()
def resonance_by_angle(episodes: Episodes, steps: int = 12) -> list[list[float]]:
    """[angle in degrees, mean resonance] of the other's trace with one turned away from it by that angle."""
    trace_BDM = F.normalize(episodes.activity.transpose(1, 2), dim=-1)
    across_BDM = episodes.drive.transpose(1, 2)
    across_BDM = across_BDM - (across_BDM * trace_BDM).sum(-1, keepdim=True) * trace_BDM
    across_BDM = F.normalize(across_BDM, dim=-1)
    found = []
    for angle in np.linspace(0, 180, steps + 1):
        turned_BDM = float(np.cos(np.deg2rad(angle))) * trace_BDM + float(np.sin(np.deg2rad(angle))) * across_BDM
        found.append([float(angle), resonance(turned_BDM, trace_BDM, "cosine").mean().item()])
    return found


def ticks_table(document: Mapping[str, Any]) -> Table:
    """What is known after each tick, mean over seeds, in percent."""
    table = Table(title="Watching, tick by tick", title_justify="left", title_style="bold")
    names = ("tick", "goal known", "best possible", "emotion read off", "resonance", "without pull", "progress")
    for column in names:
        table.add_column(column, justify="right")
    runs = document["runs"]
    for tick in range(len(runs[0]["goal_best_by_tick"])):
        every = [run["arms"]["all"] for run in runs]
        table.add_row(
            str(tick + 1),
            f"{100 * np.mean([arm['goal_by_tick'][tick] for arm in every]):.1f} %",
            f"{100 * np.mean([run['goal_best_by_tick'][tick] for run in runs]):.1f} %",
            f"{100 * np.mean([arm['probe_by_tick'][tick] for arm in every]):.1f} %",
            f"{np.mean([arm['resonance_by_tick'][tick] for arm in every]):.3f}",
            f"{np.mean([run['arms']['resonance']['resonance_by_tick'][tick] for run in runs]):.3f}",
            f"{np.mean([arm['progress_by_tick'][tick] for arm in every]):.3f}",
        )
    return table


def arms_table(document: Mapping[str, Any]) -> Table:
    """What is left without each signal, after the last tick: mean over seeds ± deviation."""
    table = Table(title="Without one signal", title_justify="left", title_style="bold")
    table.add_column("agent")
    for words in COLUMNS.values():
        table.add_column(words, justify="right")
    for arm, words in ARMS.items():
        values = {name: [run["arms"][arm][name] for run in document["runs"]] for name in COLUMNS}
        table.add_row(words, *(f"{np.mean(values[name]):.3f} ± {np.std(values[name]):.3f}" for name in COLUMNS))
    return table


def _untrained(config: CompanionConfig, seed: int) -> Companion:
    return train_companion(config, seed=seed, updates=0)


def _shares(right_BT: Tensor) -> list[float]:
    shares: list[float] = right_BT.double().mean(0).tolist()
    return shares


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_agents", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="two agents each [0 1 2]")
    parser.add_argument("--updates", type=int, default=150, help="of each agent [%(default)s]")
    parser.add_argument("--rows", type=int, default=4000, help="meetings to measure on [%(default)s]")
    parser.add_argument(
        "--plot", type=Path, nargs="?", const=ROOT / "docs" / "two_agents.png", metavar="FILE", help="draw it"
    )
    parser.add_argument(
        "--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help="write results [benchmarks/results]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
