"""What one take sounds like, and how well that is what was asked for: shares as (hits, of how many)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.corpus.measures import HEARING_RATE, HOP_S, Heard, count_syllables, listen
from training.corpus.world import BEAT, FRAME_RATE, SCALES
from training.language.measure_band import Templates, chroma, hear_key, hear_tempo, onset_strength
from training.language.measure_listeners import Namer, Reader, edits, log_mel, spell
from training.language.measure_prompts import Prompt
from training.language.measure_takes import Take
from xcodec_mini_infer import SAMPLE_RATE

Shares = dict[str, tuple[float, float]]

AUDIBLE_DB = 40.0  # so far below the loudest, a voice counts
NEAR_CENTS = 35
_HOPS_PER_FRAME = round(1 / (FRAME_RATE * HOP_S))
_SNAP = 0.2  # of a line: so far from its place on paper a line may begin


@dataclass(frozen=True)
class Listeners:
    """All that was learned. namers: by kind, of the vocal (`singer`) or of the band. vocal_codes: how probable it is
    that a coarse code is the voice's, float64 [codes], NaN for codes that were never met."""

    templates: Templates
    namers: Mapping[str, Namer]
    reader: Reader
    vocal_codes: np.ndarray


@dataclass(frozen=True)
class Hearing:
    """What was heard in a take. voice: by section, as are classes, of phonemes. names: by kind."""

    voice: tuple[Heard, ...]
    classes: tuple[np.ndarray, ...]
    key: tuple[int, str]
    names: Mapping[str, str]
    leaked: Shares
    frames: tuple[int, ...]
    ended: tuple[bool, ...]


def hear(take: Take, listeners: Listeners) -> Hearing:
    """Listen to a take."""
    assert HEARING_RATE == SAMPLE_RATE, "pitch is tracked at the codec's rate"
    vocal, band = log_mel(take.vocal), log_mel(take.band)
    voice, classes = listen(take.vocal), listeners.reader.read(vocal)
    spans = list(pairwise(take.bounds))
    key = hear_key(chroma(take.band), listeners.templates)
    names = {kind: namer.name(vocal if kind == "singer" else band) for kind, namer in listeners.namers.items()}
    names |= {"tempo": str(hear_tempo(onset_strength(take.band))), "mode": key[1]}
    return Hearing(
        tuple(voice.part(start * _HOPS_PER_FRAME, stop * _HOPS_PER_FRAME) for start, stop in spans),
        tuple(classes[start:stop] for start, stop in spans),
        key,
        names,
        {} if take.coarse is None else leaks(take.coarse, listeners.vocal_codes),
        tuple(stop - start for start, stop in spans),
        take.ended,
    )


def judge(hearing: Hearing, prompt: Prompt, key: tuple[int, str], spelled: Sequence[Sequence[Sequence[int]]]) -> Shares:
    """Compare what was heard with a prompt.

    key: of the band that the voice is to agree with. spelled: phonemes of each section, first of the prompt's own
    words, then of other prompts'.
    """
    shares: Shares = {f"{kind} right": (hearing.names[kind] == name, 1) for kind, name in prompt.truth.items()}
    heard, wanted = int(hearing.names["tempo"]), int(prompt.truth["tempo"])
    shares["tempo right, octaves allowed"] = (heard in (wanted, 2 * wanted, wanted / 2), 1)
    semitones = np.concatenate([audible_semitones(voice) for voice in hearing.voice])
    shares |= pitch_shares(semitones, key)
    hops = sum(len(voice.semitone) for voice in hearing.voice)
    shares["sung part of the time"] = (len(semitones), hops)
    lines = [
        (counted, wanted)
        for voice, syllables in zip(hearing.voice, prompt.syllables, strict=False)
        for counted, wanted in zip(count_lines(voice, len(syllables)), syllables, strict=True)
    ]
    off = np.array([abs(counted - wanted) for counted, wanted in lines])
    shares["lines with the right number of syllables"] = (int((off == 0).sum()), len(off))
    shares["... within one"] = (int((off <= 1).sum()), len(off))
    shares["syllables amiss, of those written"] = (int(off.sum()), sum(wanted for _, wanted in lines))
    shares |= word_shares([spell(classes) for classes in hearing.classes], spelled)
    shares |= hearing.leaked
    if hearing.ended:
        shares["sections ended by themselves"] = (sum(hearing.ended), len(hearing.ended))
    beat = BEAT * prompt.song.frames_per_sixteenth
    lengths = zip(hearing.frames, pairwise(prompt.bounds), strict=False)
    right = [abs(frames - (stop - start)) <= beat for frames, (start, stop) in lengths]
    shares["sections as long as the corpus', to a beat"] = (sum(right), len(right))
    return shares


def audible_semitones(voice: Heard) -> np.ndarray:
    """The pitches of the hops that are voiced and loud enough, MIDI, fractional."""
    if not len(voice.semitone):
        return np.zeros(0)
    loud = voice.loudness_db > voice.loudness_db.max() - AUDIBLE_DB
    return voice.semitone[np.isfinite(voice.semitone) & loud]


def pitch_shares(semitones: np.ndarray, key: tuple[int, str]) -> Shares:
    """How many pitches, rounded, are in the key, and how many are near a semitone at all."""
    near = np.round(semitones)
    classes = (near.astype(int) - key[0]) % 12
    return {
        "pitch in the band's key": (int(np.isin(classes, SCALES[key[1]]).sum()), len(semitones)),
        "pitch near a semitone": (int((100 * np.abs(semitones - near) <= NEAR_CENTS).sum()), len(semitones)),
    }


def count_lines(voice: Heard, lines: int) -> list[int]:
    """Count the syllables of each line; a section's lines are equally long, cut where the voice is softest."""
    length = len(voice.semitone) / max(lines, 1)
    smooth = np.convolve(voice.loudness_db, np.ones(9) / 9, "same")
    cuts = [0]
    for number in range(1, lines):
        first, stop = round((number - _SNAP) * length), round((number + _SNAP / 4) * length)
        softest = np.flatnonzero(smooth[first:stop] <= smooth[first:stop].min() + 1)
        cuts.append(first + int(softest[-1]))
    parts = [voice.part(start, stop) for start, stop in pairwise([*cuts, len(voice.semitone)])]
    return [count_syllables(part) if len(part.semitone) > 10 else 0 for part in parts]


def word_shares(found: Sequence[Sequence[int]], spelled: Sequence[Sequence[Sequence[int]]]) -> Shares:
    """How far the phonemes heard in each section are from its own words, and whether no other words are nearer."""
    own = others = nearest = written = written_others = 0
    for number, heard in enumerate(found[: len(spelled[0])]):
        mine = edits(heard, spelled[0][number])
        elsewhere = [(edits(heard, words[number]), len(words[number])) for words in spelled[1:] if number < len(words)]
        own, written = own + mine, written + len(spelled[0][number])
        others += sum(count for count, _ in elsewhere)
        written_others += sum(length for _, length in elsewhere)
        mine_share = mine / max(len(spelled[0][number]), 1)
        nearest += all(mine_share < count / max(length, 1) for count, length in elsewhere)
    return {
        "phonemes amiss, of those written": (own, written),
        "... against other prompts' words": (others, written_others),
        "sections whose own words are nearest": (nearest, min(len(found), len(spelled[0]))),
    }


def leaks(coarse: np.ndarray, vocal_codes: np.ndarray) -> Shares:
    """Codes of a track that in the corpus hardly ever are of that track. coarse: [2, frames], voice first."""
    chance = vocal_codes[coarse]
    met = np.isfinite(chance)
    return {
        "voice's codes that are the band's": (int((chance[0] < 0.05).sum()), int(met[0].sum())),
        "band's codes that are the voice's": (int((chance[1] > 0.95).sum()), int(met[1].sum())),
    }
