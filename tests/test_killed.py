"""A run that is killed at any moment, and run again, leaves the very song that an undisturbed one does."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import killing
from yue_cli.resources import resource

COMMAND = ["run", "song", "--preset", "toy", "--genre", "slow folk", "--lyrics", "lyrics.txt", "--seed", "7", "-q"]
COMMAND += ["--set", "stage1.min_new_tokens=60", "--set", "stage1.max_new_tokens=60", "--set", "execution.rows=2"]
SOUNDS = [str(resource(f"prompt_egs/{name}.ogg")) for name in ("vocal", "instrumental")]
FOLLOW = ["--vocal", SOUNDS[0], "--instrumental", SOUNDS[1]]
TAKES = ["--takes", "2"]
LYRICS = "[verse]\nOne small light in the rain\n\n[chorus]\nCome home again\n"


class Songs:
    """Makes the same song in one folder after another, with one shared home for the toy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"YUE_HOME": str(root / "home")}

    def run(self, name: str, mode: str = "never", limit: int = 0, more: list[str] | None = None) -> killing.Ended:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "lyrics.txt").write_text(LYRICS)
        return killing.run(folder, self.environment, mode, limit, [*COMMAND, *(more or [])])

    def contents(self, name: str) -> dict[str, object]:
        """Read every file that makes up the song; manifests without the seconds they took."""
        song = self.root / name / "song"
        found: dict[str, object] = {}
        for path in sorted(song.rglob("*")):
            inside = path.relative_to(song)
            if path.is_file() and not {"history", ".lock"} & {*inside.parts}:  # also of takes
                found[str(inside)] = path.read_bytes()
                if path.name == "manifest.json":
                    found[str(inside)] = json.loads(path.read_bytes())
                    del found[str(inside)]["seconds"]
        return found


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return Songs(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed(songs):
    """Make the song once: its files, and the files that it worked on one after the other."""
    songs.run("warm-up")
    result = songs.run("undisturbed")
    assert result.code == 0, result.error
    contents = songs.contents("undisturbed")
    assert {"stage1/vocal.npy", "stage2/manifest.json", "audio/mix.wav"} <= contents.keys()
    return contents, result.operations


def assert_same_song(songs, name, contents, more=None):
    result = songs.run(name, more=more)  # a reference is asked for no more: it is stored with the song
    assert result.code == 0, result.error
    found = songs.contents(name)
    assert found.keys() == contents.keys()
    different = [file for file in contents if found[file] != contents[file]]
    assert not different


@pytest.mark.slow
def test_killed_before_operations_on_files_all_over_the_run(songs, undisturbed):
    contents, operations = undisturbed
    points = sorted({1 + number * (len(operations) - 1) // 23 for number in range(24)})
    touched = [operations[point - 1] for point in points]
    assert all(sum(stage in path for path in touched) >= 3 for stage in ("stage1", "stage2", "audio")), touched
    assert sum(".writing-" in path for path in touched) >= 5, touched

    def kill_and_resume(point):
        name = f"operation-{point}"
        killed = songs.run(name, "operation", point)
        assert killed.code == -signal.SIGKILL, f"not killed at operation {point}: {killed.error}"
        assert_same_song(songs, name, contents)
        return point

    with ThreadPoolExecutor(max_workers=2) as pool:
        assert len(list(pool.map(kill_and_resume, points))) >= 20


@pytest.mark.slow
def test_killed_again_and_again_while_it_works(songs, undisturbed):
    contents, _ = undisturbed
    # Two segments of 59 steps after their first id, then 419 of stage 2: in the first segment, in the second, and
    # twice in stage 2, which then has only its own steps.
    for steps in (30, 90, 150, 300):
        killed = songs.run("again-and-again", "step", steps)
        assert killed.code == -signal.SIGKILL, f"not killed at step {steps}: {killed.error}"
    assert_same_song(songs, "again-and-again", contents)


@pytest.mark.slow
def test_killed_while_reference_audio_is_encoded(songs, undisturbed):
    result = songs.run("followed", more=FOLLOW)
    assert result.code == 0, result.error
    expected = songs.contents("followed")
    assert expected["stage1/vocal.npy"] != undisturbed[0]["stage1/vocal.npy"]
    operations = result.operations
    points = [number for number, path in enumerate(operations, start=1) if "reference" in path]
    assert len(points) >= 8, operations

    def kill_and_resume(point):
        name = f"followed-{point}"
        killed = songs.run(name, "operation", point, more=FOLLOW)
        assert killed.code == -signal.SIGKILL, f"not killed at operation {point}: {killed.error}"
        assert_same_song(songs, name, expected)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(kill_and_resume, points[:: max(1, len(points) // 8)]))


@pytest.mark.slow
def test_killed_while_takes_are_made_together(songs):
    result = songs.run("takes", more=TAKES)
    assert result.code == 0, result.error
    expected = songs.contents("takes")
    assert {"takes/01/audio/mix.wav", "takes/02/stage1/segments/002.json", "song.yaml"} <= expected.keys()
    assert expected["takes/01/stage1/vocal.npy"] != expected["takes/02/stage1/vocal.npy"]
    operations = result.operations
    points = [1 + number * (len(operations) - 1) // 15 for number in range(16)]

    def kill_and_resume(point):
        name = f"takes-{point}"
        killed = songs.run(name, "operation", point, more=TAKES)
        assert killed.code == -signal.SIGKILL, f"not killed at operation {point}: {killed.error}"
        assert_same_song(songs, name, expected, TAKES)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(kill_and_resume, points))
    # In the first segment, in the second, and twice in stage 2, whose two batches have 419 steps each.
    for steps in (30, 90, 150, 600):
        killed = songs.run("takes-again", "step", steps, more=TAKES)
        assert killed.code == -signal.SIGKILL, f"not killed at step {steps}: {killed.error}"
    assert_same_song(songs, "takes-again", expected, TAKES)


@pytest.mark.slow
def test_killed_while_models_are_loaded(songs, undisturbed):
    contents, _ = undisturbed
    # Stage 1; then stage 1 is loaded and sings, and stage 2 is loaded; then that is loaded and ends, and the codec is.
    for mode, number, there in (
        ("load", 1, {"song.yaml"}),
        ("load", 2, {"song.yaml", "stage1/manifest.json"}),
        ("codec", 1, {"song.yaml", "stage1/manifest.json", "stage2/manifest.json"}),
    ):
        killed = songs.run("loading", mode, number)
        assert killed.code == -signal.SIGKILL, f"not killed in {mode} {number}: {killed.error}"
        kept = songs.contents("loading")
        assert {file for file in kept if file == "song.yaml" or file.endswith("manifest.json")} == there
        assert not [file for file in kept if ".writing-" in file]
    assert_same_song(songs, "loading", contents)
