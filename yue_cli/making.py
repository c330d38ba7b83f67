"""The making of each stage: arrays from disk to a stage function and back, every finished piece at once on disk.

Knows how a stage is made; whether it must be made is `plan.py`'s and `pipeline.py`'s business.
"""

import time
from dataclasses import replace

import numpy as np

from yue_cli import audio_prompt, budget, machine, mixing, plan, prompt, segments
from yue_cli.artifacts import TRACKS, encode_array, read_tokens, read_track, sha256_json
from yue_cli.audio_files import read_audio, write_audio
from yue_cli.engines.base import Engine
from yue_cli.events import Warned
from yue_cli.project import SegmentRecord, StageState
from yue_cli.settings import Stage1Settings
from yue_cli.stages import decode, reference, stage1, stage2
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import CODEBOOKS, FRAME_RATE, WINDOW_FRAMES, Vocabulary
from yue_cli.workbench import Workbench, check_vocabulary

SOUNDS = ("mix", *TRACKS)
CREDIT = "AI-generated with YuE by HKUST/M-A-P"
HOW_TO_SPLIT = "split the mix with audio-separator, then --vocal and --instrumental"


def make_reference(bench: Workbench) -> None:
    """Encode the audio prompt into int16 [1, T] a track, in `reference/`. Raises YueError."""
    asked = bench.request.song.reference
    assert asked is not None
    model, sources = bench.model("reference"), asked.sources
    sounds = {track: read_audio(path) for track, path in sources.items()}
    if len(sources) == 1:
        bench.note("reference", f"one track; with voice and band apart a song follows more closely: {HOW_TO_SPLIT}")
    if asked.crop:
        bench.note("reference", f"{asked.excerpt} alone: other codes than those of the same seconds in the whole sound")
    began = time.perf_counter()
    encoder = reference.open_encoder(model.path, bench.device)
    with machine.threads_for(sum(weight.nbytes for weight in encoder.parameters())):
        crop = (asked.start, asked.end_s) if asked.crop else None
        codes = reference.encode(encoder, sounds, crop, bench.emit)
    del encoder
    bench.free_memory()
    bench.project.begin("reference", {f"{track}.npy": encode_array(values) for track, values in codes.items()})
    bench.finish(
        "reference",
        [f"{track}.npy" for track in codes],
        model=model,
        inputs={},
        music_s=codes["vocal"].shape[1] / FRAME_RATE,
        seconds=time.perf_counter() - began,
        texts={
            "mode": "dual" if len(sources) == 2 else "single",
            "excerpt": asked.excerpt,
            **{track: str(path) for track, path in sources.items()},
        },
    )


def read_reference(bench: Workbench) -> prompt.Reference | None:
    """Read the codes of the audio prompt, if the song has one. Raises ArtifactError, AudioError."""
    asked, folder = bench.request.song.reference, bench.project.folder("reference")
    if asked is None:
        return None
    remedy = bench.remedy("reference")
    vocal, second = read_track(folder / "vocal.npy", 1, remedy), folder / "instrumental.npy"
    instrumental = read_track(second, 1, remedy) if second.exists() else None
    seconds = min(track.shape[1] for track in (vocal, instrumental) if track is not None) / FRAME_RATE
    if asked.crop:
        return prompt.Reference(vocal, instrumental, 0.0, seconds)
    audio_prompt.check_length(asked, str(folder), seconds)
    return prompt.Reference(vocal, instrumental, asked.start, asked.end_s)


def make_stage1(bench: Workbench, state: StageState, from_segment: int | None) -> None:
    """Sing the missing segments and split all of them into int16 [1, T] a track, in `stage1/`.

    state: what the folder holds. from_segment: keep the segments before it, counted from 1. Raises YueError.
    """
    asked, lyrics, wanted = bench.request.song, bench.request.lyrics, bench.request.segments
    assert lyrics is not None and asked.genre is not None and wanted is not None
    model = bench.model("stage1")
    vocabulary, facts = Vocabulary.read(model.path), bench.describe(model)
    settings = replace(bench.settings.stage1, context=min(bench.settings.stage1.context, facts.max_length))
    assert settings.on_overflow is not None
    tokenizer = Tokenizer(model.path / TOKENIZER_FILE, vocabulary)
    audio = read_reference(bench)
    prompts = prompt.build(tokenizer, vocabulary, asked.genre, lyrics.sections, bench.settings.rules, audio)
    for warning in prompts.warnings:
        bench.emit(Warned(warning))
    ids = np.concatenate([prompts.head, prompts.reference, *prompts.segments])
    check_vocabulary(ids, facts.vocabulary_size, model)
    prompt.check_fits(prompts, settings.context, settings.max_new_tokens, settings.on_overflow, wanted)

    keys = segments.SegmentKeys(prompts, asked, plan.recipe(bench.request, "stage1"))
    there = bench.project.segments()
    if from_segment is not None:
        records = segments.keep_before(from_segment, there, keys)
    elif state.manifest is not None and "stage1" in asked.forced:
        records = []
    else:
        records = segments.keep_current(there, keys, wanted)
    _tell_segments(bench, len(records))
    if 0 < len(records) < wanted:
        bench.note("stage1", f"{sections(len(records))} there · going on with {len(records) + 1}")
    if records == there and state.state in ("missing", "unfinished"):
        begin = None  # goes on in the folder that is there
    else:
        begin = segments.copies(bench.project, records)

    seconds = 0.0
    if len(records) < wanted:
        rows, length = stage1.needed_rows(settings), stage1.needed_length(prompts, settings, wanted)
        with (
            budget.explained(bench, "stage1"),
            bench.engine("stage1", model, rows=rows, length=length) as engine,
        ):
            if begin is not None:
                bench.project.begin("stage1", begin)
            seconds = _sing(bench, engine, vocabulary, prompts, settings, keys, records, wanted)
    elif begin is not None:
        bench.project.begin("stage1", begin)
    raw = prompts.raw([record.ids for record in records])
    vocal, instrumental = stage1.split(raw, vocabulary, skip_reference=len(prompts.reference) > 0)
    tokens = bench.storable("stage1", vocal, instrumental, "`--set rules=yue` allows codebook 0 only.")
    bench.finish_tokens(
        "stage1",
        tokens,
        model=model,
        inputs=bench.project.hashes("reference") or {} if audio else {},
        seconds=seconds,
        texts={"lyrics": asked.lyrics or "", "genre": asked.genre},
        truncated=[record.number for record in records if record.truncated],
    )


def _sing(
    bench: Workbench,
    engine: Engine,
    vocabulary: Vocabulary,
    prompts: prompt.Prompts,
    settings: Stage1Settings,
    keys: segments.SegmentKeys,
    records: list[SegmentRecord],
    wanted: int,
) -> float:
    """Add the segments that are missing to `records`, each on disk before the next begins. Returns seconds."""
    assert bench.request.lyrics is not None
    tags = [section.tag for section in bench.request.lyrics.sections[:wanted]]
    seeds = [bench.request.song.segment_seed(number) for number in range(1, wanted + 1)]
    began = time.perf_counter()
    task = stage1.Task(prompts, seeds, [record.ids for record in records], tags=tags)
    sung = stage1.generate(engine, vocabulary, [task], settings=settings, rules=bench.settings.rules, emit=bench.emit)
    for _, segment in sung:
        done = len(records)
        key = keys.key(done + 1, [record.ids for record in records])
        record = SegmentRecord(done + 1, segment.ids, key, tags[done], seeds[done], segment.truncated)
        bench.project.save_segment(record)
        records.append(record)
        _tell_segments(bench, len(records))
    return time.perf_counter() - began


def make_stage2(bench: Workbench, state: StageState) -> None:
    """Decode the missing batches of windows into int16 [8, T] a track, in `stage2/`. Raises YueError."""
    settings = bench.settings.stage2
    tokens = read_tokens(bench.project.folder("stage1"), 1, bench.remedy("stage1"))
    inputs = bench.project.hashes("stage1")
    assert inputs is not None and settings.tail is not None and settings.restrict_picks is not None
    model = bench.model("stage2")
    vocabulary, facts = Vocabulary.read(model.path), bench.describe(model)
    check_vocabulary(np.array(vocabulary.codebook(CODEBOOKS - 1)), facts.vocabulary_size, model)
    length = stage2.cache_length(min(tokens.frames, WINDOW_FRAMES))

    key = sha256_json({"recipe": plan.recipe(bench.request, "stage2"), "inputs": inputs})
    resumed = None if state.manifest is not None else bench.project.batches(key)
    rows, batches = resumed or (budget.choose_rows(bench, tokens.frames, facts, length), {})
    batch_plan = stage2.plan(tokens.frames, settings.tail, rows)
    wanted = len(batch_plan.batches)
    if 0 < len(batches) < wanted:
        bench.note("stage2", f"{len(batches)} of {wanted} batches are there · going on")
    seconds = 0.0
    if len(batches) < wanted:
        with (
            budget.explained(bench, "stage2"),
            bench.engine("stage2", model, rows=rows, length=length) as engine,
        ):
            if resumed is None:
                bench.project.begin_batches(key, rows)
            began = time.perf_counter()
            for number, ids in stage2.decode(
                engine,
                vocabulary,
                (tokens.vocal, tokens.instrumental),
                settings=settings,
                rows=rows,
                finished=batches,
                emit=bench.emit,
            ):
                bench.project.save_batch(number, ids)
                batches[number] = ids
                bench.kept = f"{len(batches)} of {wanted} batches of stage 2 are kept. The same command goes on."
            seconds = time.perf_counter() - began
    vocal, instrumental = stage2.assemble(batch_plan, batches, vocabulary, restrict_picks=settings.restrict_picks)
    remedy = "`--set stage2.restrict_picks=true` keeps every pick in its codebook."
    made = bench.storable("stage2", vocal, instrumental, remedy)
    bench.finish_tokens("stage2", made, model=model, inputs=inputs, seconds=seconds, rows=rows)


def make_audio(bench: Workbench, state: StageState) -> None:
    """Turn all codes into stems and mix, 44.1 kHz, in `audio/`. Raises YueError."""
    settings, asked = bench.settings.decode, bench.request.song
    tokens = read_tokens(bench.project.folder("stage2"), CODEBOOKS, bench.remedy("stage2"))
    inputs = bench.project.hashes("stage2")
    assert inputs is not None and settings.limit is not None
    model = bench.model("audio")
    decoders = decode.open_codec(model.path, bench.device)
    began = time.perf_counter()
    with machine.threads_for(decoders.weight_bytes):
        stems = decode.decode(decoders, tokens.vocal, tokens.instrumental, settings.limit, bench.emit)
    gain = mixing.limit(stems.mix, settings.limit)
    if gain < 1:
        how = f"turned down to {100 * gain:.0f} %" if settings.limit == "scale" else "clipped"
        bench.note("audio", f"the mix was {how}: its peak passed full scale")
    folder = bench.project.begin("audio")
    names = [f"{name}.{settings.format}" for name in SOUNDS]
    tags = {
        "title": bench.project.root.resolve().name,
        "artist": "YuE",
        "genre": asked.genre or "",
        "comment": f"seed {asked.seed}; {CREDIT}",
    }
    for name, file in zip(SOUNDS, names, strict=True):
        write_audio(folder / file, getattr(stems, name), tags)
    seconds = time.perf_counter() - began
    bench.finish("audio", names, model=model, inputs=inputs, music_s=tokens.seconds, seconds=seconds)


def _tell_segments(bench: Workbench, count: int) -> None:
    if count:
        bench.kept = f"{sections(count)} kept. The same command goes on with section {count + 1}."


def sections(count: int) -> str:
    """Name the first sections as the subject of a sentence."""
    return "section 1 is" if count == 1 else f"sections 1–{count} are"
