"""Token files and manifests: what is written is read back, and everything else is refused in one line."""

import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.folders import contents
from yue_cli.artifacts import (
    MANIFEST_FILE,
    Manifest,
    Tokens,
    describe_files,
    read_array,
    read_json,
    read_tokens,
    read_track,
    sha256_array,
    sha256_file,
    sha256_json,
    storable,
    write_array,
    write_json,
    write_tokens,
)
from yue_cli.errors import ArtifactError

REMEDY = "run `yue stage1` again."
INTEGERS = [np.dtype(order + kind) for order in "<>" for kind in ("i2", "i4", "i8", "u2", "u4", "u8")]
SHAPES = st.tuples(st.sampled_from([1, 8]), st.integers(1, 40))
WRITING = settings(max_examples=20)
CODES = SHAPES.flatmap(lambda shape: arrays.arrays(np.int16, shape, elements=st.integers(0, 1023)))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A folder that all examples of one test may write over."""
    return tmp_path_factory.mktemp("scratch")


def codes(rows: int = 1, frames: int = 6) -> np.ndarray:
    return np.arange(rows * frames, dtype=np.int16).reshape(rows, frames) * 7


def spelled(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def refusal(path: Path, rows: int = 1) -> str:
    """Say why a track is refused."""
    with pytest.raises(ArtifactError) as refused:
        read_track(path, rows, REMEDY)
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(str(path))


def manifest(**changes) -> Manifest:
    facts = {"stage": "stage1", "recipe": {"rules": "yue"}, "inputs": {}, "files": {}, "music_s": 1.0, "seconds": 2.0}
    return Manifest(**facts | changes)


# Tracks


@WRITING
@given(CODES, st.sampled_from(INTEGERS), st.booleans())
def test_codes_of_any_integer_dtype_and_order_read_back_as_equal_int16(scratch, written, dtype, fortran):
    path = scratch / "track.npy"
    array = written.astype(dtype)
    np.save(path, np.asfortranarray(array) if fortran else array)
    found = read_track(path, len(written), REMEDY)
    assert found.dtype == np.int16
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, written)


@WRITING
@given(CODES)
def test_tokens_come_back_as_they_were_written(scratch, written):
    write_tokens(scratch, Tokens(written, written[:, ::-1]))
    found = read_tokens(scratch, len(written), REMEDY)
    np.testing.assert_array_equal(found.vocal, written)
    np.testing.assert_array_equal(found.instrumental, written[:, ::-1])
    assert found.frames == written.shape[1]
    assert found.seconds == written.shape[1] / 50


@WRITING
@given(arrays.arrays(st.sampled_from([np.int16, np.int32, np.int64, np.uint32]), arrays.array_shapes(max_dims=3)))
def test_any_integer_array_is_read_as_it_was_written(scratch, array):
    write_array(scratch / "any.npy", array)
    found = read_array(scratch / "any.npy", REMEDY)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_tracks_are_stored_as_plain_int16(tmp_path):
    write_tokens(tmp_path, Tokens(codes(), codes()))
    for name in ("vocal.npy", "instrumental.npy"):
        found = np.load(tmp_path / name, allow_pickle=False)
        assert found.dtype == np.dtype("<i2")
        assert found.shape == (1, 6)


def test_a_missing_track_says_what_to_do(tmp_path):
    assert refusal(tmp_path / "vocal.npy") == f": is missing; {REMEDY}"


def test_a_folder_in_place_of_a_track_is_told(tmp_path):
    assert refusal(tmp_path) == ": cannot be read (Is a directory)."


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVE", b"PK\x03\x04", b"\x93NUMP", b"version https://git-lfs"])
def test_a_file_of_another_kind_is_no_track(tmp_path, content):
    path = tmp_path / "vocal.npy"
    path.write_bytes(content)
    assert refusal(path) == f": is not a .npy file; {REMEDY}"


@pytest.mark.parametrize("length", [6, 8, 9, 10, 30, 127, 128, 129, 139])
def test_a_truncated_track_says_how_much_is_there(tmp_path, length):
    path = tmp_path / "vocal.npy"
    whole = spelled(codes())
    assert len(whole) == 140
    path.write_bytes(whole[:length])
    assert refusal(path) == f": is truncated or damaged ({length} bytes); {REMEDY}"


@given(st.data())
def test_a_damaged_track_is_read_or_refused_but_never_breaks_the_program(scratch, data):
    content = bytearray(spelled(codes()))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(6, 127))] = data.draw(st.integers(0, 255))
    path = scratch / "damaged.npy"
    path.write_bytes(content)
    try:
        assert read_track(path, 1, REMEDY).dtype == np.int16
    except ArtifactError as error:
        assert str(path) in str(error)


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path):
    path = tmp_path / "vocal.npy"
    whole = spelled(codes())
    for shape in (b"(1, 999999999999999999), }", b"(1, -6), }", b"(9**9, 6), }"):
        path.write_bytes(whole.replace(b"(1, 6), }" + b" " * (len(shape) - 9), shape))
        assert len(path.read_bytes()) == len(whole)
        assert refusal(path) == f": is truncated or damaged (140 bytes); {REMEDY}"


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((2, 1500), np.float32), "float32 [2, 1500]"),
        (np.zeros((1, 4), np.bool_), "bool [1, 4]"),
        (np.zeros((1, 4), "m8[s]"), "timedelta64[s] [1, 4]"),
        (np.array([["1", "2"]]), "<U1 [1, 2]"),
    ],
)
def test_a_track_of_another_type_is_refused(tmp_path, array, found):
    path = tmp_path / "vocal.npy"
    path.write_bytes(spelled(array))
    assert refusal(path) == f": expected integers, found {found}; {REMEDY}"


@pytest.mark.parametrize("shape", [(6,), (2, 6), (1, 1, 6), (1, 0), (0, 6), ()])
def test_a_track_of_another_shape_is_refused(tmp_path, shape):
    path = tmp_path / "vocal.npy"
    path.write_bytes(spelled(np.zeros(shape, np.int64)))
    assert refusal(path) == f": expected int16 [1, T], found int64 {list(shape)}; {REMEDY}"


def test_codes_of_stage_1_are_not_taken_for_codes_of_stage_2(tmp_path):
    path = tmp_path / "vocal.npy"
    path.write_bytes(spelled(codes(rows=1)))
    assert refusal(path, rows=8) == f": expected int16 [8, T], found int16 [1, 6]; {REMEDY}"


@pytest.mark.parametrize("wrong", [-1, 1024, 45334])
def test_codes_out_of_range_are_counted_and_the_first_is_named(tmp_path, wrong):
    array = np.zeros((8, 100), np.int32)
    array[3, 40], array[3, 99], array[5, 0] = wrong, 2000, -7
    path = tmp_path / "vocal.npy"
    path.write_bytes(spelled(array))
    expected = f": 3 codes are outside 0..1023, the first is {wrong} in row 3 at frame 40; {REMEDY}"
    assert refusal(path, rows=8) == expected


def test_a_huge_unsigned_code_does_not_wrap_around():
    with pytest.raises(
        ArtifactError, match=r"^here: 1 codes are outside 0\.\.1023, the first is 18446744073709551615 "
    ):
        storable(np.array([[0, 2**64 - 1]], np.uint64), "here", REMEDY)


def test_tracks_of_unequal_length_are_refused(tmp_path):
    write_array(tmp_path / "vocal.npy", codes(frames=6))
    write_array(tmp_path / "instrumental.npy", codes(frames=5))
    with pytest.raises(ArtifactError) as refused:
        read_tokens(tmp_path, 1, REMEDY)
    expected = "the tracks differ in length: vocal.npy has 6 frames, instrumental.npy has 5"
    assert str(refused.value) == f"{tmp_path}: {expected}; {REMEDY}"


class Trap:
    """Runs code when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_pickled_objects_are_refused_without_running_their_code(tmp_path):
    path = tmp_path / "vocal.npy"
    path.write_bytes(spelled(np.array([[Trap()]], dtype=object)))
    assert refusal(path).startswith(": ")
    assert not Trap.sprung
    with path.open("rb") as file:
        np.load(file, allow_pickle=True)
    assert Trap.sprung, "the trap must be one"
    Trap.sprung = False


def test_a_bare_pickle_is_refused_without_running_its_code(tmp_path):
    path = tmp_path / "vocal.npy"
    path.write_bytes(pickle.dumps(Trap()))
    assert refusal(path) == f": is not a .npy file; {REMEDY}"
    assert not Trap.sprung


def test_writing_unchecked_codes_is_a_programmers_mistake(tmp_path):
    with pytest.raises(AssertionError, match="vocal must be int16, not int64"):
        write_tokens(tmp_path, Tokens(codes().astype(np.int64), codes()))
    assert contents(tmp_path) == {}


# Hashes


def test_hashes_are_those_of_the_standard():
    # echo -n '{"a":[1,null],"b":"\u00e4"}' | sha256sum, with the ä escaped as it stands here
    assert sha256_json({"b": "ä", "a": [1, None]}) == "fbf0280c9fc785694e484afdb0dee668d9a7a3ccf2ba70147051d550e5d35d39"
    # echo -n '{}' | sha256sum
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(arrays.arrays(np.int16, 5))
def test_the_hash_of_an_array_is_that_of_its_values(array):
    assert sha256_array(array) == sha256_array(array.astype(">i8"))
    assert sha256_array(array) != sha256_array(array + np.int32(1))


def test_files_are_described_by_hash_and_arrays_by_shape_too(tmp_path):
    write_array(tmp_path / "vocal.npy", codes(rows=8, frames=3))
    (tmp_path / "mix.wav").write_bytes(b"abc")
    assert describe_files(tmp_path, ["vocal.npy", "mix.wav"]) == {
        "vocal.npy": {"sha256": sha256_file(tmp_path / "vocal.npy"), "shape": [8, 3]},
        "mix.wav": {"sha256": sha256_file(tmp_path / "mix.wav")},
    }


# Manifests


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    written = manifest(
        recipe={"lyrics": None, "stage1.top_k": 50, "stage1.temperature": 1.0},
        files={"vocal.npy": {"sha256": "00", "shape": [1, 6]}},
        texts={"lyrics": "[verse]\nÄ 歌"},
        seed=2**62,
        truncated=(2, 3),
    )
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert contents(tmp_path).keys() == {MANIFEST_FILE}


def test_a_manifest_names_format_and_version(tmp_path):
    manifest().write(tmp_path)
    content = json.loads((tmp_path / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert (content["format"], content["version"]) == ("yue-manifest", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system whose names are bytes")
def test_a_path_that_is_no_text_is_kept(tmp_path):
    path = os.fsdecode(b"/music/s\xffng.wav")
    facts = {"format": "facts", "version": 1, "path": path, "name": "Nächte"}
    write_json(tmp_path / "facts.json", facts)
    assert read_json(tmp_path / "facts.json", "facts", 1) == {"path": path, "name": "Nächte"}
    assert "Nächte" in (tmp_path / "facts.json").read_text(encoding="utf-8")


def test_no_manifest_is_no_error(tmp_path):
    assert Manifest.read(tmp_path) is None
    assert Manifest.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "has version 2; this yue reads version 1. Update yue to use this song."),
        ({"format": "yue-song"}, "expected yue-manifest version 1, found yue-song version 1."),
        ({"format": None}, "expected yue-manifest version 1, found None version 1."),
        ({"version": None}, "expected yue-manifest version 1, found yue-manifest version None."),
        ({"mood": "blue"}, "unknown key `mood`; it was written by another version of yue."),
    ],
)
def test_a_manifest_of_another_format_version_or_key_is_never_guessed_at(tmp_path, change, said):
    manifest().write(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(ArtifactError) as refused:
        Manifest.read(tmp_path)
    assert str(refused.value) == f"{path}: {said}"


def test_a_manifest_without_a_needed_key_is_incomplete(tmp_path):
    write_json(tmp_path / MANIFEST_FILE, {"format": "yue-manifest", "version": 1, "stage": "stage1"})
    with pytest.raises(ArtifactError, match=r"manifest.json: incomplete \(.*; remove it to have the stage made anew\."):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("key", ["recipe", "inputs", "files", "model", "engine", "truncated"])
def test_a_manifest_with_a_value_of_another_kind_is_refused(tmp_path, key):
    manifest().write(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: 5}))
    with pytest.raises(ArtifactError) as refused:
        Manifest.read(tmp_path)
    assert str(refused.value) == f"{path}: `{key}` is 5; remove the file to have the stage made anew."


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": "yue-man', b"[]", b"3", b"\xff\xfe", b"\x00"])
def test_a_damaged_manifest_says_what_to_do(tmp_path, content):
    path = tmp_path / MANIFEST_FILE
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as refused:
        read_json(path, "yue-manifest", 1)
    assert str(refused.value).startswith(f"{path}: cannot be read (")
    assert str(refused.value).endswith("); remove it to have the stage made anew.")
    assert "\n" not in str(refused.value)
