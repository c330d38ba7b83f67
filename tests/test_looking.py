"""What `yue lyrics` and `yue presets` show, and what is told of lyrics before they are sung."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import GENRE, done, refused
from yue_cli.resources import resource

pytestmark = pytest.mark.usefixtures("place")


def test_sections_that_are_not_sung_are_not_warned_of(place):
    words = ["--lyrics", "-", "--genre", GENRE, "--preset", "toy", "--dry-run"]
    text = f"[verse]\nla\n[hook]\n{'lo ' * 60}\n".encode()
    assert "sung as chorus" in done("run", *words, stdin=text).err
    assert "sung as chorus" not in done("run", *words, "--segments", "1", stdin=text).err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_letters_that_a_terminal_lacks_end_no_command(place, flags):
    Path("lyrics.txt").write_text("[verse]\n海の歌\n", encoding="utf-8")
    command = [sys.executable, "-m", "yue_cli", "lyrics", "lyrics.txt", *flags]
    run = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"\\u6d77" in run.stdout
    assert not flags or json.loads(run.stdout)["sections"][0]["text"] == "海の歌"


def test_lyrics_are_shown_as_they_are_read(place):
    outcome = done("lyrics", "lyrics.txt")
    rows = outcome.out.splitlines()
    assert [row.split()[:2] for row in rows[:2]] == [["1", "verse"], ["2", "chorus"]]
    assert rows[2] == "2 sections · 4 words · about 2 s"
    answer = done("lyrics", "-", "--json", stdin=b"[hook]\nOne [x] two\n").answer
    [section] = answer["sections"]
    assert (section["tag"], section["written_tag"], section["line"]) == ("chorus", "hook", 1)


def test_lyrics_that_cannot_be_sung_are_refused_when_looked_at(place):
    (place / "bad.txt").write_text("no tag")
    assert refused("lyrics", "bad.txt").startswith("bad.txt has no section tag")


def test_presets_are_listed_and_shown(place):
    rows = done("presets").out.splitlines()
    assert [row.split()[0] for row in rows] == sorted(path.stem for path in resource("configs").glob("*.yaml"))
    shown = done("presets", "demo").out
    assert ["stage1.model", "tiny", "(this", "preset)"] in [row.split() for row in shown.splitlines()]
    assert done("presets", "original", "--json").answer["settings"]["seed"] == 42
    assert "demo" in done("presets", "--json").answer["presets"]
    assert refused("presets", "nonsense").startswith("there is no preset `nonsense`")
