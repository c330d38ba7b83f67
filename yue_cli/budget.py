"""What each stage needs of a machine, known before anything loads: memory, rows, disk, download.

Weights and cache are exact, from the sizes in a model's config.json. Work, what computing takes beside them, is an
estimate. A model that is not here is weighed as the published one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from yue_cli import copies, hub, inventory, models, presets, prompt, seats
from yue_cli.artifacts import TRACKS, read_array
from yue_cli.engines import AUTO, ModelFacts
from yue_cli.errors import ArtifactError, EngineError, LyricsError, OutOfMemory
from yue_cli.models import EIGHT_BIT, FOUR_BIT
from yue_cli.resources import expanded
from yue_cli.settings import CACHES, WEIGHTS, Layer, Stage1Settings, combine, flatten
from yue_cli.stages import stage1, stage2
from yue_cli.stages.stage1 import TOKENS_A_SECOND
from yue_cli.tokenizer import TOKENIZER_FILE, Tokenizer
from yue_cli.vocab import FRAME_RATE, WINDOW_FRAMES, Vocabulary
from yue_cli.weights import ModelFolder
from yue_cli.workbench import TITLES, Workbench

if TYPE_CHECKING:
    import torch

_GPU_LIBRARY_BYTES = 350_000_000  # what CUDA's libraries and kernels take, and PyTorch's allocator leaves unused
_DECODE_WEIGHTS = 277_000_000  # the published codec's decoder and both vocoders
_DECODE_WORK, _DECODE_WORK_A_SECOND = 110_000_000, 530_000  # measured on a CPU; the README has the table
_GPU_DECODE_WORK = 420_000_000  # measured, whatever the length
_ENCODE_WEIGHTS, _ENCODE_WORK = 496_000_000, 500_000_000  # the published encoders, and a guess
_SOUND_BYTES_A_SECOND = 3 * 2 * 44_100  # the mix and both stems
_CONTEXT_STEP, _SHORTEST_CONTEXT = 256, 4096  # of a context that is proposed: below, too little of a song is seen
_LAYER_BITS = {EIGHT_BIT: 8.02, FOUR_BIT: 4.25}  # of a quantized copy, scales included; its head has 8 bits
_QUANTIZED_WORK = 18 * 2**23  # that a product of many rows with such a copy takes
_PARAMETERS = {"stage1": 6_224_613_376, "stage2": 1_962_543_104}


@dataclass(frozen=True)
class Need:
    """What one stage needs; sizes in bytes."""

    stage: str
    model: str
    is_here: bool  # else the sizes are those of the published model
    weights: int
    cache: int
    work: int
    rows: int | None = None
    length: int | None = None  # tokens of a row
    songs: int | None = None  # stage 1: that are sung together

    @property
    def certain(self) -> int:
        """What it needs at the very least."""
        return self.weights + self.cache

    @property
    def total(self) -> int:
        return self.certain + self.work


@dataclass(frozen=True)
class Disk:
    """What a song and its models need of the disk; sizes in bytes. `download` is None where a size is not known."""

    song: int
    song_free: int
    download: int | None
    download_free: int


def needs(bench: Workbench, stages: Sequence[str], others: Sequence[Workbench] = ()) -> list[Need]:
    """Weigh the stages that are to be made for a song, and for `others` in its company.

    Raises LyricsError without words, CheckpointError for a broken model.
    """
    found, benches = [], [bench, *others]
    for stage in stages:
        if stage == "stage1":
            found.append(_weigh_stage1(benches))
        elif stage == "stage2":
            found.append(_weigh_stage2(benches, "stage1" in stages))
        else:
            longest = max(count_frames(each, "stage1" in stages) for each in benches)
            found.append(_weigh_codec(bench, stage, longest))
    return found


def choose_forms(bench: Workbench, stages: Sequence[str]) -> None:
    """Where the settings leave it, pick the form of a language model's weights by the memory that is free.

    The best form that is here and fits; else the published one. It never makes a stage stale.
    """
    execution = bench.settings.execution
    # A form is named by the engine that reads it.
    engine = "" if execution.engine == AUTO else f"{execution.engine}-"
    forms = [form for form in WEIGHTS if form == "published" or form.startswith(engine)]
    for stage, setting in (("stage1", execution.stage1_weights), ("stage2", execution.stage2_weights)):
        if stage not in stages or setting != "auto":
            continue
        for form in forms:
            bench.forms[stage] = form
            need = next(need for need in needs(bench, stages) if need.stage == stage)
            if need.is_here and need.total <= bench.free_bytes():
                break
        else:
            bench.forms[stage] = "published"


def how_to_make(name: str) -> str | None:
    """Say how a quantized copy is made; None for all that is fetched."""
    found = copies.split_name(name)
    return None if found is None else f"`yue quantize {found[0]} --format {found[1]}` makes it"


def check(bench: Workbench, found: Sequence[Need]) -> list[str]:
    """Refuse what cannot fit into memory; say what is tight. Raises EngineError."""
    free, warnings = bench.free_bytes(), []
    for need in found:
        if need.stage in ("reference", "audio"):
            continue  # far smaller than the stages between them
        base, _ = copies.split_name(need.model) or (need.model, None)
        is_known = need.is_here or isinstance(models.find_source(base), models.Model)
        if need.certain > free and is_known:
            raise EngineError(
                f"{TITLES[need.stage]} needs {need.certain / 1e9:.1f} GB of memory ({describe(need)}); "
                f"{bench.device_name} has {free / 1e9:.1f} GB free. {_remedy(bench, need, free)} Nothing was loaded."
            )
        if need.total > free:
            warnings.append(
                f"{TITLES[need.stage]} may need {need.total / 1e9:.1f} GB of memory at its peak; {bench.device_name} "
                f"has {free / 1e9:.1f} GB free"
            )
    return warnings


@contextmanager
def explained(bench: Workbench, stage: str) -> Iterator[None]:
    """Say what would fit, and what is kept, where memory runs out after all. Raises EngineError."""
    try:
        yield
    except OutOfMemory as error:
        (need,) = needs(bench, [stage])
        kept = bench.kept[0].upper() + bench.kept[1:]
        raise EngineError(f"{error} {_remedy(bench, need, bench.free_bytes())} {kept}") from error


def describe(need: Need) -> str:
    """Say what a stage's memory goes to."""
    words = f"{need.weights / 1e9:.1f} GB of weights"
    if need.rows is not None and need.length is not None:
        rows = "1 row" if need.rows == 1 else f"{need.rows} rows"
        if need.songs is not None and need.songs > 1:
            rows = f"{need.songs} songs at once, {rows}"
        words += f", {need.cache / 1e9:.1f} GB of cache for {rows} of {need.length:,} tokens"
    return words


def weigh_disk(bench: Workbench, found: Sequence[Need]) -> Disk:
    """Weigh what will be written."""
    names = {need.model for need in found if not need.is_here and copies.split_name(need.model) is None}
    absent = [_published_bytes(name) for name in names]
    known = [size for size in absent if size is not None]
    seconds = count_frames(bench, any(need.stage == "stage1" for need in found)) / FRAME_RATE
    return Disk(
        song=round(seconds * _SOUND_BYTES_A_SECOND),
        song_free=hub.free_bytes(bench.project.root),
        download=sum(known) if len(known) == len(absent) else None,
        download_free=hub.free_bytes(bench.library.hub.cache) if absent else 0,
    )


def as_json(need: Need) -> dict[str, Any]:
    """List a need for programs."""
    facts = asdict(need)
    del facts["stage"]
    return facts | {"total": need.total}


def choose_songs(benches: Sequence[Workbench], facts: ModelFacts, length: int) -> int:
    """Choose how many songs are sung together: all of them, or as many as free memory holds."""
    bench = benches[0]
    # A run that was stopped may have dealt seats among more.
    dealt = [seat.rows for each in benches for seat in each.project.seats("stage1") or []]
    wanted = max(len(benches), *dealt, 1)
    songs = bench.settings.execution.songs
    if songs is not None:
        return seats.ladder_step(min(songs, wanted))
    row = facts.cache_bytes_per_token * length
    free = bench.free_bytes() - facts.parameter_bytes - work_bytes(facts, length, bench.device)
    return seats.rows_that_fit(free, bytes_per_row=stage1.needed_rows(bench.settings.stage1) * row, wanted=wanted)


def choose_rows(bench: Workbench, windows: int, facts: ModelFacts, length: int) -> int:
    """Choose how many windows of stage 2 are decoded together: all of them, or as many as free memory holds."""
    rows = bench.settings.execution.rows
    if rows is not None:
        return seats.ladder_step(min(rows, windows))
    free = bench.free_bytes() - facts.parameter_bytes - work_bytes(facts, length, bench.device)
    return seats.rows_that_fit(free, bytes_per_row=facts.cache_bytes_per_token * length, wanted=windows)


def work_bytes(facts: ModelFacts, length: int, device: "torch.device") -> int:
    """Estimate what computing takes beside weights and cache, rows of `length` tokens filled."""
    libraries = _GPU_LIBRARY_BYTES if device.type == "cuda" else 0
    return facts.work_bytes + facts.work_bytes_per_token * length + libraries


def published_facts(part: str, item_bytes: int, format: str | None = None, cache: str = AUTO) -> ModelFacts:
    """Give the sizes of a published model, or of its quantized copy: layers and head, not the embedding.

    Source: its config.json, as the ports of YuE quote it.
    """
    first = part == "stage1"
    vocabulary_size = 83_968 if first else 83_840
    weights = _PARAMETERS[part] * item_bytes
    if format is not None:
        table = vocabulary_size * (4096 if first else 2048)
        layers = (_PARAMETERS[part] - 2 * table) * _LAYER_BITS[format] / 8
        weights = round(layers) + table + table * item_bytes
    layer_values = 2 * (4 if first else 16) * 128  # of keys and values, one token's
    layer_bytes, widened = layer_values * item_bytes, 0
    if cache in CACHES:  # with a scale of 4 bytes for each 128 of them
        layer_bytes = layer_values * int(cache.removeprefix("int")) // 8 + layer_values // 128 * 4
        widened = layer_values * (4 + item_bytes)
    return ModelFacts(
        vocabulary_size=vocabulary_size,
        max_length=16_384 if first else 8_192,
        parameter_bytes=weights,
        cache_bytes_per_token=32 * layer_bytes,
        work_bytes=512 * (12 * (4096 if first else 2048) + 4 * (11_008 if first else 5_504) * item_bytes)
        + (0 if format is None else _QUANTIZED_WORK),
        work_bytes_per_token=512 * (8 if first else 1) * (1 + item_bytes) + widened,
    )


def _weigh_stage1(benches: Sequence[Workbench]) -> Need:
    bench = benches[0]
    name, model = _find(bench, "stage1")
    facts = _facts(bench, "stage1", model)
    settings = replace(bench.settings.stage1, context=min(bench.settings.stage1.context, facts.max_length))
    length = max(_prompt_tokens(each, model, settings) for each in benches)
    songs = choose_songs(benches, facts, length)
    rows = stage1.needed_rows(settings) * songs
    return replace(_need(bench, "stage1", name, model, facts, rows, length), songs=songs)


def _prompt_tokens(bench: Workbench, model: ModelFolder | None, settings: Stage1Settings) -> int:
    """Count the tokens of a song's longest row."""
    lyrics, wanted, genre = bench.request.lyrics, bench.request.segments, bench.request.song.genre
    if lyrics is None or wanted is None or genre is None:
        raise LyricsError(f"{bench.project.root} has no lyrics.txt or no genre.txt: give --lyrics and --genre.")
    if model is not None and (model.path / TOKENIZER_FILE).is_file():
        vocabulary = Vocabulary.read(model.path)
        tokenizer = Tokenizer(model.path / TOKENIZER_FILE, vocabulary)
        prompts = prompt.build(tokenizer, vocabulary, genre, lyrics.sections, bench.settings.rules)
        length = stage1.needed_length(prompts, settings, wanted)
    else:
        # About three bytes of text make one token; the lyrics are read as a whole and once more part by part.
        text = 2 * sum(len(section.prompt_text.encode()) for section in lyrics.sections) + len(genre.encode())
        length = text // 3 + wanted * (settings.max_new_tokens + 1)
    return min(settings.context, length + _reference_tokens(bench))


def _reference_tokens(bench: Workbench) -> int:
    """Count the tokens of the audio prompt at the most: both tracks take turns."""
    asked = bench.request.song.reference
    if asked is None:
        return 0
    tracks = 1 if len(asked.sources) == 1 else 2
    return tracks * round((asked.end_s - asked.start) * FRAME_RATE)


def _weigh_stage2(benches: Sequence[Workbench], after_stage1: bool) -> Need:
    bench = benches[0]
    tail = bench.settings.stage2.tail
    assert tail is not None, "settings must be resolved"
    name, model = _find(bench, "stage2")
    facts, frames = _facts(bench, "stage2", model), [count_frames(each, after_stage1) for each in benches]
    length = stage2.cache_length(min(max(frames), WINDOW_FRAMES))
    windows = sum(len(stage2.cut(count, tail)) for count in frames)
    return _need(bench, "stage2", name, model, facts, choose_rows(bench, windows, facts, length), length)


def _weigh_codec(bench: Workbench, stage: str, frames: int) -> Need:
    """Weigh the published codec: others are not larger. It is only looked for, not converted."""
    asked, part = bench.asked(stage)
    name = asked or models.DEFAULTS[part]
    known = models.find_source(name)
    is_here = name in bench.library.makers or expanded(name).exists()
    if not is_here and isinstance(known, models.Model):
        is_here = inventory.state(bench.library, known).word == "here"
    if stage == "reference":
        return Need(stage, name, is_here, _ENCODE_WEIGHTS, 0, _ENCODE_WORK)
    on_cpu = _DECODE_WORK + round(frames / FRAME_RATE * _DECODE_WORK_A_SECOND)
    work = on_cpu if bench.device.type == "cpu" else _GPU_DECODE_WORK
    return Need(stage, name, is_here, _DECODE_WEIGHTS, 0, work)


def _need(
    bench: Workbench, stage: str, name: str, model: ModelFolder | None, facts: ModelFacts, rows: int, length: int
) -> Need:
    cache = facts.cache_bytes_per_token * rows * length
    work = work_bytes(facts, length, bench.device)
    return Need(stage, name, model is not None, facts.parameter_bytes, cache, work, rows, length)


def _find(bench: Workbench, stage: str) -> tuple[str, ModelFolder | None]:
    """Name a language model and find its folder. Nothing is fetched."""
    name, part = bench.asked(stage)
    return name or models.DEFAULTS[part], bench.library.find(name, part)


def _facts(bench: Workbench, part: str, model: ModelFolder | None) -> ModelFacts:
    if model is not None:
        return bench.describe(part, model)
    name, _ = bench.asked(part)
    _, format = (name and copies.split_name(name)) or (None, None)
    return published_facts(part, bench.dtype.itemsize, format, bench.settings.execution.cache(part))


def count_frames(bench: Workbench, before_stage1: bool) -> int:
    """Count the frames of a song: those of its tokens, or about what its lyrics will make."""
    if not before_stage1:
        try:
            track = read_array(bench.project.folder("stage1") / f"{TRACKS[0]}.npy", "")
            return max(1, int(track.shape[-1]))
        except ArtifactError:
            pass  # the stage itself will say it better
    if bench.request.lyrics is None:
        return WINDOW_FRAMES
    return max(1, round(FRAME_RATE * sum(section_seconds(bench))))


def section_seconds(bench: Workbench) -> list[float]:
    """Tell about how long each section that is to be sung will be; without words, as long as may be."""
    lyrics, settings = bench.request.lyrics, bench.settings.stage1
    assert settings.min_new_tokens is not None, "settings must be resolved"
    limit_s, least_s = settings.max_new_tokens / TOKENS_A_SECOND, settings.min_new_tokens / TOKENS_A_SECOND
    sung = lyrics.sections[: bench.request.segments] if lyrics else ()
    return [min(limit_s, max(least_s, section.seconds or limit_s)) for section in sung]


def _published_bytes(name: str) -> int | None:
    source = models.find_source(name)
    return source.bytes if isinstance(source, models.Model) else None


def _remedy(bench: Workbench, need: Need, free: int) -> str:
    """Say what would fit: the smallest change to this request, and the presets."""
    words = []
    if need.stage == "stage1" and need.rows and need.length:
        room = (free - need.weights) * need.length // need.cache // _CONTEXT_STEP * _CONTEXT_STEP
        if room >= _SHORTEST_CONTEXT:
            words.append(f"--set stage1.context={room} fits, or sing fewer --segments.")
    if not words and bench.dtype.itemsize == 4 and need.certain // 2 <= free:
        words.append("--set execution.dtype=bfloat16 halves that.")
    if not words and need.stage == "stage2" and bench.settings.execution.rows is not None and need.rows != 1:
        words.append("Use fewer --set execution.rows.")
    if fitting := fitting_presets(bench, need.stage):
        words.append(f"Presets that fit: {', '.join(fitting)}.")
    return " ".join(words) or "No preset fits here; close what else uses memory, or take a smaller model."


def fitting_presets(bench: Workbench, stage: str) -> list[str]:
    """Name the presets for cards and for the CPU with which a stage fits, the largest first."""
    pretended, fitting = bench.settings.execution.memory_limit, []
    for name in (*presets.CARDS, "cpu"):
        preset = presets.find(name)
        settings, _ = combine([Layer("now", flatten(bench.settings)), preset.layer()])
        other = bench.with_settings(settings)
        # What is pretended now is of the device that is in use now, and holds under every preset.
        own = combine([preset.layer()])[0].execution.memory_limit
        limits = [limit for limit in (own, pretended) if limit is not None]
        limit = min(limits, default=None) if other.device == bench.device else own
        other = bench.with_settings(replace(settings, execution=replace(settings.execution, memory_limit=limit)))
        if needs(other, [stage])[0].total <= other.free_bytes():
            fitting.append(name)
    return fitting
