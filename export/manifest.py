"""The manifest: everything a server must know of a bundle, filled in from what export knows and measured."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path

from google.protobuf import json_format
from tokenizers import Tokenizer

from ctm import program as ctm_program
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import AbstentionPoint
from ctm.energy import EnergyPoint
from ctm.families import TOKENIZER
from ctm.frontier import FrontierPoint
from ctm.language.model import LanguageCTM
from ctm.language.tokenizer import END_TOKEN
from export.agreement import Agreement
from export.chain_agreement import ChainAgreement
from export.energy import EnergyQuality
from export.quality import Quality
from export.quality_diffusion import NoisePoint, NoiseQuality
from export.source import Source
from protos import ctm_bundle_pb2 as bundle

AnyQuality = Quality | NoiseQuality

FORMAT_VERSION = 1
MANIFEST, CARD = "manifest.json", "README.md"


def describe_source(source: Source, tick_cap: int) -> bundle.Manifest:
    """A manifest with all that is known before anything is written."""
    manifest = bundle.Manifest(
        format_version=FORMAT_VERSION,
        family=source.family,
        task=source.task,
        inputs=_specs(source.program.inputs),
        context=_specs(source.program.context),
        state=_specs(source.program.state),
        outputs=_specs(source.program.outputs),
        finish_inputs=_specs(source.program.finish_inputs),
        finish_outputs=_specs(source.program.finish_outputs),
        ticks=source.servable.config.ticks,
        tick_cap=tick_cap,
        labels=source.labels,
        stop=bundle.StopDefaults(min_ticks=1),
        provenance=bundle.Provenance(
            command=source.command,
            seed=source.seed,
            data=source.data,
            versions=dict(source.versions),
            parameters=sum(weight.numel() for weight in source.model.parameters()),
        ),
    )
    _describe_model(manifest, source)
    if source.input_range is not None:
        for spec in manifest.inputs:
            spec.minimum, spec.maximum = source.input_range
            spec.values.extend(source.input_values)
    return manifest


def _describe_model(manifest: bundle.Manifest, source: Source) -> None:
    """What it takes to build the model again, and what a chain of its thoughts needs to know."""
    model, core = source.model, source.servable.config.to_dict()
    if isinstance(model, EnhancedCTMDiffusion):
        manifest.config.update({"model": core, "diffusion": model.diffusion.to_dict()})
        manifest.chain = "diffusion"
        manifest.diffusion.CopyFrom(bundle.Diffusion(levels=model.diffusion.levels, classes=source.classes))
        return
    if not isinstance(model, LanguageCTM):
        manifest.config.update(core)
        return
    manifest.config.update({"model": core, "language": model.language.to_dict()})
    tokens = next(spec for spec in source.program.inputs if spec.buckets)
    manifest.chain = "text"
    end_token = Tokenizer.from_str(source.files[TOKENIZER]).token_to_id(END_TOKEN)
    manifest.text.CopyFrom(bundle.Text(tokenizer=TOKENIZER, tokens=tokens.name, end_token=end_token, padding_token=0))


def describe_artefact(
    backend: str, graphs: Mapping[str, str], opset: int, agreement: Agreement, chain: ChainAgreement | None = None
) -> bundle.Artefact:
    return bundle.Artefact(
        backend=backend,
        graphs=dict(graphs),
        opset=opset,
        agreement=bundle.Agreement(
            one_tick=agreement.one_tick,
            free_running=agreement.free_running,
            equal_stop_ticks=agreement.equal_stop_ticks,
            row_counts=agreement.row_counts,
            tolerance=agreement.tolerance,
            rows=agreement.rows,
            chain=None if chain is None else bundle.ChainAgreement(**dataclasses.asdict(chain)),
        ),
    )


def describe_quality(quality: AnyQuality) -> bundle.Quality:
    return _noise(quality) if isinstance(quality, NoiseQuality) else _answers(quality)


def _answers(quality: Quality) -> bundle.Quality:
    return bundle.Quality(
        metric="bits_per_byte" if quality.bits_per_byte else "accuracy",
        split="test",
        rows=quality.rows,
        accuracy=quality.accuracy,
        certainty=quality.certainty,
        calibration_error=quality.calibration_error,
        accuracy_most_certain=quality.accuracy_most_certain,
        frontier=[_frontier(point) for point in quality.frontier],
        whole=quality.whole,
        whole_most_certain=quality.whole_most_certain,
        bits_per_byte=quality.bits_per_byte,
        bits_per_byte_most_certain=quality.bits_per_byte_most_certain,
        energy=None if quality.energy is None else _energy(quality.energy),
    )


def describe_files(folder: Path) -> list[bundle.File]:
    """Name, size and hash of all that is in a bundle, but for its manifest and its card."""
    return [_file(path) for path in sorted(folder.iterdir()) if path.name not in (MANIFEST, CARD)]


def write_manifest(manifest: bundle.Manifest, folder: Path) -> None:
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _specs(specs: Iterable[ctm_program.TensorSpec]) -> list[bundle.TensorSpec]:
    roles: dict[str | None, bundle.TensorSpec.Role.ValueType] = {
        None: bundle.TensorSpec.ROLE_UNSPECIFIED,
        "prediction": bundle.TensorSpec.PREDICTION,
        "certainty": bundle.TensorSpec.CERTAINTY,
        "energy": bundle.TensorSpec.ENERGY,
        "detail": bundle.TensorSpec.DETAIL,
        "done": bundle.TensorSpec.DONE,
        "abstained": bundle.TensorSpec.ABSTAINED,
    }
    return [
        bundle.TensorSpec(
            name=spec.name,
            datatype=spec.datatype,
            shape=spec.shape,
            role=roles[spec.role],
            description=spec.description,
            minimum=spec.minimum,
            maximum=spec.maximum,
            length_of=spec.length_of,
            buckets=spec.buckets,
        )
        for spec in specs
    ]


def _frontier(point: FrontierPoint) -> bundle.Frontier:
    return bundle.Frontier(
        certainty_threshold=point.threshold,
        accuracy=point.accuracy,
        mean_ticks=point.mean_ticks,
        ticks_deviation=point.ticks_deviation,
        share_certain=point.share_certain,
        whole=point.whole,
        bits_per_byte=point.bits_per_byte,
    )


def _noise(quality: NoiseQuality) -> bundle.Quality:
    found = quality.found
    return bundle.Quality(
        metric="noise_error",
        split="test",
        rows=found.rows,
        certainty=found.certainty_by_tick,
        frontier=[_noise_frontier(point) for point in quality.frontier],
        diffusion=bundle.DiffusionQuality(
            base=found.base,
            guided=found.guided,
            guided_by_tick=found.guided_by_tick,
            base_by_level=found.base_by_level,
            guided_by_level=found.guided_by_level,
            certainty_by_level=found.certainty_by_level,
            abstention=[_abstention(point) for point in found.abstention],
            shipped=_abstention(quality.abstaining),
        ),
    )


def _noise_frontier(point: NoisePoint) -> bundle.Frontier:
    return bundle.Frontier(
        certainty_threshold=point.threshold,
        mean_ticks=point.mean_ticks,
        ticks_deviation=point.ticks_deviation,
        share_certain=point.share_certain,
        noise_error=point.error,
    )


def _abstention(point: AbstentionPoint) -> bundle.AbstentionPoint:
    return bundle.AbstentionPoint(abstain_below=point.threshold, abstaining=point.abstaining, noise_error=point.error)


def _energy(energy: EnergyQuality) -> bundle.EnergyQuality:
    return bundle.EnergyQuality(
        energy=energy.energy,
        separation=energy.separation,
        certainty_separation=energy.certainty_separation,
        calibration_error=energy.calibration_error,
        margin=energy.margin or 0.0,
        threshold_frontier=[_energy_frontier(point) for point in energy.thresholds],
        delta_frontier=[_energy_frontier(point) for point in energy.deltas],
        shipped=_energy_frontier(energy.shipped),
    )


def _energy_frontier(point: EnergyPoint) -> bundle.EnergyFrontier:
    rule = point.rule
    return bundle.EnergyFrontier(
        energy_threshold=rule.energy if isfinite(rule.energy) else None,
        energy_delta=rule.delta or None,
        certainty_threshold=rule.certainty if isfinite(rule.certainty) else None,
        accuracy=point.accuracy,
        mean_ticks=point.mean_ticks,
        ticks_deviation=point.ticks_deviation,
        share_energy=point.share_energy,
        share_certain=point.share_certain,
    )


def _file(path: Path) -> bundle.File:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return bundle.File(name=path.name, sha256=digest, size=path.stat().st_size)
