"""What one caller has not been sent yet: bounded, so that a slow reader costs memory for a few ticks and no more.

While there is room every tick is kept. Beyond, the newest tick of a thought takes the place of its unsent older one;
answers and the last event are never lost. A chain, whose answers never end by themselves, is told of those taken, and
goes no further than a few ahead. Lives on the event loop; has no lock.
"""

import asyncio
from collections.abc import Callable

from serving.events import Answer, Event, Tick


class Outbox:
    """Unsent events of one request, in order.

    Args:
        capacity: events kept before ticks replace older ticks; a thought without an unsent tick may always add one.
        on_read: told how many answers have been taken, `batch` or more at a time, while more may come.
        batch: at most as many as may be unread before nothing more comes, or it never would.
    """

    __slots__ = (
        "_answers",
        "_batch",
        "_capacity",
        "_events",
        "_on_read",
        "_ready",
        "_unsent_tick",
        "abandoned",
        "closed",
    )

    def __init__(self, capacity: int, *, on_read: Callable[[int], None] | None = None, batch: int = 1) -> None:
        self.closed = False
        """Whether the last event is in."""
        self.abandoned = False
        """Whether nobody wants the rest."""
        self._capacity = capacity
        self._events: list[Event] = []
        self._unsent_tick: dict[int, int] = {}  # row -> place of the newest unsent tick of its thought
        self._answers = 0  # since somebody was last told
        self._on_read, self._batch = on_read, batch
        self._ready: asyncio.Future[None] | None = None

    def put(self, event: Event) -> bool:
        """Add an event; true when it took the place of an older tick."""
        assert not self.closed, "nothing follows a request's last event"
        if isinstance(event, Tick):
            place = self._unsent_tick.get(event.row)
            if place is not None and len(self._events) >= self._capacity:
                self._events[place] = event
                return True
            self._unsent_tick[event.row] = len(self._events)
        elif isinstance(event, Answer):
            self._answers += 1
            self._unsent_tick.pop(event.row, None)  # ticks of the next link follow this answer
        else:
            self.closed = True
        self._events.append(event)
        self._wake()
        return False

    def abandon(self) -> None:
        """Forget what is unsent; whoever waits in `take` is told that nothing follows."""
        self._events.clear()
        self._unsent_tick.clear()
        self.closed = self.abandoned = True
        self._wake()

    async def take(self) -> list[Event]:
        """All that is unsent, as soon as there is something; empty when the last event has been taken."""
        if not self._events and not self.closed:
            self._ready = asyncio.get_running_loop().create_future()
            try:
                await self._ready
            finally:
                self._ready = None
        events, self._events = self._events, []
        self._unsent_tick.clear()
        if self._on_read is not None and self._answers >= self._batch and not self.closed:
            self._on_read(self._answers)
            self._answers = 0
        return events

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
