"""A request of several thoughts: what is asked of whoever makes the input of the next out of the answer of the last.

    thought -> answer -> follow -> inputs of the next link, or the end

The engine sees only thoughts: it hands each answer over, and lets what comes back wait for a slot.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.events import Answer, Summary
from serving.program import TensorSpec
from serving.request import Array, ChainEnd, StopReason

_INTERRUPTING = (StopReason.DIVERGED, StopReason.DEADLINE)


class Chain(Protocol):
    """What follows each thought of one request. One object a request; called on the engine's thread only.

    An exception of either method fails its request, and no other.
    """

    def follow(self, answer: Answer) -> Mapping[str, Array] | None:
        """Take in a thought's answer, and give the inputs of the row's next thought.

        Args:
            answer: with row, link, prediction and stop reason set. It comes with `chain_end` INTERRUPTED when this link
                is the row's last whatever is returned: the thought diverged, or its time was up. Then alone may it lack
                a prediction, or what the program's finish gave. `text`, `outputs` and `chain_end` may be set here.

        Returns:
            Every tensor that a thought of the program begins with, [1, ...] in its datatype, or None when the row's
            chain ends; a `chain_end` that was not set is then MAX_LINKS.
        """

    def finish(self, summary: Summary) -> None:
        """Complete the summary: seed, texts, outputs.

        A row may have ended since its last answer, while its next link waited.
        """


def next_link(chain: Chain, answer: Answer, beginning: Sequence[TensorSpec]) -> Mapping[str, Array] | None:
    """What the row's next thought begins with, or None and an answer that says why there is none.

    Args:
        beginning: what every thought of the program begins with.

    Raises:
        ValueError: the chain gave what the program cannot take.
    """
    if answer.stop_reason in _INTERRUPTING:
        answer.chain_end = ChainEnd.INTERRUPTED
    following = chain.follow(answer)
    if following is None or answer.chain_end is not ChainEnd.GOES_ON:
        answer.chain_end = answer.chain_end or ChainEnd.MAX_LINKS
        return None
    # Others are encoded along with it: what does not fit must not reach them.
    expected = {spec.name: (spec.dtype, (1, *spec.shape)) for spec in beginning}
    found = {name: (values.dtype, values.shape) for name, values in following.items()}
    if found != expected:
        raise ValueError(f"the chain gave inputs {found}, expected {expected}")
    return following
