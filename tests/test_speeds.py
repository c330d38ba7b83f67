"""What a machine was measured to do is remembered, and tells about how long a song takes."""

import json
from dataclasses import replace

import pytest

from yue_cli.errors import StorageError
from yue_cli.speeds import FILE, Measured, Speeds, interpolate, remember, remembered

CARD = "some card"
STAGE1 = Measured(
    CARD, "stage1", 1000, {"torch": "2.13"}, "2026-01-02T03:04:05+00:00", token_s=((1000, 0.01), (3000, 0.02))
)
STAGE2 = Measured(CARD, "stage2", 500, {}, "2026-01-02", rows=20, window_s=6.0)
DECODE = Measured(CARD, "decode", 300, {}, "2026-01-02", decode_s=0.4)


def test_what_is_remembered_comes_back(tmp_path):
    remember(tmp_path / "home", [STAGE1, STAGE2, DECODE])
    assert remembered(tmp_path / "home", CARD) == Speeds((STAGE1, STAGE2, DECODE))


def test_another_device_has_no_speeds(tmp_path):
    remember(tmp_path, [STAGE1])
    assert remembered(tmp_path, "another card") is None


def test_a_new_measurement_takes_the_place_of_its_like_alone(tmp_path):
    other_card, smaller = replace(STAGE1, device="another card"), replace(STAGE1, weight_bytes=250)
    remember(tmp_path, [STAGE1, STAGE2, other_card, smaller])
    newer = replace(STAGE1, weight_bytes=1100, date="2026-02-01")
    remember(tmp_path, [newer])
    assert remembered(tmp_path, CARD) == Speeds((STAGE2, smaller, newer))
    assert remembered(tmp_path, "another card") == Speeds((other_card,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"format": "yue-speeds", "version": 2, "measured": []}',
        b'{"format": "yue-speeds", "version": 1, "measured": [{"device": "some card"}]}',
        b'{"format": "yue-speeds", "version": 1, "measured": 7}',
    ],
)
def test_a_file_that_is_none_is_as_good_as_missing(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert remembered(tmp_path, CARD) is None
    remember(tmp_path, [DECODE])
    assert remembered(tmp_path, CARD) == Speeds((DECODE,))


@pytest.mark.parametrize("change", [{"rows": -1}, {"window_s": "6"}, {"token_s": [[1, "x"]]}, {"extra": 1}])
def test_a_measurement_with_a_wrong_value_is_not_believed(tmp_path, change):
    remember(tmp_path, [STAGE2])
    content = json.loads((tmp_path / FILE).read_text())
    content["measured"][0] |= change
    (tmp_path / FILE).write_text(json.dumps(content))
    assert remembered(tmp_path, CARD) is None


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError, match="home: "):
        remember(tmp_path / "home", [DECODE])


def test_times_are_read_between_the_measured_contexts():
    # 2000 tokens after 1000: the middle is 2000, between 10 and 20 ms.
    assert Speeds((STAGE1,)).stage1_s(1000, 1000, 2000) == pytest.approx(2000 * 0.015)
    # Weights of 10 % more bytes take 10 % longer.
    assert Speeds((STAGE1,)).stage1_s(1100, 1000, 2000) == pytest.approx(2000 * 0.0165)


def test_windows_beyond_the_measured_rows_take_longer_and_fewer_do_not_take_less():
    known = Speeds((STAGE2,))
    assert [known.stage2_s(500, windows) for windows in (1, 20, 50)] == [6.0, 6.0, 15.0]
    assert known.stage2_s(500, 2, frames=150) == 3.0


def test_each_format_of_keys_and_values_has_speeds_of_its_own(tmp_path):
    packed = replace(STAGE2, cache="int4", window_s=9.0)
    remember(tmp_path, [STAGE1, STAGE2])
    remember(tmp_path, [packed])
    known = remembered(tmp_path, CARD)
    assert known == Speeds((STAGE1, STAGE2, packed))
    assert [known.stage2_s(500, 20, cache=cache) for cache in ("auto", "int4", "int8")] == [6.0, 9.0, None]
    assert known.stage1_s(1000, 1000, 10, cache="int8") is None


def test_decoding_grows_with_the_music():
    assert Speeds((DECODE,)).decode_s(60.0) == pytest.approx(24.0)


def test_nothing_is_told_of_what_was_not_measured():
    known = Speeds((STAGE1,))
    assert known.stage1_s(500, 1000, 10) is None
    assert known.stage2_s(500, 20) is None
    assert known.decode_s(60.0) is None


def test_beyond_the_points_the_nearest_one_counts():
    points = ((10, 1.0), (20, 3.0))
    assert [interpolate(points, place) for place in (0, 10, 15, 20, 99)] == [1.0, 1.0, 2.0, 3.0, 3.0]
