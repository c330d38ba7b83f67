"""Measure the songs of a checkpoint on held-out prompts: `python -m training.language.measure --checkpoint FOLDER`.

The product sings, the measures listen; beside stand the corpus' own rendering of the same prompts, the codec's copy of
that, and as a floor the rendering of one prompt held against the next. OUT keeps songs, listeners and figures, and the
same command goes on.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.corpus.bank import load_bank
from training.corpus.phonemes import PHONEMES
from training.corpus.render import Renderer
from training.corpus.voice_bank import VoiceBank
from training.language import measure_report as report
from training.language.measure_hearing import Hearing, Listeners, hear, judge
from training.language.measure_learning import learn, load, save
from training.language.measure_prompts import Prompt, draw_prompts
from training.language.measure_singing import Choir, compare_again, sing
from training.language.measure_takes import Copier, Take, read_song, render
from yue_cli.errors import YueError

NAMES = tuple(PHONEMES)
MEASURES = "measures.json"
OTHERS = 20  # prompts whose words are held against a song's
Columns = dict[str, dict[str, dict[str, float]]]  # by kind of take and by measure
Tables = dict[str, dict[str, dict[str, dict[str, int]]]]  # by kind of take, kind of tag, asked for and heard
_listeners: Listeners | None = None  # of this process


def main(
    checkpoint: Annotated[Path, typer.Option(help="Folder of stage1/, stage2/ and codec/.")],
    corpus_bank: Annotated[Path, typer.Option(help="The corpus' bank.")],
    out: Annotated[Path, typer.Option(help="Folder for songs, listeners and figures.")],
    songs: Annotated[int, typer.Option(help="Held-out prompts.")] = 60,
    contrasts: Annotated[int, typer.Option(help="Of these, sung again with every other value of every tag.")] = 0,
    sections: Annotated[int, typer.Option(help="Sections of each song that are sung.")] = 2,
    lessons: Annotated[int, typer.Option(help="Training songs from which the measures learn.")] = 120,
    books: Annotated[int, typer.Option(help="1: codebook 0 alone, without stage 2. 8: all.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the first song; the others count on.")] = 1,
    guidance: Annotated[str, typer.Option(help="on or off.")] = "on",
    preset: Annotated[str | None, typer.Option(help="Of `yue run`; its models are replaced.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for `yue run`.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    sing_missing: Annotated[bool, typer.Option("--sing/--listen", help="Sing, or only listen to OUT/songs.")] = True,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference/--no-reference", help="Measure truth and copies, too; else keep what OUT has of them."
        ),
    ] = True,
    again: Annotated[int, typer.Option(help="Songs that are sung twice, to see that a seed gives one song.")] = 0,
    only_sing: Annotated[bool, typer.Option("--only-sing", help="Leave listening to a later command.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that listen.")] = os.cpu_count() or 1,
) -> None:
    """Write OUT/measures.json and OUT/measures.md."""
    out.mkdir(parents=True, exist_ok=True)
    prompts = draw_prompts(songs, contrasts, sections)
    if sing_missing:
        options = assignments or []
        options += ["stage1.guidance_first=1", "stage1.guidance_later=1"] if guidance == "off" else []
        _tell(f"singing {len(prompts)} songs")
        sing(prompts, out, Choir(checkpoint, preset, tuple(options), device, books), seed, again)
    if only_sing:
        return
    voice, band = load_bank(corpus_bank)
    renderer, copier = Renderer(voice, band), Copier(checkpoint / "codec", device, books)
    path = out / "listeners.pt"
    if not path.is_file():
        _tell(f"learning to listen from {lessons} songs")
        save(path, learn(lessons, sections, renderer, Copier(checkpoint / "codec", device), NAMES))
    takes: dict[str, list[tuple[Prompt, Take]]] = {}
    if reference:
        _tell("rendering and copying")
        takes["original"] = [(prompt, render(prompt, renderer, NAMES).take) for prompt in prompts[:songs]]
        takes["codec copy"] = [(prompt, copier.copy(take)) for prompt, take in takes["original"]]
    takes["generated"] = []
    for prompt in prompts:
        if not (out / "songs" / prompt.name).is_dir():
            continue
        try:
            takes["generated"].append((prompt, read_song(out / "songs" / prompt.name, copier, books)))
        except YueError as error:
            _tell(f"{prompt.name} is left out: {error}")
    _tell(f"{len(takes['generated'])} of {len(prompts)} songs are there")
    about = {"songs": songs, "contrasts": contrasts, "sections": sections, "books": books}
    columns, tables = ({}, {}) if reference else _earlier(out, about)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (path,)) as pool:
        for name, pairs in takes.items():
            if not pairs:
                continue
            began = time.monotonic()
            hearings = list(pool.map(_hear, [take for _, take in pairs]))
            _tell(f"{name}: listened to {len(pairs)} songs in {time.monotonic() - began:.0f} s")
            asked = [prompt for prompt, _ in pairs]
            columns[name] = report.combine(_judge_all(hearings, asked, voice, 0))
            tables[name] = report.confusion(hearings, asked)
            if name == "original":
                columns["floor"] = report.combine(_judge_all(hearings, asked, voice, 1))
    if "floor" in columns:
        columns["floor"] = columns.pop("floor")  # last
    if same := compare_again(out):
        columns["generated"]["sung twice, the same"] = report.share(same)
    asked_of = {"first": prompts[0].name, "last": prompts[-1].name, "guidance": guidance, "set": assignments}
    content = {"about": about | asked_of | {"seed": seed}, "measures": columns, "heard": tables}
    (out / MEASURES).write_text(json.dumps(content, indent=1))
    text = report.table(columns)
    for name, kinds in tables.items():
        text += f"\n{name}\n\n" + "\n".join(report.confusion_table(kind, rows) for kind, rows in kinds.items())
    (out / "measures.md").write_text(text)
    typer.echo(report.table(columns))


def _earlier(out: Path, about: dict[str, int]) -> tuple[Columns, Tables]:
    """Read what an earlier command found of rendering and copies for the same prompts."""
    if not (out / MEASURES).is_file():
        return {}, {}
    content = json.loads((out / MEASURES).read_text())
    if any(content["about"].get(name) != value for name, value in about.items()):
        return {}, {}
    return content["measures"], content["heard"]


def _judge_all(
    hearings: Sequence[Hearing], prompts: Sequence[Prompt], voice: VoiceBank, shift: int
) -> list[report.Shares]:
    """Judge every take by its prompt, or by that of `shift` takes later: the floor."""
    spelled = [[spell_lines(lines, voice, prompt.song.tags.singer) for lines in prompt.lines] for prompt in prompts]
    judged = []
    for number, hearing in enumerate(hearings):
        meant = (number + shift) % len(prompts)
        rest = [words for place, words in enumerate(spelled) if prompts[place].lines != prompts[meant].lines]
        key = hearings[meant].key
        judged.append(judge(hearing, prompts[meant], key, [spelled[meant], *rest[:OTHERS]]))
    return judged


def spell_lines(lines: Sequence[str], voice: VoiceBank, singer: str) -> list[int]:
    """The phonemes of a section, as numbers; two alike that follow each other cannot be told from one."""
    words = [word for line in lines for word in line.split()]
    phones = [NAMES.index(p.name) for word in words for syllable in voice.words[singer][word] for p in syllable]
    return [phone for place, phone in enumerate(phones) if place == 0 or phones[place - 1] != phone]


def _begin(path: Path) -> None:
    global _listeners
    torch.set_num_threads(1)
    _listeners = load(path)


def _hear(take: Take) -> Hearing:
    assert _listeners, "_begin comes first"
    return hear(take, _listeners)


def _tell(text: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


if __name__ == "__main__":
    typer.run(main)
