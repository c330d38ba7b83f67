"""Reference audio through the real command with the toy: encoded, used, kept, made anew, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.command_line import done, planned, refused, yue
from tests.folders import contents
from yue_cli.resources import resource

VOCAL, INSTRUMENTAL = (str(resource(f"prompt_egs/{name}.ogg")) for name in ("vocal", "instrumental"))
DUAL = ["--vocal", VOCAL, "--instrumental", INSTRUMENTAL]
TOY = ["--preset", "toy"]
SHORT = [*TOY, "--set", "stage1.min_new_tokens=8", "--set", "stage1.max_new_tokens=8", "--seed", "7"]
TEXTS = ["--lyrics", "lyrics.txt", "--genre", "slow folk"]

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def sung(home, tmp_path_factory) -> Path:
    """A whole song that follows both example tracks, sung once."""
    folder = tmp_path_factory.mktemp("sung")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YUE_HOME", str(home))
        (folder / "lyrics.txt").write_text("[verse]\nOne light\n\n[chorus]\nCome home\n")
        texts = ["--lyrics", folder / "lyrics.txt", "--genre", "slow folk"]
        done("run", folder / "song", *SHORT, *texts, *DUAL)
    return folder / "song"


@pytest.fixture
def song(sung, place) -> Path:
    return Path(shutil.copytree(sung, place / "song"))


def codes(folder: Path, track: str = "vocal") -> np.ndarray:
    return np.load(folder / "reference" / f"{track}.npy")


def states(folder: Path) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in done("status", folder, "--json").answer["stages"]}


def titles(err: str) -> list[str]:
    """List the topics of what is told to be made anew."""
    return [line.split("  is made")[0].strip() for line in err.splitlines() if "is made anew" in line]


def test_encode_answers_with_the_folder_and_makes_both_tracks():
    outcome = done("encode", "new", *TOY, *DUAL)
    assert outcome.out == f"{Path('new/reference')}\n"
    assert "encode   vocal · 5.3 s of music · 265 frames in " in outcome.err
    assert "encode   instrumental · 5.3 s of music · 265 frames in " in outcome.err
    assert "audio-separator" not in outcome.err
    for track in ("vocal", "instrumental"):
        found = codes(Path("new"), track)
        assert (found.dtype, found.shape) == (np.int16, (1, 265))
        assert len(np.unique(found)) > 20, "codes of real sound vary"
    manifest = json.loads(Path("new/reference/manifest.json").read_text())
    assert manifest["recipe"]["audio"].keys() == {"vocal", "instrumental"}
    assert (manifest["recipe"]["crop"], manifest["texts"]["mode"]) == ("no", "dual")
    assert (manifest["texts"]["vocal"], manifest["texts"]["excerpt"]) == (VOCAL, "0–30 s")
    assert states(Path("new")) == {"reference": "current"} | dict.fromkeys(("stage1", "stage2", "audio"), "missing")


def test_one_track_names_what_splits_a_mix():
    told = done("encode", "new", *TOY, "--audio", VOCAL).err
    assert (
        "encode   one track; with voice and band apart a song follows more closely: split the mix with "
        "audio-separator, then --vocal and --instrumental\n"
    ) in told
    assert sorted(path.name for path in Path("new/reference").iterdir()) == ["manifest.json", "vocal.npy"]
    assert codes(Path("new")).tolist() == codes_of_both().tolist(), "the band has no part in the voice's codes"


def codes_of_both() -> np.ndarray:
    done("encode", "both", *TOY, *DUAL, "-q")
    return codes(Path("both"))


def test_any_rate_and_format_serves():
    sound, rate = soundfile.read(VOCAL, dtype="float32")
    soundfile.write("voice.flac", np.stack([sound, sound], axis=1)[: 2 * rate], rate)
    done("encode", "new", *TOY, "--audio", "voice.flac")
    assert codes(Path("new")).shape == (1, 100)
    assert yaml.safe_load(Path("new/song.yaml").read_text())["reference"] == {
        "audio": str(Path("voice.flac").resolve())
    }


def test_a_song_follows_its_reference(song, place):
    assert states(song) == dict.fromkeys(("reference", "stage1", "stage2", "audio"), "current")
    manifest = json.loads((song / "stage1/manifest.json").read_text())
    assert manifest["recipe"]["reference"] == "0–30 s"
    assert manifest["inputs"].keys() == {"reference/vocal.npy", "reference/instrumental.npy"}
    assert "reference" in done("status", song).out.splitlines()[0]
    # The same words and seed without it are another song.
    done("run", "plain", *SHORT, *TEXTS, "-q")
    assert (place / "plain/stage1/vocal.npy").read_bytes() != (song / "stage1/vocal.npy").read_bytes()
    assert "reference" not in states(Path("plain"))


def test_running_again_keeps_all_of_it(song):
    before = contents(song)
    told = done("run", "song").err
    assert "encode   is current: kept · 5.3 s of music\n" in told
    assert contents(song) == before


def test_other_seconds_sing_anew_but_encode_nothing(song):
    before = contents(song / "reference")
    assert planned(done("run", "song", "--start", 1, "--end", 3, "--dry-run")) == [
        "reference  stays: current",
        "stage1     would be made: stale (the reference changed)",
        "stage2     would be made: stale (stage1 is made anew)",
        "audio      would be made: stale (stage2 is made anew)",
    ]
    told = done("run", "song", "--start", 1, "--end", 3).err
    assert titles(told) == ["stage 1", "stage 2", "decode"]
    assert contents(song / "reference") == before
    assert yaml.safe_load((song / "song.yaml").read_text())["reference"]["end"] == 3.0
    assert titles(done("run", "song").err) == []


def test_changed_sound_is_encoded_and_sung_anew(song):
    shutil.copy(VOCAL, "voice.ogg")
    done("run", "song", "--vocal", "voice.ogg", "--instrumental", INSTRUMENTAL)
    assert titles(done("run", "song").err) == [], "the same sound at another place is the same reference"
    shutil.copy(INSTRUMENTAL, "voice.ogg")
    told = done("run", "song").err
    assert "encode   is made anew: the audio changed; the old one is kept in history/\n" in told
    assert titles(told) == ["encode", "stage 1", "stage 2", "decode"]


def test_codes_outlive_their_sound(song):
    shutil.copy(VOCAL, "voice.ogg")
    done("run", "song", "--audio", "voice.ogg")
    Path("voice.ogg").unlink()
    assert titles(done("run", "song").err) == []
    (song / "reference/vocal.npy").unlink()
    assert refused("run", "song") == f"{Path('voice.ogg').resolve()}: cannot be read (No such file or directory)."


def test_a_crop_gives_other_codes_and_says_so(song):
    whole = codes(song)[:, 50:150]
    told = done("run", "song", *DUAL, "--start", 1, "--end", 3, "--crop").err
    assert "encode   is made anew: crop was no, now 1–3 s; the old one is kept in history/\n" in told
    assert "encode   1–3 s alone: other codes than those of the same seconds in the whole sound\n" in told
    assert codes(song).shape == whole.shape
    assert (codes(song) != whole).any()
    assert states(song)["stage1"] == "current"


def test_tracks_of_unequal_length_are_cut_with_a_warning():
    sound, rate = soundfile.read(INSTRUMENTAL, dtype="float32")
    soundfile.write("band.wav", sound[: 3 * rate], rate)
    told = done("encode", "new", *TOY, "--vocal", VOCAL, "--instrumental", "band.wav").err
    assert (
        "warning  the tracks of the reference differ in length (vocal 5.30 s, instrumental 3.00 s); the end of the "
        "longer is left out\n"
    ) in told
    assert codes(Path("new")).shape == codes(Path("new"), "instrumental").shape == (1, 150)


def test_codes_of_others_are_used(place):
    (place / "new/reference").mkdir(parents=True)
    np.save("new/reference/vocal.npy", np.arange(100, dtype=np.int64)[None])
    told = done("run", "new", *SHORT, *TEXTS).err
    assert "encode   is used as it is: its tokens were not written by this yue\n" in told
    manifest = json.loads(Path("new/stage1/manifest.json").read_text())
    assert manifest["inputs"].keys() == {"reference/vocal.npy"}
    assert "reference" not in yaml.safe_load(Path("new/song.yaml").read_text())
    # Sound that is asked for takes their place.
    told = done("run", "new", *DUAL).err
    assert (
        "encode   is made anew: its codes are not known to be of this audio; the old one is kept in history/\n"
    ) in told
    assert states(Path("new"))["reference"] == "current"


def test_codes_of_others_of_unequal_length_are_cut_with_a_warning(place):
    (place / "new/reference").mkdir(parents=True)
    np.save("new/reference/vocal.npy", np.zeros((1, 100), np.int16))
    np.save("new/reference/instrumental.npy", np.zeros((1, 75), np.int16))
    told = done("stage1", "new", *SHORT, *TEXTS).err
    assert "warning  the tracks of the reference differ in length (vocal 2.00 s, instrumental 1.50 s)" in told


def test_damaged_codes_are_refused_before_anything_is_sung(song):
    (song / "reference/vocal.npy").write_bytes(b"no array")
    path = Path("song/reference/vocal.npy")
    assert refused("run", "song") == f"{path}: is not a .npy file; `yue encode song --force` makes it anew."
    done("encode", "song", "--force")
    assert titles(done("run", "song").err) == []


def test_a_song_without_its_reference_again(song):
    before = contents(song / "reference")
    told = done("plan", "song", "--no-reference").out
    assert told.startswith("stage1  would be made: stale (the reference was dropped)\n")
    assert contents(song / "reference") == before, "a plan changes nothing"
    told = done("run", "song", "--no-reference").err
    assert "encode   is dropped; its codes are kept in history/\n" in told
    assert "stage 1  is made anew: the reference was dropped; the old one is kept in history/\n" in told
    assert "reference" not in yaml.safe_load((song / "song.yaml").read_text())
    assert states(song) == dict.fromkeys(("stage1", "stage2", "audio"), "current")
    assert [contents(kept) for kept in song.glob("history/reference-*")] == [before]
    again = contents(song)
    assert done("run", "song", "--no-reference").err.count("is current: kept") == 3
    assert contents(song) == again


def test_a_reference_of_codes_alone_is_dropped_too(song):
    stored = yaml.safe_load((song / "song.yaml").read_text())
    del stored["reference"]
    (song / "song.yaml").write_text(yaml.safe_dump(stored))
    done("stage1", "song", "--no-reference")
    assert states(song) == {"stage1": "current", "stage2": "stale", "audio": "current"}


def test_a_kill_while_a_reference_is_dropped_loses_nothing(song, monkeypatch):
    before = contents(song / "reference")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("yue_cli.song.write_song", stop)
        assert yue("run", "song", "--no-reference").code == 130
    assert [contents(kept) for kept in song.glob("history/reference-*")] == [before]
    done("run", "song", "--no-reference")
    assert states(song) == dict.fromkeys(("stage1", "stage2", "audio"), "current")


def test_a_reference_cannot_be_given_and_dropped_at_once(song):
    text = refused("run", "song", "--no-reference", *DUAL)
    assert text == "--no-reference drops the reference audio, --vocal is about it; give one of both."


def test_the_toy_s_answer_for_programs_lists_the_reference(song):
    answer = done("run", "song", "--json").answer
    assert [stage["name"] for stage in answer["stages"]] == ["reference", "stage1", "stage2", "audio"]
    answer = done("encode", "song", "--json").answer
    assert answer["seconds_of_music"] == 5.3


# Refused


def test_encode_without_audio_says_which_flags():
    flags = "--audio FILE, or --vocal FILE and --instrumental FILE"
    assert refused("encode", "new") == f"new has no reference audio yet: give {flags}."
    assert not Path("new").exists()


@pytest.mark.parametrize("command", ["encode", "run", "stage1"])
def test_one_of_two_tracks_is_refused(command):
    texts = [] if command == "encode" else TEXTS
    assert refused(command, "new", *texts, "--instrumental", INSTRUMENTAL) == (
        "--instrumental is one of two tracks: give --vocal and --instrumental, or one track with --audio. "
        "audio-separator splits a mix into the two."
    )
    assert not Path("new").exists()


def test_what_is_no_sound_is_refused_before_anything_is_made():
    path = Path("lyrics.txt").resolve()
    assert refused("run", "new", *SHORT, *TEXTS, "--audio", "lyrics.txt") == (
        f"{path}: is not sound that can be read (libsndfile: Format not recognised); expected wav, flac, ogg, opus or "
        "mp3."
    )
    assert not Path("new").exists()


def test_an_excerpt_past_the_end_is_refused_and_not_stored(song):
    before = contents(song)
    assert refused("run", "song", "--end", 9) == (
        f"{VOCAL}: has 5.30 s of sound, and 0 s to 9 s are wanted; expected an excerpt of at least 1 s within it. "
        "Change --start and --end."
    )
    assert contents(song) == before


def test_an_excerpt_past_the_end_of_codes_is_refused(place):
    (place / "new/reference").mkdir(parents=True)
    np.save("new/reference/vocal.npy", np.zeros((1, 100), np.int16))
    assert refused("stage1", "new", *SHORT, *TEXTS, "--start", 1.5) == (
        f"{Path('new/reference')}: has 2.00 s of sound, and 1.5 s to 31.5 s are wanted; expected an excerpt of at "
        "least 1 s within it. Change --start and --end."
    )


def test_seconds_that_are_no_numbers_are_wrong_usage():
    assert yue("encode", "new", "--audio", VOCAL, "--start", "soon").code == 2


def test_a_broken_reference_whose_sound_is_not_known_says_what_to_give(song):
    stored = yaml.safe_load((song / "song.yaml").read_text())
    del stored["reference"]
    (song / "song.yaml").write_text(yaml.safe_dump(stored))
    (song / "reference/instrumental.npy").unlink()
    assert refused("run", "song") == (
        f"{Path('song/reference')}: its codes are not whole, and where their sound lies is not known: give "
        "--audio FILE, or --vocal FILE and --instrumental FILE."
    )


# Which model sings


def test_a_language_takes_the_model_that_follows_a_reference():
    # Whether it fits into this machine does not matter here.
    told = yue("run", "new", *TEXTS, "--audio", VOCAL, "--language", "zh", "--dry-run", "-v").err
    assert "setting  stage1.model = zh-icl · command line\n" in told
    assert "--language en takes en-icl" in told


def test_a_model_that_follows_no_reference_is_warned_of():
    told = yue("run", "new", *TEXTS, "--audio", VOCAL, "--set", "stage1.model=en-cot", "--dry-run").err
    assert "warning  en-cot does not follow a reference song; en-icl does\n" in told
    told = yue("run", "new", *TEXTS, "--audio", VOCAL, "--dry-run").err
    assert "lyrics   " in told and "warning  en-" not in told


def test_without_a_named_model_the_one_that_follows_a_reference_is_taken(monkeypatch):
    monkeypatch.setenv("HF_HOME", str(Path("hub").resolve()))
    text = refused("run", "new", *TEXTS, "--audio", VOCAL, "--offline")
    assert "en-icl" in text
    assert "en-cot" not in text


def test_fine_codes_of_both_tracks_become_a_song_to_decode():
    outcome = done("encode", "copy", *TOY, *DUAL, "--fine")
    assert outcome.out == f"{Path('copy/stage2')}\n"
    tokens = {track: np.load(f"copy/stage2/{track}.npy") for track in ("vocal", "instrumental")}
    assert {track.shape for track in tokens.values()} == {(8, 265)}
    assert not (tokens["vocal"][0] == tokens["instrumental"][0]).all()
    done("encode", "coarse", *TOY, *DUAL)
    np.testing.assert_array_equal(tokens["vocal"][:1], codes(Path("coarse")))
    outcome = done("decode", "copy", *TOY)
    assert soundfile.info("copy/audio/mix.wav").duration == pytest.approx(5.3)
    # What lay there is kept.
    outcome = done("encode", "copy", *TOY, *DUAL, "--fine", "--json")
    assert outcome.answer == {"song": "copy", "tokens": str(Path("copy/stage2"))}
    assert "the old one is kept in history/" in outcome.err
    assert list(Path("copy/history").glob("stage2*"))


def test_a_copy_needs_voice_and_band():
    assert refused("encode", "copy", *TOY, "--audio", VOCAL, "--fine") == (
        "--fine copies voice and band: give --vocal FILE and --instrumental FILE."
    )
    assert not Path("copy").exists()
