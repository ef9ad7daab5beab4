"""Being told to stop: SIGTERM becomes an exception, as Ctrl-C is one, so that what was begun is cleared away."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came. No error, so that nobody who catches errors catches it."""


@contextmanager
def terminable() -> Iterator[None]:
    """While entered, in the main thread, the first SIGTERM raises `Terminated`; more are ignored."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
