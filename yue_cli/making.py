"""The making of what the codec makes: codes of reference audio, and sound. Arrays from disk to a stage and back.

Knows how a stage is made; whether it must be made is `plan.py`'s and `pipeline.py`'s business.
"""

import time
from collections.abc import Sequence

import numpy as np

from yue_cli import machine, mixing, plan
from yue_cli.artifacts import TRACKS, Tokens, encode_array, read_tokens, sha256_json
from yue_cli.audio_files import read_audio, write_audio
from yue_cli.events import Warned
from yue_cli.foreign import ForeignStage, part_strangers, take_in
from yue_cli.stages import decode, reference
from yue_cli.vocab import CODEBOOKS, FRAME_RATE
from yue_cli.weights import ModelFolder
from yue_cli.workbench import TITLES, Order, Workbench

SOUNDS = ("mix", *TRACKS)
CREDIT = "AI-generated with YuE by HKUST/M-A-P"
COARSE = 1  # codebooks that stage 1 reads
HOW_TO_SPLIT = "split the mix with audio-separator, then --vocal and --instrumental"


def make_reference(orders: Sequence[Order]) -> None:
    """Encode the audio prompt into int16 [1, T] a track, in `reference/`. Raises YueError.

    Songs that follow the same sound share its codes. What fails for one song alone is noted on its bench.
    """
    encoded: dict[str, tuple[dict[str, np.ndarray], float]] = {}
    for order in orders:
        bench = order.bench
        with bench.trial():
            model = bench.model("reference")
            key = sha256_json(plan.recipe(bench.request, "reference"))
            if key not in encoded:
                encoded[key] = _encode(bench, model, COARSE)
            _keep_reference(bench, model, *encoded[key])


def make_copy(bench: Workbench) -> None:
    """Encode voice and band with all codebooks into int16 [8, T] a track, in `stage2/`. Raises YueError."""
    asked, model = bench.request.song.reference, bench.model("reference")
    assert asked is not None
    codes, _ = _encode(bench, model, CODEBOOKS)
    brought = ForeignStage("stage2", Tokens(codes["vocal"], codes["instrumental"]), asked.sources)
    for warning in part_strangers(bench.project, [brought]):
        bench.emit(Warned(warning))
    if take_in(bench.project, brought):
        bench.note("stage2", "the old one is kept in history/")


def _encode(bench: Workbench, model: ModelFolder, codebooks: int) -> tuple[dict[str, np.ndarray], float]:
    """Turn the sound of an audio prompt into codes; also returns the seconds that took."""
    asked = bench.request.song.reference
    assert asked is not None
    sources = asked.sources
    sounds = {track: read_audio(path) for track, path in sources.items()}
    if len(sources) == 1:
        bench.note("reference", f"one track; with voice and band apart a song follows more closely: {HOW_TO_SPLIT}")
    if asked.crop:
        bench.note("reference", f"{asked.excerpt} alone: other codes than those of the same seconds in the whole sound")
    began = time.perf_counter()
    encoder = reference.open_encoder(model.path, bench.device, codebooks)
    with machine.threads_for(sum(weight.nbytes for weight in encoder.parameters())):
        crop = (asked.start, asked.end_s) if asked.crop else None
        codes = reference.encode(encoder, sounds, crop, bench.emit)
    del encoder
    bench.free_memory()
    return codes, time.perf_counter() - began


def _keep_reference(bench: Workbench, model: ModelFolder, codes: dict[str, np.ndarray], seconds: float) -> None:
    asked = bench.request.song.reference
    assert asked is not None
    bench.project.begin("reference", {f"{track}.npy": encode_array(values) for track, values in codes.items()})
    bench.finish(
        "reference",
        [f"{track}.npy" for track in codes],
        model=model,
        inputs={},
        music_s=codes["vocal"].shape[1] / FRAME_RATE,
        seconds=seconds,
        texts={
            "mode": "dual" if len(asked.sources) == 2 else "single",
            "excerpt": asked.excerpt,
            **{track: str(path) for track, path in asked.sources.items()},
        },
    )


def make_audio(orders: Sequence[Order]) -> None:
    """Turn all codes into stems and mix, 44.1 kHz, in `audio/`, one song after the other. Raises YueError.

    What fails for one song alone is noted on its bench.
    """
    songs: list[tuple[Workbench, Tokens]] = []
    for order in orders:
        bench = order.bench
        with bench.trial():
            tokens = read_tokens(bench.project.folder("stage2"), CODEBOOKS, bench.remedy("stage2"))
            songs.append((bench, tokens))
    if not songs:
        return
    bench = songs[0][0]
    model = bench.model("audio")
    began = time.perf_counter()
    decoders = decode.open_codec(model.path, bench.device)
    took = time.perf_counter() - began
    bench.detail(TITLES["audio"], f"{model.name} on {bench.device} in {took:.1f} s")
    with machine.threads_for(decoders.weight_bytes):
        for bench, tokens in songs:
            with bench.trial():
                _decode(bench, tokens, model, decoders)


def _decode(bench: Workbench, tokens: Tokens, model: ModelFolder, decoders: decode.Decoders) -> None:
    """Decode one song and write its sound."""
    settings, asked = bench.settings.decode, bench.request.song
    inputs = bench.project.hashes("stage2")
    assert inputs is not None and settings.limit is not None
    began = time.perf_counter()
    stems = decode.decode(decoders, tokens.vocal, tokens.instrumental, settings.limit, bench.emit, bench.label)
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
