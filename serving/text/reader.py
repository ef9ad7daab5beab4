"""Tokens read as text while they come: whole characters only, and nothing that may yet turn out to be a stop text."""

import codecs
from collections.abc import Sequence


class Reader:
    """Reads the bytes of one row.

    Args:
        stops: texts that end it, none of them empty. Where several end at the same character, the longest counts.
    """

    __slots__ = ("_decoder", "_held", "_longest", "_sent", "_stops", "stopped")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop text has come; it and what follows is never given out."""
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._sent: list[str] = []

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._sent)

    def feed(self, piece: bytes) -> str:
        """What becomes readable with these bytes."""
        return self._read(self._decoder.decode(piece), last=False)

    def finish(self) -> str:
        """What was held back: nothing follows that it could be a part of. Half a character reads as U+FFFD."""
        return self._read(self._decoder.decode(b"", final=True), last=True)

    def _read(self, more: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        known = len(self._held)
        held = self._held + more
        stop = self._find(held, known)
        self.stopped = stop is not None
        if stop is not None:
            ready, self._held = held[:stop], ""
        else:
            keep = 0 if last else self._begun(held)
            ready, self._held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            self._sent.append(ready)
        return ready

    def _find(self, text: str, known: int) -> int | None:
        """Where the stop text begins that is complete first.

        Args:
            known: characters that were looked at before: no stop text ends among them.
        """
        found = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := text.find(stop, max(known - len(stop) + 1, 0))) >= 0
        ]
        return min(found)[1] if found else None

    def _begun(self, text: str) -> int:
        """How many of the last characters could be the beginning of a stop text."""
        most = min(len(text), self._longest - 1)
        return next((n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
