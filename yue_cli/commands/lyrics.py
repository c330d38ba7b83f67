"""`yue lyrics`: how lyrics and genre are read, before anything is sung."""

from typing import Annotated, Any

import typer

from yue_cli.commands import console, options
from yue_cli.commands.texts import read_genre, read_lyrics
from yue_cli.genre import find_kinds, missing_kinds
from yue_cli.lyrics import Lyrics, parse
from yue_cli.settings import Layer, combine, parse_assignments


def lyrics(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", show_default=False, help="A file with lyrics; - reads standard input."),
    ] = None,
    genre: options.Genre = None,
    assignments: options.Assignments = None,
    json: options.Json = False,
) -> None:
    """Show the sections, tags, words and seconds of lyrics, and what may not be sung as expected."""
    settings, _ = combine([Layer("command line", parse_assignments(assignments or []))])
    if file is None and genre is None:
        raise typer.BadParameter("there is nothing to look at: name a file with lyrics, or give --genre.")
    described = None if genre is None else read_genre(genre)
    parsed = None
    if file is not None:
        text, name = read_lyrics(file)
        parsed = parse(text, name, settings.rules, settings.stage1.max_new_tokens / 100)
    if json:
        console.answer_json((_lyrics_facts(parsed) if parsed else {}) | (_genre_facts(described) if described else {}))
        return
    if parsed is not None:
        _show_lyrics(parsed)
    if described is not None:
        _show_genre(described)


def _show_lyrics(parsed: Lyrics) -> None:
    for number, section in enumerate(parsed.sections, start=1):
        start = section.text.split("\n")[0] if section.text else "(instrumental)"
        console.answer(
            f"{number:>3}  {section.tag:<8}  line {section.line:<4} {section.words:>4} words  "
            f"about {section.seconds:>3.0f} s   {start}"
        )
    parts, words = console.counted(len(parsed.sections), "section"), console.counted(parsed.words, "word")
    console.answer(f"{parts} · {words} · about {parsed.seconds:.0f} s")
    for warning in parsed.warnings:
        console.warn(warning.text)


def _show_genre(genre: str) -> None:
    for kind, words in find_kinds(genre).items():
        console.answer(f"{kind:<11} {', '.join(words) or '–'}")
    missing = missing_kinds(genre)
    if missing:
        *others, last = missing
        named = f"{', '.join(others)} or {last}" if others else last
        console.hint(
            f"no word for {named} was recognised in the genre; YuE was published with the advice to name all five kinds"
        )


def _lyrics_facts(parsed: Lyrics) -> dict[str, Any]:
    sections = [
        {
            "tag": section.tag,
            "written_tag": section.written_tag,
            "line": section.line,
            "words": section.words,
            "seconds": round(section.seconds, 1),
            "text": section.text,
        }
        for section in parsed.sections
    ]
    warnings = [{"line": warning.line, "text": warning.text} for warning in parsed.warnings]
    return {"sections": sections, "words": parsed.words, "warnings": warnings}


def _genre_facts(genre: str) -> dict[str, Any]:
    return {"genre": {"text": genre, "kinds": find_kinds(genre), "missing": missing_kinds(genre)}}
