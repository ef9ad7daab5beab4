"""A Thinker on a real port that pretends to draw: grey squares come out of noise, surer at each step.

Row r takes 1 + (r + link) % 4 ticks for a link, and the certainties of all rows rise evenly to 1 at the last link.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from fake_thinker import FakeThinker

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from serving.errors import InvalidRequest
from serving.tensors import array, tensor_message

SIDE = 6
STEPS = 8
TICKS = 4

_SPEC = bundle_pb2.TensorSpec
PAINTER = bundle_pb2.Manifest(
    name="squares",
    version=2,
    ticks=TICKS,
    tick_cap=TICKS,
    chain="diffusion",
    inputs=[
        _SPEC(name="image", datatype="FP32", shape=[SIDE, SIDE]),
        _SPEC(name="level", datatype="INT64", minimum=0, maximum=99),
        _SPEC(name="label", datatype="INT64", minimum=0, maximum=2),
    ],
    stop=bundle_pb2.StopDefaults(certainty_threshold=0.9, abstain_below=0.3),
    diffusion=bundle_pb2.Diffusion(levels=100, steps=STEPS, eta=0.0, classes=["dark", "grey", "light"]),
)


def ticks_of(row: int, link: int) -> int:
    return 1 + (row + link) % TICKS


def picture_of(label: int, done: float) -> np.ndarray:
    """[SIDE, SIDE] in [-1, 1] at the end: a plain square of -1, 0 or 1; before, with stripes of noise."""
    stripes = np.where(np.arange(SIDE) % 2, 1.0, -1.0) * (1 - done)
    return np.full((SIDE, SIDE), label - 1, np.float32) + stripes.astype(np.float32)


@dataclass(eq=False)
class FakePainter(FakeThinker):
    """Draws as asked, all rows in step."""

    manifest: bundle_pb2.Manifest = field(default_factory=lambda: PAINTER)
    diverging: int | None = None
    """This row stops with numbers that are no longer finite, at its second link."""
    out_of_time_after: int | None = None
    """Links that there is time for."""

    def _thought(self, request: pb.ThinkRequest, left: Event) -> Iterator[pb.ThinkEvent]:
        if self.failures:
            raise self.failures.pop(0)
        (labels,) = (array(tensor).tolist() for tensor in request.inputs)
        options = request.chain.options
        steps = options["steps"].integer if "steps" in options else STEPS
        if steps > self.manifest.diffusion.levels:
            raise InvalidRequest(f"chain.options steps: got {steps}, expected 1 to {self.manifest.diffusion.levels}")
        every = options["every"].integer if "every" in options else 1
        links = min(steps, self.out_of_time_after or steps)
        answers: list[pb.Answer] = []
        for link in range(links):
            if left.is_set():
                self.left.put(request.request_id)
                return
            if self.late_failure and link == self.break_after:
                raise self.late_failure
            for row, label in enumerate(labels):
                if row == self.diverging and link > 1:
                    continue
                answers.append(self._link(request, row, link, (link + 1) / steps))
                level = np.array(self.manifest.diffusion.levels * (steps - link - 1) // steps - 1)
                answers[-1].outputs.append(tensor_message("level", level))
                broken = row == self.diverging and link == 1
                if broken or link + 1 == links:
                    answers[-1].chain_end = pb.INTERRUPTED if broken or links < steps else pb.MAX_LINKS
                if broken:
                    answers[-1].stop_reason = pb.DIVERGED
                if answers[-1].chain_end or (every and (link + 1) % every == 0):
                    drawn = picture_of(label, (link + 1) / steps)
                    answers[-1].outputs.append(tensor_message("image", drawn))
                    answers[-1].outputs.append(tensor_message("estimate", np.clip(drawn, -1, 1)))
                yield pb.ThinkEvent(answer=answers[-1])
        last = np.stack([picture_of(label, links / steps) for label in labels])
        by_row = [[answer for answer in answers if answer.row == row] for row in range(len(labels))]
        summary = pb.Summary(
            abstain_mask=[links[-1].abstained for links in by_row],
            abstentions=[sum(answer.abstained for answer in links) for links in by_row],
            ticks_used=sum(answer.ticks_used for answer in answers),
            model=self.manifest.name,
            version=self.manifest.version,
            seed=request.chain.seed if request.chain.HasField("seed") else 12345,
            outputs=[tensor_message("image", last), tensor_message("estimate", np.clip(last, -1, 1))],
        )
        yield pb.ThinkEvent(summary=summary)

    def _link(self, request: pb.ThinkRequest, row: int, link: int, certainty: float) -> pb.Answer:
        below = request.abstain_below if request.HasField("abstain_below") else self.manifest.stop.abstain_below
        ticks = ticks_of(row, link)
        return pb.Answer(
            row=row,
            link=link,
            ticks_used=ticks,
            answer_tick=ticks,
            certainty=certainty,
            stop_reason=pb.CERTAIN if certainty >= 0.9 else pb.TICK_BUDGET,
            abstained=certainty < below,
        )
