"""Cards beside and below each other, as many as a screen holds."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table


def in_rows(
    cards: Sequence[RenderableType], ended: Sequence[bool], *, card: tuple[int, int], width: int, room: int | None
) -> Table:
    """All cards, or where they are more than the screen has room for, first those that something still happens on.

    Args:
        ended: of each card, whether it will not change any more.
        card: columns and lines of one.
        width: columns of the screen.
        room: lines of the screen; None shows all.
    """
    columns, lines = card
    across = max((width + 1) // (columns + 1), 1)
    rows = [range(first, min(first + across, len(cards))) for first in range(0, len(cards), across)]
    if room is not None:
        fit = max(room // lines, 1)
        while len(rows) > fit and all(ended[index] for index in rows[0]):
            rows.pop(0)  # has been seen to its end
        rows = rows[:fit]
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(across):
        grid.add_column(width=columns)
    for row in rows:
        grid.add_row(*(cards[index] for index in row))
    return grid
