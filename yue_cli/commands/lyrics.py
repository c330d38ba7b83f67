"""`yue lyrics`: how lyrics are read, before anything is sung."""

from typing import Annotated

import typer

from yue_cli.commands import console, options
from yue_cli.commands.texts import read_lyrics
from yue_cli.lyrics import parse
from yue_cli.settings import Layer, combine, parse_assignments


def lyrics(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file with lyrics; - reads standard input.")],
    assignments: options.Assignments = None,
    json: options.Json = False,
) -> None:
    """Show the sections, tags, words and seconds of lyrics, and what may not be sung as expected."""
    settings, _ = combine([Layer("command line", parse_assignments(assignments or []))])
    text, name = read_lyrics(file)
    parsed = parse(text, name, settings.rules, settings.stage1.max_new_tokens / 100)
    if json:
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
        console.answer_json({"sections": sections, "words": parsed.words, "warnings": warnings})
        return
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
