"""From a song to its two tracks and its score: what sounds in every frame."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from training.corpus.band import STYLES, Arrangement, arrange, play
from training.corpus.band_bank import BandBank
from training.corpus.song import Song, SungNote
from training.corpus.voice import (
    LONGEST_ONSET,
    MOST_CONSONANT,
    Timing,
    natural_coda,
    natural_onset,
    phoneme_frames,
    sing,
)
from training.corpus.voice_bank import VoiceBank
from training.corpus.world import BAR, SAMPLES_PER_FRAME
from yue_cli.atomic import write_bytes
from yue_cli.audio_files import write_audio

Run = list[Any]  # [start frame, stop frame, value, ...]


@dataclass(frozen=True)
class PlacedNote:
    """A sung note on the song's frames: consonants from `start - timing.onset`, vowel from `start` on."""

    note: SungNote
    section: int
    start: int
    stop: int  # where the last consonant ends
    timing: Timing
    rest_follows: bool


@dataclass(frozen=True)
class Rendered:
    vocal: np.ndarray  # float32 [frames * SAMPLES_PER_FRAME]
    instrumental: np.ndarray
    score: dict[str, Any]


class Renderer:
    """Sings and plays from the bank. One for each process; what it sang lately it remembers."""

    def __init__(self, voice: VoiceBank, band: BandBank):
        self._voice = voice
        self._band = band
        self._sing = lru_cache(maxsize=2000)(self._sing_anew)

    def render(self, song: Song) -> Rendered:
        placed = self._place(song)
        vocal = np.zeros(song.frames * SAMPLES_PER_FRAME, np.float32)
        for note in placed:
            sung = self._sing(
                song.tags.singer, note.note.word, note.note.syllable, note.timing, note.note.semitone, note.rest_follows
            )
            first = (note.start - note.timing.onset) * SAMPLES_PER_FRAME
            vocal[first : first + len(sung)] += sung[: len(vocal) - first]
        arrangement = arrange(song)
        return Rendered(vocal, play(arrangement, self._band, song.frames), self._write_score(song, placed, arrangement))

    def _sing_anew(
        self, singer: str, word: str, syllable: int, timing: Timing, semitone: int, rest_follows: bool
    ) -> np.ndarray:
        sound = sing(
            self._voice.spectra[singer], self._voice.words[singer][word][syllable], timing, semitone, rest_follows
        )
        if rest_follows:  # then the rest is exact zeros
            sound = sound[: (timing.onset + timing.nucleus + timing.coda) * SAMPLES_PER_FRAME]
        return sound

    def _place(self, song: Song) -> list[PlacedNote]:
        """Cut the notes up: consonants before a vowel take their time from the note or the rest before."""
        k = song.frames_per_sixteenth
        words = self._voice.words[song.tags.singer]
        notes: list[tuple[int, SungNote, int, int]] = []
        section_start = 0
        for number, section in enumerate(song.sections):
            for note in section.notes:
                notes.append((number, note, section_start + note.start * k, section_start + note.stop * k))
            section_start += section.bars * BAR * k
        onsets = []
        free_from = lent = 0  # where the rest before a note starts, and what the note before that could lend
        for _, note, start, stop in notes:
            natural = natural_onset(words[note.word][note.syllable])
            onsets.append(min(natural, LONGEST_ONSET, int(MOST_CONSONANT * (stop - start)), start - free_from + lent))
            free_from, lent = stop, int(MOST_CONSONANT * (stop - start))
        placed = []
        for index, (number, note, start, stop) in enumerate(notes):
            following = notes[index + 1][2] - onsets[index + 1] if index + 1 < len(notes) else song.frames
            end = min(stop, following)
            coda = min(natural_coda(words[note.word][note.syllable]), int(MOST_CONSONANT * (end - start)))
            assert end - coda > start, f"song {song.seed}: no room for {note} at frame {start}"
            timing = Timing(onsets[index], end - start - coda, coda)
            placed.append(PlacedNote(note, number, start, end, timing, following > stop))
        return placed

    def _write_score(self, song: Song, placed: Sequence[PlacedNote], arrangement: Arrangement) -> dict[str, Any]:
        k = song.frames_per_sixteenth
        words = self._voice.words[song.tags.singer]
        phonemes: list[str | None] = [None] * song.frames
        semitones: list[int | None] = [None] * song.frames
        notes = []
        for note in placed:
            syllable = words[note.note.word][note.note.syllable]
            names = phoneme_frames(syllable, note.timing)
            first = note.start - note.timing.onset
            phonemes[first : note.stop] = names
            semitones[first : note.stop] = [note.note.semitone] * len(names)
            notes.append(
                {
                    "start": note.start,
                    "stop": note.stop,
                    "onset": note.timing.onset,
                    "coda": note.timing.coda,
                    "semitone": note.note.semitone,
                    "word": note.note.word,
                    "syllable": note.note.syllable,
                    "phonemes": [phone.name for phone in syllable],
                    "section": note.section,
                    "line": note.note.line,
                }
            )
        sections, chords = [], []
        start = 0
        for section in song.sections:
            stop = start + section.bars * BAR * k
            sections.append({"tag": section.tag, "start": start, "stop": stop, "lines": list(section.lines)})
            chords += [[start + c.start * k, start + c.stop * k, c.root, c.type] for c in section.chords]
            start = stop
        return {
            "seed": song.seed,
            "split": "held-out" if song.held_out else "train",
            "genre": song.genre,
            "tags": asdict(song.tags),
            "lyrics": song.lyrics,
            "old_tune": song.old_tune,
            "frames": song.frames,
            "frames_per_sixteenth": k,
            "key": {"tonic": song.key.tonic, "mode": song.key.mode},
            "sections": sections,
            "notes": notes,
            "labels": {
                "phoneme": _runs(phonemes),
                "semitone": _runs(semitones),
                "singer": [
                    [start, stop, song.tags.singer] for start, stop, _ in _runs(bool(p) or None for p in phonemes)
                ],
                "chord": chords,
                "drum": [[hit.frame, hit.drum] for hit in sorted(arrangement.hits, key=lambda hit: hit.frame)],
                "instrument": [[0, song.frames, song.tags.instrument]],
                "bass": [[0, song.frames, STYLES[song.tags.genre].bass_instrument]],
            },
        }


def write_song(folder: Path, rendered: Rendered) -> None:
    """Write vocal.flac, instrumental.flac and, last, score.json, whose presence says that the song is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in (("vocal", rendered.vocal), ("instrumental", rendered.instrumental)):
        peak = float(np.abs(samples).max())
        assert peak < 1, f"{folder.name}: {name} would be cut at its peak of {peak:.2f}; lower the gains"
        write_audio(folder / f"{name}.flac", samples[None], {})
    text = json.dumps(rendered.score, separators=(",", ":"))
    write_bytes(folder / "score.json", text.encode())


def _runs(values: Iterable[Any]) -> list[Run]:
    """Frames of equal value as [start, stop, value]; frames of None are left out."""
    runs: list[Run] = []
    for frame, value in enumerate(values):
        if value is not None:
            if runs and runs[-1][1] == frame and runs[-1][2] == value:
                runs[-1][1] = frame + 1
            else:
                runs.append([frame, frame + 1, value])
    return runs
