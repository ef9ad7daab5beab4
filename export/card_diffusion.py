"""The card's sections about diffusion: how much noise is told from the image with a thought and without, and chains."""

from collections.abc import Sequence

from export.markdown import columns_table, number, table
from export.plots import BY_TICK
from export.plots_diffusion import ABSTENTION, BY_LEVEL
from export.quality_diffusion import NoiseQuality
from protos.ctm_bundle_pb2 import Manifest


def render_noise(quality: NoiseQuality, ticks: int) -> str:
    """The section about quality of a model of diffusion that thinks for so many ticks."""
    return "\n\n".join(
        [
            "## Quality",
            _numbers(quality, ticks),
            _frontier(quality),
            f"![Error by tick]({BY_TICK})\n![Error by level of noise]({BY_LEVEL})\n![Abstaining]({ABSTENTION})",
            _by_tick(quality),
            _by_level(quality),
            _abstention(quality),
        ]
    )


def render_chain(manifest: Manifest) -> str:
    """What was compared beyond single ticks: a paragraph and a table for the section about agreement."""
    artefacts = table(
        ("backend", "finish", "images", "estimates", "equal stopping ticks", "equal abstaining"),
        [
            (
                artefact.backend,
                f"{artefact.agreement.chain.finish:.1e}",
                f"{artefact.agreement.chain.images:.1e}",
                f"{artefact.agreement.chain.estimates:.1e}",
                f"{artefact.agreement.chain.equal_stop_ticks:.2%}",
                f"{artefact.agreement.chain.equal_abstain_masks:.2%}",
            )
            for artefact in manifest.artefacts
        ],
    )
    chain = manifest.artefacts[0].agreement.chain
    return (
        f"Whole samples were compared as well: {chain.rows} images in {chain.links} reverse steps with eta "
        f"{number(chain.eta)} and seeded noise, drawn by the model as trained and link by link through the graphs. "
        f"{chain.certain:.0%} of the thoughts stopped early and {chain.abstaining:.0%} abstained. Below stand the "
        f"largest differences of the reverse step alone, of the final images (at most {chain.tolerance:.2g} is "
        "published, half of one of 256 grey values) and of what any link took for the clean image, and the shares of "
        f"thoughts that stopped and abstained alike.\n\n{artefacts}"
    )


def _numbers(quality: NoiseQuality, ticks: int) -> str:
    found, shipped, abstaining = quality.found, quality.shipped, quality.abstaining
    return (
        f"Measured on {found.rows:,} test images, each made noisy once at a level of its own. What counts is the mean "
        f"squared error of the noise that the model finds in them; finding none has an error of 1. Without a thought "
        f"it is **{found.base:.5f}**. Thinking for all {ticks} ticks and guided by the most certain one, it is "
        f"**{found.guided:.5f}**. At the shipped threshold of {number(shipped.threshold)} it is "
        f"**{shipped.error:.5f}** after **{shipped.mean_ticks:.2f} ticks** on average (standard deviation "
        f"{shipped.ticks_deviation:.2f}). {quality.rule} With those that are less certain than "
        f"{number(abstaining.threshold)} denoised without their thought, {abstaining.abstaining:.1%} of them, it is "
        f"{abstaining.error:.5f}."
    )


def _frontier(quality: NoiseQuality) -> str:
    points, shipped = quality.frontier, quality.shipped
    return columns_table(
        {
            "threshold": [
                f"**{number(point.threshold)}** (shipped)" if point == shipped else number(point.threshold)
                for point in points
            ],
            "error of the noise": _errors([point.error for point in points]),
            "mean ticks": [f"{point.mean_ticks:.2f}" for point in points],
            "deviation of ticks": [f"{point.ticks_deviation:.2f}" for point in points],
            "share certain": [f"{point.share_certain:.1%}" for point in points],
        }
    )


def _by_tick(quality: NoiseQuality) -> str:
    found = quality.found
    return columns_table(
        {
            "guided by tick": [str(tick) for tick in range(1, len(found.guided_by_tick) + 1)],
            "error of the noise": _errors(found.guided_by_tick),
            "mean certainty": [f"{value:.3f}" for value in found.certainty_by_tick],
        }
    )


def _by_level(quality: NoiseQuality) -> str:
    found = quality.found
    parts = len(found.base_by_level)
    return columns_table(
        {
            "noise": [f"{part / parts:.0%} to {(part + 1) / parts:.0%} of the levels" for part in range(parts)],
            "without a thought": _errors(found.base_by_level),
            "guided": _errors(found.guided_by_level),
            "mean certainty": [f"{value:.3f}" for value in found.certainty_by_level],
        }
    )


def _abstention(quality: NoiseQuality) -> str:
    points = quality.found.abstention
    rows = columns_table(
        {
            "abstain below": [f"{point.threshold:.3f}" for point in points],
            "share abstaining": [f"{point.abstaining:.1%}" for point in points],
            "error of the noise": _errors([point.error for point in points]),
        }
    )
    return (
        f"What abstaining does when all ticks are thought: those that abstain are denoised without a thought.\n\n{rows}"
    )


def _errors(values: Sequence[float]) -> list[str]:
    return [f"{value:.5f}" for value in values]
