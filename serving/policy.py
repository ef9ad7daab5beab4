"""What a caller asked for, resolved against a bundle's defaults and limits: when to stop, what to send."""

from math import inf, isnan

from protos import ctm_serving_pb2 as pb
from serving.bundle import Bundle
from serving.mismatch import Mismatch, listing, quote
from serving.request import AnswerRule, StopPolicy, StopReason, StreamPolicy

_ANSWER_RULES = {0: AnswerRule.MOST_CERTAIN} | {int(rule): rule for rule in AnswerRule}
_CAN_BE_DISABLED = (StopReason.MODEL_DONE, StopReason.CERTAIN, StopReason.ENERGY)

_MOST_LEADING = 256
"""Best classes that a tick may name: each is a message of its own, and there are vocabularies of many thousands."""


def stop_policy(message: pb.StopPolicy, bundle: Bundle) -> StopPolicy:
    """When a thought of this request stops.

    Raises:
        Mismatch: a field outside its range, or one that the model cannot fulfil.
    """
    default, off = bundle.stop, _disabled(message)
    max_ticks, min_ticks = _ticks(message, bundle)
    threshold = default.certainty_threshold
    if message.HasField("certainty_threshold"):
        threshold = certainty("stop.certainty_threshold", message.certainty_threshold)
    energy_threshold, energy_delta = _energy(message, bundle)
    return StopPolicy(
        max_ticks=max_ticks,
        min_ticks=min_ticks,
        certainty_threshold=inf if StopReason.CERTAIN in off else threshold,
        patience=_patience(message, bundle),
        energy_threshold=-inf if StopReason.ENERGY in off else energy_threshold,
        energy_delta=0.0 if StopReason.ENERGY in off else energy_delta,
        model_done=StopReason.MODEL_DONE not in off,
    )


def stream_policy(message: pb.StreamPolicy, bundle: Bundle) -> StreamPolicy:
    """What a caller sees of each tick.

    Raises:
        Mismatch: classes or details that the model does not have.
    """
    classes = bundle.program.prediction.shape[-1:]
    if message.top_k and not classes:
        raise Mismatch("stream.top_k", message.top_k, f"0: the prediction of {bundle} has no classes")
    top_k = min(message.top_k, *classes) if classes else 0
    if top_k > _MOST_LEADING:
        raise Mismatch("stream.top_k", message.top_k, f"at most {_MOST_LEADING}; stream.predictions has all of them")
    details = tuple(dict.fromkeys(message.details))
    known = [spec.name for spec in bundle.program.details]
    for name in details:
        if name not in known:
            raise Mismatch("stream.details", quote(name), f"of {listing(known)}")
    return StreamPolicy(
        every=min(message.every, bundle.tick_cap + 1) if message.HasField("every") else 1,  # beyond the cap: never
        predictions=message.predictions,
        top_k=top_k,
        details=details,
    )


def answer_rule(number: int) -> AnswerRule:
    """The rule of that number in the protocol; 0 is the default.

    Raises:
        Mismatch: there is none.
    """
    rule = _ANSWER_RULES.get(number)
    if rule is None:
        raise Mismatch("answer_rule", number, f"one of {listing(pb.AnswerRule.keys())}")
    return rule


def certainty(what: str, value: float) -> float:
    """`value`, once it is known to be in [0, 1].

    Raises:
        Mismatch: it is not, or it is NaN.
    """
    if not 0.0 <= value <= 1.0:
        raise Mismatch(what, value, "a certainty in [0, 1]")
    return value


def check_chain(message: pb.ChainPolicy, bundle: Bundle) -> None:
    """A model without a chain runs one thought a row.

    Raises:
        Mismatch: the request asks for more.
    """
    if message.HasField("max_links") and message.max_links != 1:
        raise Mismatch("chain.max_links", message.max_links, f"1: {bundle} runs one thought a row, not a chain")
    if message.options:
        raise Mismatch("chain.options", quote(min(message.options)), f"none: {bundle} runs no chain")


def _disabled(message: pb.StopPolicy) -> set[StopReason]:
    allowed = {int(reason) for reason in _CAN_BE_DISABLED}
    for number in message.disabled:
        if number not in allowed:
            name = pb.StopReason.Name(number) if number in pb.StopReason.values() else str(number)
            raise Mismatch("stop.disabled", name, f"any of {listing(reason.name for reason in _CAN_BE_DISABLED)}")
    return {StopReason(number) for number in message.disabled}


def _ticks(message: pb.StopPolicy, bundle: Bundle) -> tuple[int, int]:
    """Most and fewest ticks."""
    most = message.max_ticks if message.HasField("max_ticks") else bundle.stop.max_ticks
    if not 1 <= most <= bundle.tick_cap:
        raise Mismatch("stop.max_ticks", most, f"1 to {bundle.tick_cap}, the tick cap of {bundle}")
    if not message.HasField("min_ticks"):
        return most, min(bundle.stop.min_ticks, most)  # a smaller budget lowers the bundle's own least with it
    if message.min_ticks > most:
        raise Mismatch("stop.min_ticks", message.min_ticks, f"at most max_ticks, {most}")
    return most, message.min_ticks


def _patience(message: pb.StopPolicy, bundle: Bundle) -> int:
    if not message.HasField("patience"):
        return bundle.stop.patience
    if message.patience < 1:
        raise Mismatch("stop.patience", 0, "at least 1 tick")
    if message.patience > 1 and not bundle.program.prediction.shape:
        raise Mismatch("stop.patience", message.patience, f"1: the prediction of {bundle} has no classes")
    return min(message.patience, bundle.tick_cap + 1)  # beyond the cap it never comes true, whatever its size


def _energy(message: pb.StopPolicy, bundle: Bundle) -> tuple[float, float]:
    """Threshold and delta."""
    threshold, delta = bundle.stop.energy_threshold, bundle.stop.energy_delta
    if message.HasField("energy_threshold"):
        threshold = message.energy_threshold
        _check_energy("stop.energy_threshold", threshold, bundle, sound=not isnan(threshold), expected="a number")
    if message.HasField("energy_delta"):
        delta = message.energy_delta
        _check_energy("stop.energy_delta", delta, bundle, sound=delta >= 0, expected="a number of at least 0")
    return threshold, delta


def _check_energy(what: str, value: float, bundle: Bundle, *, sound: bool, expected: str) -> None:
    if bundle.program.energy is None:
        raise Mismatch(what, value, f"none: {bundle} has no energy head")
    if not sound:
        raise Mismatch(what, value, expected)
