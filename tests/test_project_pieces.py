"""The pieces of unfinished stages in a song's folder, segments, seats and windows, and the codes of reference audio."""

import numpy as np
import pytest

from tests.library import begin_windows, record
from yue_cli import project as projects
from yue_cli.artifacts import write_array
from yue_cli.errors import ArtifactError
from yue_cli.project import SEATS_FILE, Project, encode_seats


@pytest.fixture
def project(tmp_path) -> Project:
    """An empty song's folder."""
    found = Project(tmp_path / "song")
    found.create()
    return found


# Segments, seats and windows


def test_segments_come_back_in_order_as_they_were_saved(project):
    for number in (1, 2):
        project.save_segment(record(number, key=f"key {number}", truncated=number == 2))
    found = project.segments()
    assert [(each.number, each.key, each.section, each.seed, each.truncated) for each in found] == [
        (1, "key 1", "verse", 7, False),
        (2, "key 2", "verse", 7, True),
    ]
    assert [each.ids.tolist() for each in found] == [[3, 1, 514], [3, 2, 514]]
    assert {each.ids.dtype for each in found} == {np.dtype(np.int32)}


def test_segments_end_at_the_first_gap(project):
    for number in (1, 2, 4):
        project.save_segment(record(number))
    assert [each.number for each in project.segments()] == [1, 2]


def test_a_segment_without_its_facts_is_not_there(project):
    project.save_segment(record(1))
    project.segment_files(1)[1].unlink()
    assert project.segments() == []


def test_the_ids_of_a_segment_are_on_disk_before_its_facts(project, monkeypatch):
    order = []
    write = projects.write_json
    monkeypatch.setattr(
        projects,
        "write_json",
        lambda path, content: (order.append(path.with_suffix(".npy").exists()), write(path, content)),
    )
    project.save_segment(record(1))
    assert order == [True]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda ids, facts: ids.unlink(), r"001\.npy: is missing; remove its \.json too"),
        (lambda ids, facts: ids.write_bytes(ids.read_bytes()[:40]), r"001\.npy: is truncated or damaged"),
        (
            lambda ids, facts: np.save(ids, np.zeros((2, 2), np.int32)),
            r"001\.npy: expected int32 \[m\], found int32 \[2, 2\]",
        ),
        (lambda ids, facts: np.save(ids, np.zeros(0, np.int32)), r"001\.npy: expected int32 \[m\], found int32 \[0\]"),
        (lambda ids, facts: facts.write_text("{"), r"001\.json: cannot be read"),
        (lambda ids, facts: facts.write_text('{"format": "yue-segment", "version": 2}'), r"001\.json: has version 2"),
        (
            lambda ids, facts: facts.write_text('{"format": "yue-segment", "version": 1}'),
            r"001\.json: a key is missing",
        ),
    ],
)
def test_a_damaged_segment_is_told_and_never_guessed_at(project, break_it, said):
    project.save_segment(record(1))
    break_it(*project.segment_files(1))
    with pytest.raises(ArtifactError, match=said) as refused:
        project.segments()
    assert "\n" not in str(refused.value)


def test_seats_come_back_while_their_key_holds(project):
    seats = begin_windows(project)
    assert project.seats("stage2", "key") == seats
    assert project.seats("stage2", "another key") is None
    assert project.seats("stage1") is None
    project.save_seats("stage2", encode_seats(seats[:2], "key"))
    assert project.seats("stage2", "key") == seats[:2]


def test_windows_come_back_by_number_and_neighbours_share_a_file(project):
    begin_windows(project)
    project.save_windows({number: np.full((3, 8), number, np.int32) for number in (12, 0, 1, 2)})
    project.save_windows({3: np.full((5, 8), 3, np.int32)})
    found = project.windows()
    assert {number: int(ids[0, 0]) for number, ids in found.items()} == {number: number for number in (0, 1, 2, 3, 12)}
    assert (found[2].shape, found[3].shape) == ((3, 8), (5, 8))
    files = sorted(path.name for path in (project.folder("stage2") / "windows").iterdir())
    assert files == ["000.npy", "003.npy", "012.npy"]


def test_windows_of_nothing_are_none(project):
    assert project.windows() == {}


def test_a_damaged_window_says_that_it_may_be_removed(project):
    begin_windows(project)
    project.save_windows({0: np.zeros((1, 8), np.int32)})
    write_array(project.folder("stage2") / "windows" / "000.npy", np.zeros((1, 1, 8)))
    with pytest.raises(
        ArtifactError, match=r"000\.npy: expected integers, .*; remove it, and yue decodes its windows again\.$"
    ):
        project.windows()


@pytest.mark.parametrize("text", ["{", '{"format": "yue-seats", "version": 1, "key": "key"}'])
def test_damaged_seats_are_told(project, text):
    begin_windows(project)
    (project.folder("stage2") / SEATS_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=r"seats\.json: "):
        project.seats("stage2", "key")


# The codes of reference audio


def test_a_reference_of_one_track_is_hashed_as_such(project):
    assert project.hashes("reference") is None
    folder = project.begin("reference", {"vocal.npy": b"codes"})
    assert project.hashes("reference").keys() == {"reference/vocal.npy"}
    (folder / "instrumental.npy").write_bytes(b"codes")
    assert project.hashes("reference").keys() == {"reference/vocal.npy", "reference/instrumental.npy"}
