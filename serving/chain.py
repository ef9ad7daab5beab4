"""A request of several thoughts: what is asked of whoever makes the input of the next out of the answer of the last.

    thought -> answer -> follow -> inputs of the next link, or the end

The engine sees only thoughts: it hands each answer over, and lets what comes back wait for a slot.
"""

from collections.abc import Mapping
from typing import Protocol

from serving.events import Answer, Summary
from serving.request import Array


class Chain(Protocol):
    """What follows each thought of one request. One object a request; called on the engine's thread only.

    An exception of either method fails its request, and no other.
    """

    def follow(self, answer: Answer) -> Mapping[str, Array] | None:
        """Take in a thought's answer, and give the inputs of the row's next thought.

        Args:
            answer: with row, link, prediction and stop reason set. It comes with `chain_end` INTERRUPTED when this link
                is the row's last whatever is returned: the thought diverged, or its time was up. Then alone may it lack
                a prediction. `text`, `outputs` and `chain_end` may be set here.

        Returns:
            Every input of the program, [1, ...] in its datatype, or None when the row's chain ends; a `chain_end` that
            was not set is then MAX_LINKS.
        """

    def finish(self, summary: Summary) -> None:
        """Complete the summary: seed, texts. A row may have ended since its last answer, while its next link waited."""
