"""Write the README's tables from what they describe: `python docs/update_readme.py` (`--check` only compares).

Settings and metrics come from the server's own declarations, quality from the shipped manifests, speed from the newest
results file of the benchmark.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protos.ctm_bundle_pb2 import EnergyFrontier, Frontier, Manifest, Quality, StopDefaults, TensorSpec
from serving.config import settings_table
from serving.manifest import read
from serving.metrics import metrics_table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def quality_table(store: Path = ROOT / "model_store") -> str:
    """What each shipped bundle says of itself, with the numbers that its export measured."""
    lines = [
        "| model | what it answers | parameters | size | ticks T | most certain of T | at the threshold "
        "| mean ticks used | first tick |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(store.glob("*/*/manifest.json"), key=lambda path: (path.parts[-3], int(path.parts[-2]))):
        manifest = read(path)
        if not manifest.HasField("quality"):
            continue
        card = (path.parent / "README.md").relative_to(store.parent)
        size = sum(file.size for file in manifest.files) / 1e6
        energy = manifest.quality.energy
        point = energy.shipped if energy.HasField("shipped") else _shipped(manifest)
        all_ticks, stopped, first = _worth(manifest.quality, point)
        lines.append(
            f"| [{manifest.name}]({card}) | {_answer(manifest)} | {manifest.provenance.parameters:,} "
            f"| {size:.1f} MB | {manifest.ticks} | {all_ticks} | {stopped} at {_rules(manifest.stop)} "
            f"| {point.mean_ticks:.2f} ± {point.ticks_deviation:.2f} | {first} |"
        )
    return "\n".join(lines) + "\n"


def _answer(manifest: Manifest) -> str:
    """What a thought of the model is about, by the shape of its prediction."""
    if manifest.chain == "text":
        return "the next token of a text"
    if manifest.chain == "diffusion":
        return "what a noisy image shows, in bins; draws images"
    prediction = next(spec for spec in manifest.outputs if spec.role == TensorSpec.PREDICTION)
    *positions, classes = prediction.shape
    return f"{positions[0]} × one of {classes}" if positions else f"one of {classes}"


def _shipped(manifest: Manifest) -> Frontier:
    """How the certainty threshold fares that the bundle ships with."""
    threshold = manifest.stop.certainty_threshold
    return min(manifest.quality.frontier, key=lambda point: abs(point.certainty_threshold - threshold))


def _rules(stop: StopDefaults) -> str:
    """What stops a thought: `0.85`, `energy 0.3`, or both."""
    rules = [f"{stop.certainty_threshold:.3g}"] if stop.HasField("certainty_threshold") else []
    if stop.HasField("energy_threshold"):
        rules.append(f"energy {stop.energy_threshold:.3g}")
    return " or ".join(rules)


def _worth(quality: Quality, point: Frontier | EnergyFrontier) -> tuple[str, str, str]:
    """At the most certain of all ticks, under the rules that ship, at the first tick."""
    if isinstance(point, Frontier) and quality.metric == "bits_per_byte":
        values = (quality.bits_per_byte_most_certain, point.bits_per_byte, quality.bits_per_byte[0])
        return f"{values[0]:.3f} bits a byte", f"{values[1]:.3f}", f"{values[2]:.3f}"
    if isinstance(point, Frontier) and quality.metric == "noise_error":
        values = (quality.diffusion.guided, point.noise_error, quality.diffusion.guided_by_tick[0])
        return f"error of the noise {values[0]:.4f}", f"{values[1]:.4f}", f"{values[2]:.4f}"
    values = (quality.accuracy_most_certain, point.accuracy, quality.accuracy[0])
    texts = [f"{value:.2%}" for value in values]
    if isinstance(point, Frontier) and quality.whole:
        wholes = (quality.whole_most_certain, point.whole, quality.whole[0])
        texts = [f"{text} of positions, {whole:.2%} whole" for text, whole in zip(texts, wholes, strict=True)]
    return texts[0], texts[1], texts[2]


def newest(results: Iterable[Path]) -> Path:
    """By the month at the end of the name, whatever hardware stands before it."""
    return max(results, key=lambda path: (path.stem.rpartition("_")[2], path.name))


def speed_table() -> str:
    """The arms of the newest benchmark results, a table for each model."""
    results = sorted((ROOT / "benchmarks" / "results").glob("throughput_*.json"))
    if not results:
        return "Not measured yet: `make bench`.\n"
    path = newest(results)
    document: dict[str, Any] = json.loads(path.read_text())
    hardware = document["hardware"]
    lines = [
        f"{document['in_flight']} thoughts in flight, arms in turns; {hardware['cpu']}, {hardware['cores']} cores, "
        f"which clients share with the server. `make bench` makes [{path.name}]({path.relative_to(ROOT)})."
    ]
    for model in document["models"].values():
        lines += [
            "",
            f"**{model['bundle']}**, T = {model['ticks']}, {model['mean_ticks']:.2f} ticks used on average:",
            "",
            "| | arm | thoughts/s | × (a) | of (f) | ticks | p50 ms | p99 ms | occupancy | CPU ms/thought | right |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_arm(key, arm) for key, arm in model["arms"].items()]
    return "\n".join(lines) + "\n"


def _arm(key: str, arm: dict[str, Any]) -> str:
    def number(name: str, form: str, factor: float = 1.0) -> str:
        value = arm.get(name)
        return "" if value is None else format(factor * value, form)

    cells = [
        f"({key})",
        arm["title"],
        number("thoughts_per_second", ",.0f"),
        number("ratio_to_a", ".2f"),
        number("ratio_to_f", ".0%"),
        number("mean_ticks", ".2f"),
        number("p50_seconds", ".1f", 1e3),
        number("p99_seconds", ".1f", 1e3),
        number("occupancy", ".0%"),
        number("cpu_seconds_per_thought", ".3f", 1e3),
        number("accuracy", ".2%"),
    ]
    return f"| {' | '.join(cells)} |"


def updated(text: str) -> str:
    """The README's text with every marked table made anew."""
    tables = {
        "settings": settings_table(),
        "metrics": metrics_table(),
        "quality": quality_table(),
        "speed": speed_table(),
    }
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"the README has no place for {name}"
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


if __name__ == "__main__":
    old = README.read_text()
    new = updated(old)
    if "--check" in sys.argv:
        sys.exit("README.md is out of date: run `python docs/update_readme.py`" if new != old else 0)
    README.write_text(new)
