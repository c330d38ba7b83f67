"""What the band plays to a song, and its sound: patterns a genre, whole frames, fixed gains, no reverb."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from training.corpus.band_bank import INSTRUMENTS, BandBank
from training.corpus.harmony import CHORD_TYPES, Chord
from training.corpus.song import Section, Song
from training.corpus.world import BAR, BEAT, SAMPLES_PER_FRAME

RELEASE_FRAMES = 3
ACCENT, SOFT = 1.0, 0.7
_CHORD_GAIN, _BASS_GAIN, _LEAD_GAIN, _DRUM_GAIN = 0.26, 0.45, 0.5, 0.42  # the mix stays below 1
_LOWEST_CHORD, _HIGHEST_CHORD = 50, 69
_LOWEST_BASS = 31  # G1, and the eleven semitones above


@dataclass(frozen=True)
class Style:
    """One bar of a genre in sixteenths: x begins a note, - holds it, . is silence. A digit is a tone of the chord,
    counted from the lowest. Verses leave the drums of `chorus_drums` out."""

    chords: str
    bass: str  # 0 the root, 2 the fifth
    bass_instrument: str
    drums: Mapping[str, str]
    chorus_drums: Mapping[str, str]


STYLES: Mapping[str, Style] = {
    "pop": Style(
        "x-----x-----x---", "0---0---0---0-0-", "electric bass",
        {"kick": "x...x...x...x...", "hat": "..x...x...x...x."},
        {"snare": "....x.......x..."},
    ),
    "rock": Style(
        "x-x-x-x-x-x-x-x-", "0-0-0-0-0-0-0-0-", "picked bass",
        {"kick": "x.....x.x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
        {"crash": "x..............."},
    ),
    "ballad": Style("0-1-2-1-0-1-2-1-", "0-------2-------", "acoustic bass", {}, {}),
    "folk": Style(
        "0-2-1-2-0-2-1-2-", "0-------2-----0-", "acoustic bass",
        {"tambourine": "....x.......x..."},
        {"rim": "x.......x......."},
    ),
    "dance": Style(
        "..x-..x-..x-..x-", "..0-..0-..0-..0-", "synth bass",
        {"kick": "x...x...x...x...", "clap": "....x.......x..."},
        {"open hat": "..x...x...x...x."},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class BandNote:
    """A note over frames [start, stop) of the song. pitch: MIDI."""

    instrument: str
    pitch: int
    start: int
    stop: int
    gain: float


@dataclass(frozen=True)
class DrumHit:
    drum: str
    frame: int
    gain: float
    stop: int  # the frame by which it is damped


@dataclass(frozen=True)
class Arrangement:
    notes: tuple[BandNote, ...]
    hits: tuple[DrumHit, ...]


def arrange(song: Song) -> Arrangement:
    """Write the band's parts. Every section ends with a beat in which nothing is struck."""
    notes: list[BandNote] = []
    hits: list[DrumHit] = []
    start = 0
    for section in song.sections:
        notes += _arrange_notes(song, section, start)
        hits += _arrange_drums(song, section, start)
        start += section.bars * BAR * song.frames_per_sixteenth
    return Arrangement(tuple(notes), tuple(hits))


def play(arrangement: Arrangement, bank: BandBank, frames: int) -> np.ndarray:
    """Mix the band, float32 [frames * SAMPLES_PER_FRAME]."""
    out = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    release = np.linspace(1, 0, RELEASE_FRAMES * SAMPLES_PER_FRAME, dtype=np.float32)
    for note in arrangement.notes:
        _add(out, bank.notes[note.instrument, note.pitch], note.start, note.stop, note.gain, release)
    for hit in arrangement.hits:
        _add(out, bank.drums[hit.drum], hit.frame, hit.stop, hit.gain, release)
    return out


def _add(out: np.ndarray, sound: np.ndarray, start: int, stop: int, gain: float, release: np.ndarray) -> None:
    held = (stop - start) * SAMPLES_PER_FRAME
    first = start * SAMPLES_PER_FRAME
    piece = sound[: held + len(release)] * np.float32(gain)
    tail = piece[held:]
    tail *= release[: len(tail)]
    out[first : first + len(piece)] += piece[: len(out) - first]


def _arrange_notes(song: Song, section: Section, first_frame: int) -> Iterator[BandNote]:
    k = song.frames_per_sixteenth
    style = STYLES[song.tags.genre]
    end = section.bars * BAR - BEAT
    instrument = song.tags.instrument
    voicing: list[int] = []
    for chord in section.chords:
        voicing = _voice(chord, voicing)
        stop = min(chord.stop, end)
        for at, until, tone in _strikes(style.chords, chord.start, stop):
            pitches = voicing if tone is None else [voicing[tone]]
            gain = _CHORD_GAIN * (ACCENT if tone is None else 1.6) * (ACCENT if at % BEAT == 0 else SOFT)
            for pitch in pitches:
                yield BandNote(instrument, pitch, first_frame + at * k, first_frame + until * k, gain)
        for at, until, tone in _strikes(style.bass, chord.start, stop):
            step = CHORD_TYPES[chord.type][tone or 0]
            pitch = _LOWEST_BASS + (chord.root - _LOWEST_BASS) % 12 + step
            yield BandNote(style.bass_instrument, pitch, first_frame + at * k, first_frame + until * k, _BASS_GAIN)
    for note in section.played:
        pitch = note.semitone
        while pitch < 64:
            pitch += 12
        pitch = min(pitch, INSTRUMENTS[instrument].highest)
        longest = min(note.stop, note.start + BAR // 2)
        yield BandNote(instrument, pitch, first_frame + note.start * k, first_frame + longest * k, _LEAD_GAIN)


def _arrange_drums(song: Song, section: Section, first_frame: int) -> Iterator[DrumHit]:
    style = STYLES[song.tags.genre]
    patterns = {**style.drums, **(style.chorus_drums if section.tag == "chorus" else {})}
    end = section.bars * BAR - BEAT
    k = song.frames_per_sixteenth
    for drum, pattern in patterns.items():
        for at in range(end):
            if pattern[at % BAR] == "x" and not (drum == "crash" and at):
                gain = _DRUM_GAIN * (ACCENT if at % (2 * BEAT) == 0 or drum in ("kick", "snare", "clap") else SOFT)
                yield DrumHit(drum, first_frame + at * k, gain, first_frame + end * k)


def _strikes(pattern: str, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
    """The notes of a pattern within sixteenths [start, stop): start, stop and chord tone, None for all of them."""
    at = start
    while at < stop:
        sign = pattern[at % BAR]
        until = at + 1
        while until < stop and until % BAR and pattern[until % BAR] == "-":
            until += 1
        if sign not in ".-":
            yield at, min(until, at + BAR // 2), None if sign == "x" else int(sign)
        at = until


def _voice(chord: Chord, before: list[int]) -> list[int]:
    """Choose the inversion nearest to the chord before, three notes from low to high."""
    tones = [(chord.root + step) % 12 for step in CHORD_TYPES[chord.type]]
    if len(tones) == 4:
        tones.pop(2)  # a seventh chord without its fifth
    choices = []
    for lowest in range(_LOWEST_CHORD, _LOWEST_CHORD + 12):
        if lowest % 12 in tones:
            above = sorted(lowest + (tone - lowest) % 12 for tone in tones)
            if above[-1] <= _HIGHEST_CHORD:
                choices.append(above)
    target = before or [54, 58, 62]
    return min(choices, key=lambda pitches: sum(abs(a - b) for a, b in zip(pitches, target, strict=True)))
