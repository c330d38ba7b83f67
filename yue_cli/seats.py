"""Rows of batches, and who sits where: how many rows are computed together, and which of them is whose.

An engine may choose its kernels by the number of rows, and a CPU its threads by a row's place among them: both can
change the last bits of numbers. So the numbers of rows come from a short ladder, and who was dealt a seat keeps it: a
resumed run leaves the seats of those that are done empty, and computes for the others what an undisturbed one does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# 20 rows are both tracks of a minute in stage 2.
LADDER = (1, 2, 4, 8, 16, 20, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Seat:
    rows: int  # of the batch: a step of the ladder
    place: int  # 0..rows - 1


def ladder_step(rows: int) -> int:
    """Find the smallest step of the ladder that holds this many rows; the highest one if none does."""
    return next((step for step in LADDER if step >= rows), LADDER[-1])


def rows_that_fit(free_bytes: int, *, bytes_per_row: int, wanted: int) -> int:
    """Choose how many rows are computed together: as many as memory holds and are wanted, at least one."""
    holds = [step for step in LADDER if step * bytes_per_row <= free_bytes]
    return min(max(holds, default=1), ladder_step(wanted))


def deal(count: int, rows: int) -> list[Seat]:
    """Deal seats in batches of `rows`; the last batch has as few as the ladder allows."""
    assert rows in LADDER, f"{rows} rows are no step of the ladder"
    seats = []
    for first in range(0, count, rows):
        taken = min(rows, count - first)
        seats += [Seat(ladder_step(taken), place) for place in range(taken)]
    return seats


def seat_all(seats: Sequence[Seat]) -> list[list[int | None]]:
    """Put those who hold these seats into batches: for every place who sits there, by number, or None.

    Those whose seats were dealt together are together again, unless some stay away: then others may take their seats.
    """
    batches: list[list[int | None]] = []
    for number, seat in enumerate(seats):
        for batch in batches:
            if len(batch) == seat.rows and batch[seat.place] is None:
                break
        else:
            batch = [None] * seat.rows
            batches.append(batch)
        batch[seat.place] = number
    return batches
