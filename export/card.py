"""The model card: `README.md` of a bundle, with front matter as Hugging Face reads it."""

import shlex
from pathlib import Path

from export.card_diffusion import render_chain, render_noise
from export.card_energy import render_energy
from export.card_front import pipeline, render_front
from export.manifest import CARD, AnyQuality
from export.markdown import code, columns_table, number, plain, table
from export.plots import BY_TICK, CALIBRATION, FRONTIER, TICKS_USED
from export.quality import Quality
from export.quality_diffusion import NoiseQuality
from protos.ctm_bundle_pb2 import Manifest, TensorSpec

PAPER = "[arXiv 2505.05522](https://arxiv.org/abs/2505.05522)"


def write_card(manifest: Manifest, quality: AnyQuality | None, folder: Path) -> None:
    (folder / CARD).write_text(render_card(manifest, quality), encoding="utf-8")


def render_card(manifest: Manifest, quality: AnyQuality | None) -> str:
    """The card of a filled-in manifest; without quality it says that nothing was measured."""
    parts = [
        render_front(manifest),
        _introduction(manifest),
        _tensors(manifest),
        *_measured(manifest, quality),
        _origin(manifest),
        _agreement(manifest),
        _limits(manifest, quality),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(manifest: Manifest) -> str:
    task = f" for the task *{plain(manifest.task)}*" if manifest.task else ""
    rules = []
    if manifest.stop.HasField("certainty_threshold"):
        rules.append(f"its certainty reaches {number(manifest.stop.certainty_threshold)}")
    if manifest.stop.HasField("energy_threshold"):
        rules.append(f"its energy falls to {number(manifest.stop.energy_threshold)}")
    if manifest.stop.energy_delta:
        rules.append(f"its energy changes by less than {number(manifest.stop.energy_delta)}")
    stop = f", and stops before that on the tick at which {' or '.join(rules)}" if rules else ""
    diffusion = manifest.diffusion
    draws = (
        f" It guides a denoiser: an image is drawn in {diffusion.steps} reverse steps (at most {diffusion.levels}) "
        f"with eta {number(diffusion.eta)} unless a request says otherwise, and each step is a thought of its own."
        if manifest.chain == "diffusion"
        else ""
    )
    lines = [
        f"# {manifest.name}, version {manifest.version}",
        f"A Continuous Thought Machine ({PAPER}){task}, exported tick by tick: it thinks for up to {manifest.ticks} "
        f"ticks{stop}.{draws} {manifest.provenance.parameters:,} parameters.",
        *_besides(manifest),
    ]
    if manifest.description:
        lines.insert(1, manifest.description)
    asks = _asks(manifest)
    lines.append(
        "```sh\n"
        "ctm-serve                       # serves every model of its store\n"
        f"ctm-think --model {manifest.name} {asks}\n"
        "```"
        if asks
        else "Served by `ctm-serve`, which serves every model of its store."
    )
    return "\n\n".join(lines)


def _asks(manifest: Manifest) -> str:
    """What `ctm-think` wants beside the model's name; empty where it cannot draw such a thought."""
    if manifest.chain == "diffusion":
        name = manifest.diffusion.classes[-1] if manifest.diffusion.classes else "0"
        return f"--class {shlex.quote(name)} --rows 4"
    kinds = {"image-classification": "IMAGE", "text-generation": '"The text to go on with"'}
    return kinds.get(pipeline(manifest), "")


def _besides(manifest: Manifest) -> list[str]:
    """What else ships with the thresholds, and no number of the card counts."""
    lines = []
    if manifest.stop.patience > 1:
        lines.append(
            f"A certain thought also waits until its top prediction has stayed the same over {manifest.stop.patience} "
            "ticks. The numbers below are without that: with it thoughts take more ticks."
        )
    if manifest.stop.abstain_below:
        below = number(manifest.stop.abstain_below)
        lines.append(
            f"A thought less certain than {below} abstains: its reverse step is made without it."
            if manifest.chain == "diffusion"
            else f"Answers less certain than {below} are marked as abstained."
        )
    return [" ".join(lines)] if lines else []


def _tensors(manifest: Manifest) -> str:
    rows = [("in", spec) for spec in manifest.inputs] + [("out, each tick", spec) for spec in manifest.outputs]
    rows += [("out, at the end", spec) for spec in manifest.finish_outputs]
    tensors = table(
        ("", "tensor", "datatype", "shape of a row", ""),
        [(kind, f"`{spec.name}`", spec.datatype, str(list(spec.shape)), _note(spec)) for kind, spec in rows],
    )
    named = [*manifest.labels, *manifest.diffusion.classes]
    labels = ", ".join(map(plain, named[:20])) + (" …" if len(named) > 20 else "")
    return f"## In and out\n\n{tensors}" + (f"\n\nClasses: {labels}." if labels else "")


def _note(spec: TensorSpec) -> str:
    if spec.values:
        return f"each value {' or '.join(map(number, spec.values))}"
    if spec.HasField("minimum") and spec.HasField("maximum"):
        return f"values in [{number(spec.minimum)}, {number(spec.maximum)}]"
    return spec.description


def _measured(manifest: Manifest, quality: AnyQuality | None) -> list[str]:
    if quality is None:
        return [_not_measured()]
    if isinstance(quality, NoiseQuality):
        return [render_noise(quality, manifest.ticks)]
    energy = [] if quality.energy is None else [render_energy(quality.energy, quality.shipped)]
    return [_quality(manifest, quality), *energy]


def _not_measured() -> str:
    return "## Quality\n\nNot measured: no data of its task was at hand when it was exported."


def _quality(manifest: Manifest, quality: Quality) -> str:
    text = _text_numbers(manifest, quality) if quality.bits_per_byte else _numbers(manifest, quality)
    plots = "\n".join(
        f"![{words}]({name})"
        for words, name in (
            ("By tick", BY_TICK),
            ("What a threshold costs and saves", FRONTIER),
            ("Calibration", CALIBRATION),
            ("Ticks used", TICKS_USED),
        )
    )
    return (
        f"## Quality\n\n{text}\n\n{_frontier(quality)}\n\n{plots}\n\n{_by_tick(quality)}\n\n"
        "Calibration error: expected distance of the predicted label's probability from accuracy, over 15 bins."
    )


def _text_numbers(manifest: Manifest, quality: Quality) -> str:
    shipped = quality.shipped
    assert shipped.bits_per_byte is not None, "stopping over text is counted in bits"
    return (
        f"Measured on {quality.rows:,} tokens of test text. Thinking for all {manifest.ticks} ticks about each token "
        f"and answering at the most certain one, a byte costs **{quality.bits_per_byte_most_certain:.4f} bits**. At "
        f"the shipped threshold of {shipped.threshold:g} it costs **{shipped.bits_per_byte:.4f} bits** after "
        f"**{shipped.mean_ticks:.2f} ticks** a token on average (standard deviation {shipped.ticks_deviation:.2f}). "
        f"{quality.rule} A token that never reaches the threshold is answered at its most certain tick. Accuracy is "
        "the share of tokens that were the likeliest."
    )


def _numbers(manifest: Manifest, quality: Quality) -> str:
    shipped = quality.shipped
    which = "shipped threshold" if quality.energy is None else "certainty threshold"
    alone = "" if quality.energy is None else " and energy stopping nothing"
    text = (
        f"Measured on {quality.rows:,} test rows. Thinking for all {manifest.ticks} ticks and answering at the most "
        f"certain one, **{quality.accuracy_most_certain:.2%}** are right. At the {which} of "
        f"{shipped.threshold:g}{alone}, **{shipped.accuracy:.2%}** are right after **{shipped.mean_ticks:.2f} ticks** "
        f"on average (standard deviation {shipped.ticks_deviation:.2f}). {quality.rule} "
        "A row that never reaches the threshold answers at its most certain tick."
    )
    if quality.whole:
        assert shipped.whole is not None, "answers of several positions are counted whole as well"
        text += (
            f" Those are shares of positions: as a whole **{quality.whole_most_certain:.2%}** of the answers are right "
            f"at the most certain tick, **{shipped.whole:.2%}** at the threshold."
        )
    return text


def _frontier(quality: Quality) -> str:
    points, shipped = quality.frontier, quality.shipped
    said = "shipped" if quality.threshold is not None else "chosen"
    columns = {
        "threshold": [
            f"**{point.threshold:g}** ({said})" if point == shipped else f"{point.threshold:g}" for point in points
        ],
        "accuracy": [f"{point.accuracy:.2%}" for point in points],
        "whole answers": [f"{point.whole:.2%}" for point in points if point.whole is not None],
        "bits a byte": [f"{point.bits_per_byte:.4f}" for point in points if point.bits_per_byte is not None],
        "mean ticks": [f"{point.mean_ticks:.2f}" for point in points],
        "deviation of ticks": [f"{point.ticks_deviation:.2f}" for point in points],
        "share certain": [f"{point.share_certain:.1%}" for point in points],
    }
    return columns_table(columns)


def _by_tick(quality: Quality) -> str:
    columns = {
        "tick": [str(tick) for tick in range(1, len(quality.accuracy) + 1)],
        "accuracy": [f"{value:.2%}" for value in quality.accuracy],
        "without padding": [f"{value:.2%}" for value in quality.unpadded],
        "whole answers": [f"{value:.2%}" for value in quality.whole],
        "bits a byte": [f"{value:.4f}" for value in quality.bits_per_byte],
        "mean certainty": [f"{value:.3f}" for value in quality.certainty],
        "calibration error": [f"{value:.3f}" for value in quality.calibration_error],
    }
    return columns_table(columns)


def _origin(manifest: Manifest) -> str:
    provenance = manifest.provenance
    lines = ["## Where it comes from"]
    lines.append(code(*filter(None, (provenance.command, provenance.export_command))))
    facts = []
    if provenance.command:
        facts.append(("seed", str(provenance.seed)))
    facts += [("data", provenance.data), ("commit", provenance.commit), ("created", provenance.created)]
    facts.append(("versions", ", ".join(f"{name} {release}" for name, release in sorted(provenance.versions.items()))))
    lines.append("\n".join(f"- {name}: {plain(value)}" for name, value in facts if value))
    lines.append("In commands, absolute paths are shortened to their last part.")
    return "\n\n".join(lines)


def _agreement(manifest: Manifest) -> str:
    artefacts = table(
        ("backend", "one tick", "running freely", "equal stopping ticks", "rows"),
        [
            (
                artefact.backend + (f", opset {artefact.opset}" if artefact.opset else ""),
                f"{max(artefact.agreement.one_tick):.1e}",
                f"{max(artefact.agreement.free_running):.1e}",
                f"{artefact.agreement.equal_stop_ticks:.2%}",
                f"{artefact.agreement.rows:,}",
            )
            for artefact in manifest.artefacts
        ],
    )
    agreement = manifest.artefacts[0].agreement
    counts = ", ".join(str(count) for count in agreement.row_counts)
    return (
        f"## Agreement with the model as trained\n\n{artefacts}\n\nLargest difference of any output or state tensor at "
        f"any tick, over max(1, its largest value): after one tick from the model's own state, in batches of {counts} "
        f"rows (at most {agreement.tolerance:g} is published), and with each side running on its own states. "
        "By tick in `manifest.json`." + (f"\n\n{render_chain(manifest)}" if agreement.HasField("chain") else "")
    )


def _limits(manifest: Manifest, quality: AnyQuality | None) -> str:
    limits = [
        "Certainty is the model's own measure: one minus the normalised entropy of its prediction. It can be certain "
        "and wrong, the more so on input unlike its training data; nothing here detects such input.",
        f"It was trained to think for {manifest.ticks} ticks. The server lets a request ask for up to "
        f"{manifest.tick_cap}; what happens beyond {manifest.ticks} was neither measured nor compared.",
        "On ONNX Runtime's CPU provider the exporter's tests find a row's numbers the same to the bit in any batch of "
        "at least two rows on one machine; other backends and providers differ in the last digits.",
    ]
    if quality is None:
        limits.insert(0, "Its accuracy and calibration were not measured.")
    if manifest.chain == "diffusion":
        limits.insert(0, "How good samples look is not what is measured here, but how well single images are denoised.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)
