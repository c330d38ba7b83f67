"""The singer, the band and the score, from a small bank made by hand; nothing here needs espeak or a soundfont."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from training.corpus import __main__ as command
from training.corpus import band_bank
from training.corpus.band_bank import DRUMS, INSTRUMENTS, BandBank, Instrument, SoundfontMissing, make_band_bank
from training.corpus.bank import LexiconWrong, compare_with_lexicon, is_ready
from training.corpus.compose import compose
from training.corpus.dataset import CLASSES, CorpusSong
from training.corpus.espeak import Espeak, EspeakMissing
from training.corpus.lexicon import LEXICON
from training.corpus.measures import Heard, count_syllables
from training.corpus.phonemes import PHONEMES, VOWELS, split_syllables
from training.corpus.render import Renderer, write_song
from training.corpus.voice import Timing, natural_coda, natural_onset, phoneme_frames, sing
from training.corpus.voice_bank import ENVELOPE_BANDS, NOISE_HZ, STEPS_PER_FRAME, Phone, Spectra, VoiceBank
from training.corpus.world import BAR, BEAT, SAMPLES_PER_FRAME, SINGERS

# One syllable, /s-a-n/: 6 frames of s, 10 of a, 4 of n.
SYLLABLE = (Phone("S", 0, 18), Phone("AA", 18, 48), Phone("N", 48, 60))
SPECTRA = Spectra(np.full((60, ENVELOPE_BANDS), -60, np.float32), np.full((60, len(NOISE_HZ)), 0.05, np.float32))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(small_voice(), small_band())


def small_voice() -> VoiceBank:
    words = {word.text: [SYLLABLE] * word.syllables for word in LEXICON.values()}
    return VoiceBank(dict.fromkeys(SINGERS, SPECTRA), dict.fromkeys(SINGERS, words))


def small_band() -> BandBank:
    length = 100 * SAMPLES_PER_FRAME
    time_s = np.arange(length) / 44_100
    notes = {
        (name, pitch): (0.1 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time_s)).astype(np.float32)
        for name, instrument in INSTRUMENTS.items()
        for pitch in range(instrument.lowest, instrument.highest + 1)
    }
    click = np.zeros(40 * SAMPLES_PER_FRAME, np.float32)
    click[:100] = 0.2
    return BandBank(notes, dict.fromkeys(DRUMS, click))


def test_words_part_into_syllables_as_they_are_sung() -> None:
    def parts(word: str) -> list[str]:
        phonemes = word.split()
        return ["-".join(phonemes[i] for i in syllable) for syllable in split_syllables(phonemes)]

    assert parts("R IH V ER") == ["R-IH", "V-ER"]
    assert parts("S T R IY T") == ["S-T-R-IY-T"]
    assert parts("W IH N T ER") == ["W-IH-N", "T-ER"]
    assert parts("AH K R AO S") == ["AH", "K-R-AO-S"]
    assert parts("K AE N D EL") == ["K-AE-N", "D-EL"]


def test_phonemes_are_spoken_frames_rounded_up() -> None:
    assert STEPS_PER_FRAME == 3
    assert natural_onset(SYLLABLE) == 6 and natural_coda(SYLLABLE) == 4
    assert set(PHONEMES) >= VOWELS and len(PHONEMES) == len(set(PHONEMES))


def periods(samples: np.ndarray) -> np.ndarray:
    """Samples from pulse to pulse: a flat envelope makes every period one sharp peak."""
    return np.diff(np.flatnonzero((samples > 0.6 * samples.max()) & (samples == _local_peak(samples))))


def _local_peak(samples: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(np.pad(samples, 20), 41).max(axis=1)


def test_a_note_has_its_pitch_and_its_vowel_on_the_beat() -> None:
    timing = Timing(onset=6, nucleus=20, coda=4)
    sung = sing(SPECTRA, SYLLABLE, timing, 57, is_last=True)  # A3, 220 Hz
    vowel = sung[10 * SAMPLES_PER_FRAME : 20 * SAMPLES_PER_FRAME]
    assert periods(vowel).mean() == pytest.approx(44_100 / 220, abs=0.5)
    assert periods(vowel).std() < 1
    assert periods(sung[: 5 * SAMPLES_PER_FRAME]).std() > 20  # hissed, not pulsed
    on_the_beat = sung[6 * SAMPLES_PER_FRAME - 100 : 6 * SAMPLES_PER_FRAME + 100]
    assert on_the_beat.argmax() == pytest.approx(100, abs=1)
    assert phoneme_frames(SYLLABLE, timing) == ["S"] * 6 + ["AA"] * 20 + ["N"] * 4


def test_the_same_note_is_the_same_waveform() -> None:
    timing = Timing(3, 12, 2)
    np.testing.assert_array_equal(
        sing(SPECTRA, SYLLABLE, timing, 60, False), sing(SPECTRA, SYLLABLE, timing, 60, False)
    )


def test_long_notes_stay_within_half_a_semitone_of_their_pitch() -> None:
    sung = sing(SPECTRA, SYLLABLE, Timing(0, 60, 0), 57, is_last=False)[20 * SAMPLES_PER_FRAME : 60 * SAMPLES_PER_FRAME]
    cents = 1200 * np.log2(44_100 / periods(sung) / 220)
    assert 15 < np.abs(cents).max() < 50  # there is a vibrato, and it is a small one


@pytest.mark.parametrize("seed", [19, 55, 71])
def test_tracks_are_whole_frames_of_one_length_and_rests_are_zeros(renderer: Renderer, seed: int) -> None:
    song = compose(seed)
    rendered = renderer.render(song)
    assert rendered.vocal.shape == rendered.instrumental.shape == (song.frames * SAMPLES_PER_FRAME,)
    vocal = rendered.vocal.reshape(song.frames, -1)
    sung = np.zeros(song.frames, bool)
    for start, stop, _ in rendered.score["labels"]["phoneme"]:
        sung[start:stop] = True
    assert not vocal[~sung].any()
    assert vocal[sung].any(axis=1).all()
    for section in rendered.score["sections"]:
        rest = section["stop"] - BEAT * song.frames_per_sixteenth
        assert not rendered.instrumental[(rest + 3) * SAMPLES_PER_FRAME : section["stop"] * SAMPLES_PER_FRAME].any()
        assert not vocal[rest : section["stop"]].any()


def test_the_score_places_every_vowel_on_the_grid(renderer: Renderer) -> None:
    song = compose(3)
    score = renderer.render(song).score
    k = song.frames_per_sixteenth
    phonemes = {frame: name for start, stop, name in score["labels"]["phoneme"] for frame in range(start, stop)}
    for note in score["notes"]:
        assert note["start"] % k == 0
        assert phonemes[note["start"]] in VOWELS
        assert note["onset"] == 0 or phonemes[note["start"] - 1] not in VOWELS
        assert note["phonemes"] == ["S", "AA", "N"]
    assert score["sections"][-1]["stop"] == score["frames"] == sum(s.bars for s in song.sections) * BAR * k


def test_a_written_song_is_read_back(renderer: Renderer, tmp_path: Path) -> None:
    rendered = renderer.render(compose(19))
    write_song(tmp_path / "000002", rendered)
    song = CorpusSong(tmp_path / "000002")
    assert song.score == rendered.score
    assert np.abs(song.load("vocal") - rendered.vocal).max() < 2**-15
    labels = song.labels()
    assert [name for name in labels if labels[name].max() >= len(CLASSES[name])] == []
    assert soundfile.info(tmp_path / "000002" / "instrumental.flac").subtype == "PCM_16"


def test_the_voice_bank_survives_saving(tmp_path: Path) -> None:
    voice = small_voice()
    voice.save(tmp_path)
    again = VoiceBank.load(tmp_path)
    assert again.words == voice.words
    np.testing.assert_allclose(again.spectra["low"].envelope, SPECTRA.envelope, atol=0.13)
    np.testing.assert_allclose(again.spectra["low"].noise, SPECTRA.noise, atol=0.01)
    assert not is_ready(tmp_path)


def test_the_band_bank_survives_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(band_bank, "INSTRUMENTS", {"piano": Instrument(0, 60, 61, 2, 1.0)})
    notes = {("piano", pitch): np.full(2 * SAMPLES_PER_FRAME, pitch / 100, np.float32) for pitch in (60, 61)}
    band = BandBank(notes, small_band().drums)
    band.save(tmp_path)
    again = BandBank.load(tmp_path)
    assert again.notes.keys() == band.notes.keys()
    np.testing.assert_allclose(again.notes["piano", 61], 0.61, atol=2**-15)
    np.testing.assert_allclose(again.drums["kick"], band.drums["kick"], atol=2**-15)


def test_a_word_that_espeak_counts_otherwise_is_named() -> None:
    words = {"river": [SYLLABLE], "star": [SYLLABLE]}
    with pytest.raises(LexiconWrong) as caught:
        compare_with_lexicon(VoiceBank({"low": SPECTRA}, {"low": words}))
    assert str(caught.value) == (
        "lexicon.py: syllables differ from espeak's: river (2, low sings 1); take these words out."
    )


def test_a_missing_soundfont_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(SoundfontMissing) as caught:
        make_band_bank(tmp_path / "font.sf2")
    assert str(caught.value) == (
        f"{tmp_path}/font.sf2 is missing; run `apt-get install fluid-soundfont-gm`, or name one: --soundfont."
    )


@pytest.fixture
def without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    really_import: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name in ("espeakng_loader", "tinysoundfont"):
            raise ImportError(name)
        return really_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_missing_tools_are_named_with_the_command_that_brings_them(without_tools: None, tmp_path: Path) -> None:
    with pytest.raises(EspeakMissing, match=r"^espeak-ng is missing; run `pip install -e '\.\[corpus\]'`\.$"):
        Espeak("en-us", 50)
    font = tmp_path / "font.sf2"
    font.touch()
    with pytest.raises(SoundfontMissing, match=r"^tinysoundfont is missing; run `pip install --no-deps tinysoundfont`"):
        make_band_bank(font)


def test_the_command_reports_what_is_missing_in_one_line(tmp_path: Path) -> None:
    app = command.typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--soundfont", str(tmp_path / "none.sf2")])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/none.sf2 is missing; run `apt-get")
    assert not result.stdout


def test_syllables_are_counted_by_dips_of_loudness_and_by_steps_of_pitch() -> None:
    bump = 20 * np.sin(np.linspace(0, np.pi, 30)) - 40
    pitch = np.full(90, 60.0)
    assert count_syllables(Heard(pitch, np.concatenate([bump, bump, bump]))) == 3
    flat = np.full(90, -20.0)
    pitch[45:] = 62
    assert count_syllables(Heard(pitch, flat)) == 2
    pitch[40:50] = np.nan
    assert count_syllables(Heard(pitch, flat)) == 2
    assert count_syllables(Heard(np.full(90, np.nan), flat)) == 0


def test_espeak_speaks_on_one_pitch_and_says_where_its_phonemes_are() -> None:
    pytest.importorskip("espeakng_loader")
    utterance = Espeak("en-us+m3", 50).say("river")
    assert [phone.name for phone in utterance.phones] == ["r", "'I", "v", "3"]
    assert 0.3 < len(utterance.samples) / utterance.sample_rate < 1
