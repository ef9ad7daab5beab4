"""What a model of diffusion is asked to draw: an image for each row, of the classes that are named."""

from collections.abc import Sequence
from itertools import cycle, islice

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import AsyncClient, AsyncThinking
from serving.mismatch import Mismatch, listing, quote
from serving.terminal.arguments import Options
from serving.terminal.images import UnfitInput
from serving.terminal.sheet import IMAGE, Row, Sheet


def ask_to_draw(client: AsyncClient, manifest: bundle_pb2.Manifest, options: Options) -> tuple[Sheet, AsyncThinking]:
    """Begin to draw all rows at once.

    Raises:
        UnfitInput: the model draws no such class.
    """
    asked = labels_of(manifest, options.classes or [])
    labels = list(islice(cycle(asked), options.rows or len(asked)))
    names = class_names(manifest)
    default = manifest.stop.certainty_threshold if manifest.stop.HasField("certainty_threshold") else None
    sheet = Sheet(
        model=f"{manifest.name}/{manifest.version}",
        threshold=default if options.threshold is None else options.threshold,
        abstain_below=manifest.stop.abstain_below if options.abstain_below is None else options.abstain_below,
        max_ticks=options.max_ticks or manifest.ticks,
        steps=options.steps or manifest.diffusion.steps,
        size=next((spec.shape[0], spec.shape[1]) for spec in manifest.inputs if spec.name == IMAGE),
        rows=[Row(names[label]) for label in labels],
    )
    drawing = client.sample(
        manifest.name,
        labels,
        version=manifest.version,
        steps=options.steps,
        eta=options.eta,
        seed=options.seed,
        stride=options.stride,
        images_every=1 if options.images_every is None else options.images_every,
        threshold=options.threshold,
        min_ticks=options.min_ticks,
        max_ticks=options.max_ticks,
        patience=options.patience,
        abstain_below=options.abstain_below,
        timeout=options.timeout,
    )
    return sheet, drawing


def labels_of(manifest: bundle_pb2.Manifest, wanted: Sequence[str]) -> list[int]:
    """The labels of classes that are wanted by their names, or by their numbers.

    Raises:
        UnfitInput: the model draws no such class.
    """
    names = class_names(manifest)
    labels = {str(label): label for label in range(len(names))} | {name: label for label, name in enumerate(names)}
    for one in wanted:
        if one not in labels:
            raise UnfitInput(str(Mismatch("--class", quote(one), f"one of {listing(names)}")))
    return [labels[one] for one in wanted]


def class_names(manifest: bundle_pb2.Manifest) -> list[str]:
    """What the classes that a model draws are called; their numbers where it has no names for them."""
    if manifest.diffusion.classes:
        return list(manifest.diffusion.classes)
    highest = max((int(spec.maximum) for spec in manifest.inputs if spec.name == "label"), default=-1)
    return [str(label) for label in range(highest + 1)]
