"""What a client sees of a thought: its ticks, its answer, the request's summary."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protos import ctm_serving_pb2 as pb
from serving.request import Array, ChainEnd, StopReason
from serving.tensors import array


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One of the best classes."""

    index: int
    label: str
    """The model's name for it; its index when the model names none."""
    score: float
    """Softmax of the prediction, in [0, 1]."""
    position: int = 0
    """Which position of a structured prediction."""


# Compared by identity: they hold arrays.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tick:
    """One tick of one row's thought."""

    row: int
    link: int
    tick: int
    """1 is the first."""
    certainty: float
    """In [0, 1]."""
    top: tuple[ClassScore, ...] = ()
    """The `top_k` asked for, best first, position by position."""
    energy: float | None = None
    prediction: Array | None = None
    """Without the row dimension; read-only. None unless `predictions` was asked for."""
    details: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What came of one row's thought."""

    row: int
    link: int
    ticks_used: int
    answer_tick: int
    """The tick that the prediction comes from; 0 when the row never ticked, and then there is no prediction."""
    certainty: float
    stop_reason: StopReason
    abstained: bool
    """Less certain than asked for: an outcome, not an error."""
    prediction: Array | None = None
    top: tuple[ClassScore, ...] = ()
    energy: float | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """Of text chains: token. Of diffusion: level, that of the image now, -1 without noise; and where they were asked
    for image, as the step left it, and estimate, what the step took for the clean one, [height, width] each."""
    text: str = ""
    """Of text chains: what became readable with this link; half characters and half stop texts wait for a later one."""
    chain_end: ChainEnd = ChainEnd.GOES_ON
    """Of chains: why this link is its row's last, if it is."""

    @property
    def token(self) -> int | None:
        """Of text chains: the token that was drawn."""
        token = self.outputs.get("token")
        return None if token is None else int(token)

    @property
    def label(self) -> str | None:
        """The best class, when any were asked for and there is one."""
        return self.top[0].label if self.top else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The last event of a request that did not fail."""

    abstain_mask: tuple[bool, ...]
    """One for each row."""
    abstentions: tuple[int, ...]
    """One for each row: how many of its links abstained."""
    ticks_used: int
    """Of all rows and links."""
    queue_seconds: float
    think_seconds: float
    model: str
    version: int
    seed: int | None = None
    """Of chains: what their randomness was drawn from."""
    texts: tuple[str, ...] = ()
    """Of text chains, one for each row: all that was generated, without the stop text."""
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """Of diffusion: image and estimate, [rows, height, width], what each row came to."""


Event = Tick | Answer | Summary


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """A request's whole outcome."""

    answers: list[Answer]
    """By row; of a chain, each row's last."""
    summary: Summary
    links: list[list[Answer]] = field(default_factory=list)
    """By row, all its answers in order: one of a single thought, else as many as its chain has links."""

    @property
    def text(self) -> str:
        """Of a text chain of one row: all that was generated, without the stop text.

        Raises:
            ValueError: there are several, or none; see `summary.texts`.
        """
        (text,) = self.summary.texts
        return text

    @property
    def images(self) -> Array:
        """Of diffusion: what was drawn, [rows, height, width]; noisy still where a row ended early.

        Raises:
            KeyError: the model draws no images.
        """
        return self.summary.outputs["image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A model that is served."""

    name: str
    version: int
    family: str
    task: str
    description: str
    ticks: int
    """The tick budget of a thought that asks for none."""
    backend: str


def events_of(message: pb.ThinkEvent) -> list[Event]:
    """A message's events; a failure is none of them.

    Raises:
        ValueError: a tensor in it is malformed.
    """
    match message.WhichOneof("event"):
        case "ticks":
            return [_tick(tick) for tick in message.ticks.ticks]
        case "answer":
            return [_answer(message.answer)]
        case "summary":
            return [_summary(message.summary)]
        case _:  # a newer server's
            return []


def collect(events: Iterable[Event]) -> Result | None:
    """What they add up to; None when the summary is missing."""
    links: dict[int, list[Answer]] = {}
    summary = None
    for event in events:
        if isinstance(event, Answer):
            links.setdefault(event.row, []).append(event)
        elif isinstance(event, Summary):
            summary = event
    if summary is None:
        return None
    by_row = [links[row] for row in sorted(links)]
    return Result(answers=[row[-1] for row in by_row], summary=summary, links=by_row)


def model_info(message: pb.ModelInfo) -> ModelInfo:
    return ModelInfo(
        name=message.name,
        version=message.version,
        family=message.family,
        task=message.task,
        description=message.description,
        ticks=message.ticks,
        backend=message.backend,
    )


def _tick(message: pb.Tick) -> Tick:
    return Tick(
        row=message.row,
        link=message.link,
        tick=message.tick,
        certainty=message.certainty,
        top=_top(message.top),
        energy=message.energy if message.HasField("energy") else None,
        prediction=array(message.prediction) if message.HasField("prediction") else None,
        details={tensor.name: array(tensor) for tensor in message.details},
    )


def _answer(message: pb.Answer) -> Answer:
    return Answer(
        row=message.row,
        link=message.link,
        ticks_used=message.ticks_used,
        answer_tick=message.answer_tick,
        certainty=message.certainty,
        stop_reason=StopReason(message.stop_reason),
        abstained=message.abstained,
        prediction=array(message.prediction) if message.HasField("prediction") else None,
        top=_top(message.top),
        energy=message.energy if message.HasField("energy") else None,
        outputs={tensor.name: array(tensor) for tensor in message.outputs},
        text=message.text,
        chain_end=ChainEnd(message.chain_end),
    )


def _summary(message: pb.Summary) -> Summary:
    return Summary(
        abstain_mask=tuple(message.abstain_mask),
        abstentions=tuple(message.abstentions),
        ticks_used=message.ticks_used,
        queue_seconds=message.queue_seconds,
        think_seconds=message.think_seconds,
        model=message.model,
        version=message.version,
        seed=message.seed if message.HasField("seed") else None,
        texts=tuple(message.texts),
        outputs={tensor.name: array(tensor) for tensor in message.outputs},
    )


def _top(scores: Iterable[pb.ClassScore]) -> tuple[ClassScore, ...]:
    return tuple(
        ClassScore(index=one.index, label=one.label or str(one.index), score=one.score, position=one.position)
        for one in scores
    )
