"""Being asked to stop: SIGTERM and SIGINT become a question that the training loop asks between two updates."""

import signal
from types import FrameType, TracebackType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While entered, the first signal is only noted; a second one acts as if nobody had listened."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """The signal that came, None while there was none."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in ASKING:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
