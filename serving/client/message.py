"""What a client may ask for, and the messages that say so."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch, listing, quote
from serving.request import AnswerRule, StopReason
from serving.tensors import tensor_message, text_message

LAST_WORD_SECONDS = 0.5
"""A call outlives its timeout by this, so that an answer given in the last moment still arrives."""

LONGEST_TIMEOUT_SECONDS = 1e8
"""Three years. gRPC takes what it cannot count for a deadline that is over."""


# Of all options: every one may be left out, or be None: the model's default.
class _CommonOptions(TypedDict, total=False):
    """How to think, and when to stop."""

    version: int
    """0: the newest served."""
    threshold: float | None
    """Stop at this certainty, in [0, 1], inclusive."""
    min_ticks: int | None
    max_ticks: int | None
    patience: int | None
    """Be certain only when the top prediction also stayed the same over this many ticks."""
    energy_threshold: float | None
    energy_delta: float | None
    disabled: Iterable[StopReason]
    """Any of CERTAIN, ENERGY, MODEL_DONE: rules that shall not stop a thought."""
    answer_rule: AnswerRule | None
    abstain_below: float | None
    """Mark answers less certain than this, in [0, 1], as abstained."""
    priority: int
    """Larger is admitted first."""
    timeout: float | None
    """Seconds, more than 0. When they are nearly over, the best answer so far arrives; without any it is
    `DeadlineExceeded`."""
    request_id: str | None
    """Stands in every log line of the server."""


class AnswerOptions(_CommonOptions, total=False):
    """Also, what to say of an answer."""

    top_k: int
    """Name this many of the best classes, at most 256; 0 for none."""


class ThinkOptions(AnswerOptions, total=False):
    """Also, what to see while it thinks."""

    every: int | None
    """Send every n-th tick; 0: answers only; None: each."""
    predictions: bool
    """Send the whole prediction with each tick."""
    details: str | Iterable[str]
    """Names of the model's details (see its manifest) to send with each tick."""


class GenerateOptions(_CommonOptions, total=False):
    """How to write a text, token after token."""

    max_links: int
    """Tokens of one text, at most."""
    temperature: float | None
    """How evenly tokens are drawn: 1 as predicted, the default; 0 takes the best one always."""
    top_k: int | None
    """Draw from this many best tokens only; 0: all, the default."""
    top_p: float | None
    """Draw from the fewest best tokens that have this share of the probability, in (0, 1]."""
    stop: str | Sequence[str]
    """A text ends before any of these."""
    seed: int | None
    """The same one draws the same text again; None: the server's to draw, and told in the summary."""
    every: int | None
    """Send every n-th tick of each thought; 0: answers only, the default; None: each."""
    predictions: bool
    """Send the whole prediction with each tick and each token."""
    leading: int
    """Name this many of the best tokens, at most 256, with each tick and each token; 0 for none, the default."""


class SampleOptions(_CommonOptions, total=False):
    """How to draw an image, reverse step after reverse step."""

    steps: int | None
    """Reverse steps, at most as many as the model knows levels of noise."""
    eta: float | None
    """How much noise each step adds, in [0, 1]: 0 none, 1 as much as it can."""
    seed: int | None
    """The same one draws the same images again; None: the server's to draw, and told in the summary."""
    stride: int | None
    """Steps that an image may take at once when its thought is certain; 1, the default: each by itself."""
    images_every: int
    """Send the image at every n-th step and at the last; 0: at the last alone; 1, the default: at each."""
    every: int | None
    """Send every n-th tick of each thought; 0: answers only, the default; None: each."""
    predictions: bool
    """Send the whole prediction with each tick and each answer."""
    details: str | Iterable[str]
    """Names of the model's details (see its manifest) to send with each tick."""


def answer_options(options: AnswerOptions) -> ThinkOptions:
    """To see the answers only, each with its best class unless more or fewer are wished."""
    return cast(ThinkOptions, {"top_k": 1, **options, "every": 0})


def request_message(
    model: str, inputs: Mapping[str, ArrayLike], *, chain: pb.ChainPolicy | None = None, **options: Unpack[ThinkOptions]
) -> pb.ThinkRequest:
    """A request for the rows of `inputs`, each [rows, ...] in the model's datatype (an image is mostly float32).

    An input of texts is a text, or a sequence of them.

    Raises:
        ValueError: a number does not fit its field, or an array's dtype has no name on the wire.
        TypeError: an option of the wrong type, or one that is not known.
    """
    if unknown := sorted(options.keys() - ThinkOptions.__optional_keys__):
        raise TypeError(f"no option {listing(unknown)}; there are {listing(sorted(ThinkOptions.__optional_keys__))}")
    timeout = options.get("timeout")
    if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT_SECONDS:
        raise Mismatch("timeout", timeout, f"more than 0 seconds, and at most {LONGEST_TIMEOUT_SECONDS:g}")
    return pb.ThinkRequest(
        request_id=options.get("request_id") or "",
        model=model,
        version=options.get("version", 0),
        inputs=[_tensor(name, values) for name, values in inputs.items()],
        stop=_stop_policy(options),
        answer_rule=pb.AnswerRule.ValueType(options.get("answer_rule") or 0),
        abstain_below=options.get("abstain_below"),
        stream=_stream_policy(options),
        priority=options.get("priority", 0),
        timeout_seconds=timeout,
        chain=chain,
    )


def _stop_policy(options: ThinkOptions) -> pb.StopPolicy:
    return pb.StopPolicy(
        certainty_threshold=options.get("threshold"),
        min_ticks=options.get("min_ticks"),
        max_ticks=options.get("max_ticks"),
        patience=options.get("patience"),
        energy_threshold=options.get("energy_threshold"),
        energy_delta=options.get("energy_delta"),
        disabled=[pb.StopReason.ValueType(reason) for reason in options.get("disabled") or ()],
    )


def _stream_policy(options: ThinkOptions) -> pb.StreamPolicy:
    return pb.StreamPolicy(
        every=options.get("every"),
        predictions=options.get("predictions", False),
        top_k=options.get("top_k", 0),
        details=_texts("details", options.get("details") or ()),
    )


def generate_message(
    model: str,
    prompt: str | Sequence[str],
    *,
    max_links: int = 64,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    every: int | None = 0,
    predictions: bool = False,
    leading: int = 0,
    **common: Unpack[_CommonOptions],
) -> pb.ThinkRequest:
    """A request for the texts that follow one prompt or several.

    Raises:
        ValueError, TypeError: as `request_message`, and where there is no prompt.
    """
    if not isinstance(prompt, str) and not len(prompt):
        raise ValueError("no prompts; at least one is needed")
    stops = _texts("stop", stop)
    options = {
        "temperature": None if temperature is None else pb.Value(number=temperature),
        "top_k": None if top_k is None else pb.Value(integer=top_k),
        "top_p": None if top_p is None else pb.Value(number=top_p),
        "stop": pb.Value(texts=pb.TextList(values=stops)) if stops else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return request_message(
        model,
        {"text": prompt},
        every=every,
        predictions=predictions,
        top_k=leading,
        chain=pb.ChainPolicy(max_links=max_links, seed=seed, options=given),
        **common,
    )


def sample_message(
    model: str,
    label: ArrayLike,
    *,
    steps: int | None = None,
    eta: float | None = None,
    seed: int | None = None,
    stride: int | None = None,
    images_every: int = 1,
    every: int | None = 0,
    predictions: bool = False,
    details: str | Iterable[str] = (),
    **common: Unpack[_CommonOptions],
) -> pb.ThinkRequest:
    """A request for images, one of each class in `label`: a number or a name, or several of either.

    Raises:
        ValueError, TypeError: as `request_message`, and where there is no class.
    """
    classes = np.atleast_1d(np.asarray(label))
    if classes.dtype.kind not in "iuU" or classes.size == 0:
        raise ValueError(f"label: got {quote(label)}, expected numbers or names of classes, at least one")
    if seed is not None and not 0 <= seed < 2**64:
        raise Mismatch("seed", seed, "0 to 2^64 - 1")
    options = {
        "steps": None if steps is None else pb.Value(integer=steps),
        "eta": None if eta is None else pb.Value(number=eta),
        "stride": None if stride is None else pb.Value(integer=stride),
        "every": pb.Value(integer=images_every),
    }
    given = {name: value for name, value in options.items() if value is not None}
    return request_message(
        model,
        {"label": classes if classes.dtype.kind == "U" else classes.astype(np.int64)},
        every=every,
        predictions=predictions,
        details=details,
        chain=pb.ChainPolicy(seed=seed, options=given),
        **common,
    )


def _texts(option: str, values: str | Iterable[str]) -> list[str]:
    """One text, or several; a text alone is no list of its letters."""
    texts = [values] if isinstance(values, str) else list(values)
    if others := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"{option} holds {others[0]!r}; expected texts alone")
    return texts


def _tensor(name: str, values: ArrayLike) -> pb.Tensor:
    if isinstance(values, str | bytes):
        return text_message(name, [values])
    if isinstance(values, Sequence) and any(isinstance(value, str | bytes) for value in values):
        if others := [value for value in values if not isinstance(value, str | bytes)]:
            raise TypeError(f"input {name!r} holds texts and {others[0]!r}; expected texts alone")
        return text_message(name, cast(Sequence[str | bytes], values))
    array = np.asarray(values)
    are_texts = array.dtype.kind == "U" and array.ndim == 1
    return text_message(name, array.tolist()) if are_texts else tensor_message(name, array)
