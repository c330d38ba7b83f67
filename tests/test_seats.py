"""Who sits where in which batch, and that nobody moves when others are done."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yue_cli.seats import LADDER, Seat, deal, ladder_step, rows_that_fit, seat_all


def test_the_ladder() -> None:
    assert [ladder_step(rows) for rows in (1, 2, 3, 5, 9, 17, 21, 65, 10**6)] == [1, 2, 4, 8, 16, 20, 32, 128, 4096]


def test_rows_fit_into_memory_and_are_no_more_than_wanted() -> None:
    assert rows_that_fit(100, bytes_per_row=10, wanted=40) == 8
    assert rows_that_fit(10**6, bytes_per_row=10, wanted=40) == 64
    assert rows_that_fit(10**6, bytes_per_row=10, wanted=2) == 2
    assert rows_that_fit(-5, bytes_per_row=10, wanted=40) == 1


def test_a_last_batch_has_as_few_rows_as_it_may() -> None:
    assert deal(7, 4) == [*(Seat(4, place) for place in range(4)), *(Seat(4, place) for place in range(3))]
    assert deal(5, 4)[-1] == Seat(1, 0)
    assert deal(0, 4) == []
    with pytest.raises(AssertionError, match="3 rows are no step of the ladder"):
        deal(7, 3)


def test_a_batch_names_who_sits_in_each_place() -> None:
    assert seat_all(deal(7, 4)) == [[0, 1, 2, 3], [4, 5, 6, None]]
    assert seat_all([Seat(4, 2), Seat(2, 0), Seat(4, 0)]) == [[2, None, 0, None], [1, None]]


@given(st.integers(0, 60), st.sampled_from(LADDER[:7]), st.randoms())
def test_everybody_keeps_rows_and_place_whoever_is_done(count: int, rows: int, random) -> None:
    seats = deal(count, rows)
    whole = seat_all(seats)
    assert [number for batch in whole for number in batch if number is not None] == list(range(count))
    left = sorted(random.sample(range(count), random.randint(0, count)))
    batches = seat_all([seats[number] for number in left])
    found = {
        left[number]: Seat(len(batch), place)
        for batch in batches
        for place, number in enumerate(batch)
        if number is not None
    }
    assert found == {number: seats[number] for number in left}
    assert len(batches) <= len(whole)
