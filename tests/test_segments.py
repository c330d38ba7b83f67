"""Which segments are kept: by what their keys depend on, and by number."""

from dataclasses import replace

import numpy as np
import pytest

from tests.folders import contents
from yue_cli.errors import ArtifactError, SettingsError
from yue_cli.project import Project, SegmentRecord
from yue_cli.prompt import Prompts
from yue_cli.segments import SegmentKeys, check_start, copies, keep_before, keep_current
from yue_cli.song import Song

PROMPTS = Prompts(
    head=np.array([1, 2, 3]),
    reference=np.array([], dtype=np.int64),
    segments=tuple(np.array([10 + number, 20]) for number in range(4)),
    start_of_segment=np.array([10]),
    end_of_segment=np.array([11]),
    end_of_audio=2,
)
RECIPE = {
    "stage1.temperature": 1.0,
    "rules": "yue",
    "segments": 3,
    "seed": "7",
    "lyrics": "hash of them",
    "genre": "hash of it",
}
SONG = Song(seed=7)
IDS = [np.array([5, number, 2]) for number in range(4)]


def keys(prompts=PROMPTS, song=SONG, **changes) -> SegmentKeys:
    return SegmentKeys(prompts, song, RECIPE | {key.replace("__", "."): value for key, value in changes.items()})


def records(count: int, made_by: SegmentKeys | None = None) -> list[SegmentRecord]:
    made_by = made_by or keys()
    return [
        SegmentRecord(number, IDS[number - 1], made_by.key(number, IDS[: number - 1]), "verse", 7, False)
        for number in range(1, count + 1)
    ]


def kept(now: SegmentKeys, count: int = 3, wanted: int = 3) -> int:
    return len(keep_current(records(count), now, wanted))


def test_segments_that_fit_are_all_kept():
    there = records(3)
    assert keep_current(there, keys(), 3) == there


def test_a_key_is_a_hash_that_does_not_depend_on_the_program_run():
    assert keys().key(1, []) == keys().key(1, [])
    assert len(keys().key(1, [])) == 64
    assert len({each.key for each in records(3)}) == 3


@pytest.mark.parametrize(
    "now",
    [
        keys(stage1__temperature=0.9),
        keys(rules="exl2"),
        keys(prompts=replace(PROMPTS, head=np.array([1, 2, 4]))),
        keys(prompts=replace(PROMPTS, reference=np.array([9]))),
        keys(song=Song(seed=8)),
    ],
)
def test_what_shapes_every_segment_keeps_none_when_it_changes(now):
    assert kept(now) == 0


@pytest.mark.parametrize(
    "now",
    [
        keys(segments=9),
        keys(lyrics="another"),
        keys(genre="another"),
        keys(reference="2–32 s"),
        keys(seed="7, 9 from segment 3"),
    ],
)
def test_what_is_in_the_recipe_twice_or_concerns_other_segments_keeps_all(now):
    assert kept(now) == 3


def test_a_changed_prompt_or_seed_keeps_the_segments_before_it():
    changed = (PROMPTS.segments[0], PROMPTS.segments[1], np.array([99]), PROMPTS.segments[3])
    assert kept(keys(prompts=replace(PROMPTS, segments=changed))) == 2
    assert kept(keys(song=SONG.reseed_from(2, 9))) == 1


def test_changed_ids_end_what_is_kept_after_them():
    there = records(3)
    there[0] = replace(there[0], ids=np.array([5, 99, 2]))
    assert keep_current(there, keys(), 3) == there[:1]


def test_no_more_segments_are_kept_than_are_wanted_and_more_may_follow():
    assert kept(keys(), count=3, wanted=2) == 2
    assert kept(keys(), count=2, wanted=4) == 2


def test_segments_before_a_number_are_kept_under_the_keys_they_would_have_now():
    now = keys(song=Song(seed=8), stage1__temperature=0.5)
    check_start(3, records(3), wanted=3)
    found = keep_before(3, records(3), now)
    assert [each.number for each in found] == [1, 2]
    assert [each.ids.tolist() for each in found] == [[5, 0, 2], [5, 1, 2]]
    assert keep_current(found, now, 3) == found, "the next run must keep them, too"
    assert [each.seed for each in found] == [7, 7], "they were sung with the old seed"


def test_from_the_first_segment_nothing_is_kept():
    check_start(1, records(0), wanted=3)
    assert keep_before(1, records(3), keys()) == []


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_number_that_no_segment_has_is_refused(number):
    with pytest.raises(SettingsError) as refused:
        check_start(number, records(3), wanted=3)
    assert str(refused.value) == (f"--from-segment {number}: expected a number from 1 to 3, the segments to be sung.")


def test_a_segment_that_is_not_there_cannot_be_kept():
    with pytest.raises(ArtifactError) as refused:
        check_start(4, records(1), wanted=4)
    assert str(refused.value) == (
        "--from-segment 4: segment 2 is not there yet; expected segments 1 to 3 in stage1/segments/."
    )


def test_copies_hold_the_same_ids_and_the_new_keys(tmp_path):
    project = Project(tmp_path)
    for each in records(2):
        project.save_segment(each)
    before = contents(tmp_path / "stage1" / "segments")
    now = keys(song=Song(seed=8))
    project.begin("stage1", copies(project, keep_before(3, project.segments(), now)))
    after = contents(tmp_path / "stage1" / "segments")
    assert after.keys() == before.keys()
    assert [after[name] for name in ("001.npy", "002.npy")] == [before[name] for name in ("001.npy", "002.npy")]
    assert len(keep_current(project.segments(), now, 3)) == 2
