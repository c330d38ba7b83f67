"""Songs to train on, before any sound: everything here runs without espeak, soundfont or bank."""

from random import Random

import pytest

from training.corpus import lyrics
from training.corpus.band import STYLES, arrange
from training.corpus.band_bank import DRUMS, INSTRUMENTS
from training.corpus.compose import compose, is_held_out, tags_of
from training.corpus.harmony import CHORD_TYPES, chord_at, scale_over
from training.corpus.lexicon import LEXICON, words_of
from training.corpus.melody import CHORUS_LIFT, RANGE
from training.corpus.song import Song
from training.corpus.tags import WORDS, Tags
from training.corpus.tunes import TUNES, OldTune, set_tune
from training.corpus.world import BAR, BEAT, FASTEST, SINGERS, SLOWEST, Singer, tempo_bpm
from yue_cli.lyrics import parse, parse_genre

SEEDS = range(40)
SONGS = [compose(seed) for seed in SEEDS]
NEW_SONGS = [song for song in SONGS if not song.old_tune]


@pytest.fixture(scope="module")
def many() -> list[Song]:
    return [compose(seed) for seed in range(120)]


@pytest.fixture(params=SONGS, ids=lambda song: f"song {song.seed}")
def song(request: pytest.FixtureRequest) -> Song:
    return request.param


def test_a_seed_gives_the_same_song_each_time() -> None:
    assert compose(7) == compose(7)
    assert compose(7) != compose(9)


def test_other_tags_with_the_same_seed_keep_the_words() -> None:
    slow = Tags("ballad", "piano", "sad", "low", "slow")
    fast = Tags("rock", "electric guitar", "happy", "high", "fast")
    assert compose(7, slow).lyrics == compose(7, fast).lyrics
    assert compose(7, slow).frames_per_sixteenth == 11 and compose(7, fast).frames_per_sixteenth == 5


def test_some_pairs_of_songs_share_their_words_under_other_tags() -> None:
    pairs = [(compose(seed), compose(seed + 1)) for seed in SEEDS[::2]]
    same = [pair for pair in pairs if pair[0].lyrics == pair[1].lyrics]
    assert 0.2 < len(same) / len(pairs) < 0.8
    assert all(first.tags != second.tags for first, second in same)


def test_every_tempo_is_a_whole_number_of_frames_in_a_sixteenth(song: Song) -> None:
    assert FASTEST <= song.frames_per_sixteenth <= SLOWEST
    assert song.frames == sum(section.bars for section in song.sections) * BAR * song.frames_per_sixteenth
    assert tempo_bpm(song.frames_per_sixteenth) == 750 / song.frames_per_sixteenth


def test_the_sung_notes_follow_one_another_and_leave_the_last_beat(song: Song) -> None:
    for section in song.sections:
        last = 0
        for note in section.notes:
            assert last <= note.start < note.stop <= section.bars * BAR - BEAT
            last = note.stop


def test_the_first_consonants_of_a_section_stay_in_it(song: Song) -> None:
    for section in song.sections:
        if section.notes:
            assert section.notes[0].start * song.frames_per_sixteenth >= 8


def test_the_melody_stays_in_the_register_and_in_the_scale_over_the_chord(song: Song) -> None:
    singer = SINGERS[song.tags.singer]
    sung = [note.semitone for section in song.sections for note in section.notes]
    assert singer.lowest <= min(sung) <= max(sung) <= singer.highest
    assert song.old_tune or max(sung) - min(sung) <= RANGE + CHORUS_LIFT
    for section in song.sections:
        for note in section.notes:
            assert note.semitone % 12 in scale_over(chord_at(list(section.chords), note.start), song.key)


def test_only_the_leading_tone_of_minor_leaves_the_key(song: Song) -> None:
    classes = {song.key.pitch_class(degree) for degree in range(7)}
    for section in song.sections:
        for chord in section.chords:
            foreign = chord.pitch_classes - classes
            assert not foreign or (song.key.mode == "minor" and foreign == {(song.key.tonic - 1) % 12})


def test_stressed_syllables_stand_on_pulses_and_chord_tones() -> None:
    """A syllable is free of the chord only where the metre is weak, and then it is off the pulse."""
    for song in NEW_SONGS:
        for section in song.sections:
            pulse = section.bars * BAR // max(len(section.lines), 1) // 8
            for note in section.notes:
                if LEXICON[note.word].stress[note.syllable] == "1":
                    assert note.start % pulse == 0
                    assert note.semitone % 12 in chord_at(list(section.chords), note.start).pitch_classes


def test_every_section_closes_on_the_tonic_chord() -> None:
    for song in NEW_SONGS:
        for section in song.sections:
            assert section.chords[-1].root == song.key.tonic
            assert section.chords[-1].stop == section.bars * BAR


def test_there_is_a_note_for_each_syllable_of_the_lexicon(song: Song) -> None:
    for section in song.sections:
        for number, line in enumerate(section.lines):
            wanted = [(word, index) for word in line.split() for index in range(LEXICON[word].syllables)]
            assert [(note.word, note.syllable) for note in section.notes if note.line == number] == wanted


def test_choruses_repeat_and_verses_bring_new_words_to_the_old_melody() -> None:
    for song in NEW_SONGS:
        choruses = [section for section in song.sections if section.tag == "chorus"]
        verses = [section for section in song.sections if section.tag == "verse"]
        assert len(set(choruses)) == 1
        assert len({tuple(note.semitone for note in verse.notes) for verse in verses}) <= 1
        assert len({verse.lines for verse in verses}) == len(verses)


def test_about_a_tenth_of_the_sections_is_played_only(many: list[Song]) -> None:
    sections = [section for song in many for section in song.sections]
    assert 0.05 < sum(not section.lines for section in sections) / len(sections) < 0.15


def test_no_line_of_the_held_out_songs_is_in_training(many: list[Song]) -> None:
    lines: dict[bool, set[str]] = {True: set(), False: set()}
    for song in many:
        for section in song.sections:
            lines[song.held_out] |= {line.lower() for line in section.lines}
    assert lines[True] and lines[False]
    assert not lines[True] & lines[False]


def test_pairs_are_never_parted_between_the_splits() -> None:
    assert all(is_held_out(seed) == is_held_out(seed + 1) for seed in range(0, 200, 2))
    assert sum(map(is_held_out, range(200))) == 10


def test_a_few_songs_are_old_tunes_each_on_one_side(many: list[Song]) -> None:
    titles: dict[bool, set[str | None]] = {True: set(), False: set()}
    for song in many:
        titles[song.held_out].add(song.old_tune)
    assert 0 < sum(bool(song.old_tune) for song in many) < 0.06 * len(many)
    assert titles[True] & titles[False] <= {None}


@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: tune.title)
@pytest.mark.parametrize("singer", SINGERS.values(), ids=lambda singer: singer.name)
def test_an_old_tune_fills_its_bars_and_suits_every_singer(tune: OldTune, singer: Singer) -> None:
    for part in tune.parts.values():
        assert sum(length for line in part.lines for _, length in line.notes) == BAR * len(part.chords)
    key, sections = set_tune(tune, singer, tune.held_out, Random(1))
    assert key.mode == "major"
    pitches = [note.semitone for section in sections for note in section.notes]
    assert singer.lowest <= min(pitches) <= max(pitches) <= singer.highest


def test_twinkle_is_the_tune_that_everybody_knows() -> None:
    _, sections = set_tune(TUNES[0], SINGERS["middle"], False, Random(1))
    assert [note.semitone - sections[0].notes[0].semitone for note in sections[0].notes] == [
        0, 0, 7, 7, 9, 9, 7, 5, 5, 4, 4, 2, 2, 0,
    ]  # fmt: skip
    assert sections[0].lines == ("twinkle twinkle little star", "how I wonder what you are")


def test_yue_reads_lyrics_and_genre_as_they_were_meant(song: Song) -> None:
    sections = parse(song.lyrics, "lyrics").sections
    assert [(section.tag, section.text) for section in sections] == [
        (section.tag, "\n".join(section.lines)) for section in song.sections
    ]
    assert parse_genre(song.genre) == song.genre


def test_a_word_for_a_tag_means_one_thing() -> None:
    meanings = [word for values in WORDS.values() for words in values.values() for word in words]
    assert len(meanings) == len(set(meanings))


def test_tags_are_drawn_independently() -> None:
    drawn = [tags_of(seed) for seed in range(600)]
    sad = [tags for tags in drawn if tags.mood == "sad"]
    for genre in WORDS["genre"]:
        assert abs(sum(tags.genre == genre for tags in sad) / len(sad) - 0.2) < 0.12


@pytest.mark.parametrize("metre", lyrics.METRES)
def test_every_template_fits_its_metre(metre: str) -> None:
    dice = Random(0)
    for template in lyrics.TEMPLATES[metre]:
        for _ in range(5):
            line = lyrics.fill(template, dice)
            assert lyrics.fits(metre, line), f"{metre}: {template} became {line}"


def test_the_band_strikes_nothing_in_the_last_beat_and_holds_no_note_too_long(song: Song) -> None:
    k = song.frames_per_sixteenth
    arrangement = arrange(song)
    start = 0
    for section in song.sections:
        stop = start + section.bars * BAR * k
        rest = stop - BEAT * k
        assert not [note for note in arrangement.notes if start <= note.start < stop and note.stop > rest]
        assert not [hit for hit in arrangement.hits if rest <= hit.frame < stop]
        start = stop
    for note in arrangement.notes:
        instrument = INSTRUMENTS[note.instrument]
        assert instrument.lowest <= note.pitch <= instrument.highest
        assert 0 < note.stop - note.start <= instrument.frames


def test_the_band_starts_on_the_first_frame_of_each_section_and_plays_the_chords(song: Song) -> None:
    arrangement = arrange(song)
    start = 0
    for section in song.sections:
        starts = {note.start for note in arrangement.notes} | {hit.frame for hit in arrangement.hits}
        assert start in starts
        start += section.bars * BAR * song.frames_per_sixteenth


def test_patterns_are_bars_of_known_instruments() -> None:
    for style in STYLES.values():
        for pattern in (style.chords, style.bass, *style.drums.values(), *style.chorus_drums.values()):
            assert len(pattern) == BAR
        assert style.bass_instrument in INSTRUMENTS
        assert set(style.drums) | set(style.chorus_drums) <= set(DRUMS)


def test_a_word_in_two_lists_has_one_stress() -> None:
    kinds = {kind for kind, _ in lyrics.SLOTS.values()}
    words = [(word, stress) for kind, stress in set(lyrics.SLOTS.values()) for word in words_of(kind, stress)]
    assert kinds and all(LEXICON[word].stress == stress for word, stress in words)
    assert 380 <= len(LEXICON) <= 450


def test_chord_types_are_built_on_their_root() -> None:
    assert all(steps[0] == 0 for steps in CHORD_TYPES.values())
