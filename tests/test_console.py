"""What people see: where it is printed, how often, and in which words."""

import json
import sys

import pytest

from yue_cli.commands import console as consoles
from yue_cli.commands.console import (
    PLAIN_INTERVAL_S,
    Console,
    answer,
    answer_json,
    clock,
    describe_finished,
    describe_progress,
    duration,
    gigabytes,
    report,
    warn,
)
from yue_cli.events import Finished, Note, Progress, Warned, ignore


class Clock:
    """A time that moves when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock_hand(monkeypatch) -> Clock:
    hand = Clock()
    monkeypatch.setattr(consoles, "time", hand)
    return hand


def progress(done: int, label: str = "1/2 verse", total: int = 100) -> Progress:
    return Progress("stage 1", label, done, total, "tokens", done / 100)


# Words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.84, "9.8 s"),
        (9.99, "10.0 s"),
        (10, "10 s"),
        (47.4, "47 s"),
        (59.4, "59 s"),
        (59.5, "1 min 0 s"),
        (111, "1 min 51 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_told_as_people_say_them(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (7.9, "0:08"), (59.6, "1:00"), (124, "2:04"), (3723, "62:03")]
)
def test_music_is_told_in_minutes_and_seconds(seconds, words):
    assert clock(seconds) == words


def test_sizes_are_told_in_gigabytes():
    assert gigabytes(17_643_000_000) == "17.6 GB"


def test_progress_tells_speed_and_the_rest_of_the_time():
    event = Progress("stage 1", "3/5 chorus", 1120, 3000, "tokens", 11.2)
    assert describe_progress(event, 940, 10.0) == "3/5 chorus · 11.2 s of music · 94 tok/s · about 20 s left"


def test_progress_without_label_music_or_a_past_tells_nothing_it_does_not_know():
    assert describe_progress(Progress("decode", "", 0, 100, "frames"), 0, 3.0) == ""
    assert describe_progress(progress(1), 1, 0.1) == "1/2 verse · 0.0 s of music"


def test_an_end_tells_how_much_and_how_fast():
    event = Finished("stage 1", "verse", 3810, "tokens", 40.0, 38.1)
    assert describe_finished(event) == "verse · 38.1 s of music · 3,810 tokens in 40 s · 95 tok/s"
    assert describe_finished(Finished("decode", "", 0, "frames", 0.0)) == "0 frames in 0.0 s"


# Where it goes


def test_answers_go_to_stdout_and_everything_else_to_stderr(capsys):
    answer("song/audio/mix.wav")
    warn("loud")
    console = Console()
    console.emit(Note("stage 2", "is current: kept"))
    console.emit(Warned("the verse is long"))
    out, err = capsys.readouterr()
    assert out == "song/audio/mix.wav\n"
    assert err == "warning: loud\nstage 2  is current: kept\nwarning  the verse is long\n"


def test_an_answer_to_programs_is_one_line_of_json(capsys):
    answer_json({"song": "Ä [b]", "seconds": 1.5, "none": None})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"song": "Ä [b]", "seconds": 1.5, "none": None}
    assert (out.count("\n"), err, out.isascii()) == (1, "", True)


@pytest.mark.parametrize(
    ("exit_code", "message", "line"),
    [(1, "no room", "error: no room\n"), (2, "no such option", "error: no such option\n"), (130, "", "interrupted\n")],
)
def test_an_early_end_is_one_line_on_stderr(capsys, exit_code, message, line):
    assert report("storage", message, exit_code, as_json=False) == exit_code
    assert capsys.readouterr() == ("", line)


def test_an_early_end_is_one_object_for_programs(capsys):
    assert report("storage", "no room", 1, as_json=True) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"kind": "storage", "message": "no room", "exit_code": 1}}
    assert err == ""


def test_a_quiet_console_says_nothing_but_remembers_warnings(capsys):
    console = Console(-1)
    with console.watching():
        for event in (Note("lyrics", "x"), Warned("loud"), progress(1), Finished("stage 1", "", 1, "tokens", 1.0)):
            console.emit(event)
        console.detail("setting", "seed")
    assert capsys.readouterr() == ("", "")
    assert console.warnings == ["loud"]


@pytest.mark.parametrize(("verbosity", "line"), [(0, ""), (1, "setting  seed · command line\n")])
def test_details_are_for_the_curious(capsys, verbosity, line):
    Console(verbosity).detail("setting", "seed · command line")
    assert capsys.readouterr() == ("", line)


def test_nobody_need_listen(capsys):
    ignore(Note("lyrics", "x"))
    assert capsys.readouterr() == ("", "")


# How often


def test_without_a_terminal_progress_is_a_line_every_few_seconds(capsys, clock_hand):
    console = Console()
    with console.watching():
        for done in range(101):
            console.emit(progress(done))
            clock_hand.now += 0.125
        console.emit(Finished("stage 1", "1/2 verse", 100, "tokens", 12.5, 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert PLAIN_INTERVAL_S == 5
    assert lines == [
        "stage 1  40 % · 1/2 verse · 0.4 s of music · 8 tok/s · about 7.5 s left",
        "stage 1  80 % · 1/2 verse · 0.8 s of music · 8 tok/s · about 2.5 s left",
        "stage 1  1/2 verse · 1.0 s of music · 100 tokens in 12 s · 8 tok/s",
    ]


def test_work_that_goes_on_where_it_stood_tells_its_own_speed(capsys, clock_hand):
    console = Console()
    console.emit(progress(90, total=200))
    clock_hand.now += 10
    console.emit(progress(100, total=200))
    assert capsys.readouterr().err == "stage 1  50 % · 1/2 verse · 1.0 s of music · 1 tok/s · about 1 min 40 s left\n"


def test_each_task_has_a_clock_of_its_own(capsys, clock_hand):
    console = Console()
    console.emit(progress(0))
    clock_hand.now += 100
    console.emit(progress(0, label="2/2 chorus"))
    clock_hand.now += 5
    console.emit(progress(50, label="2/2 chorus"))
    assert capsys.readouterr().err == "stage 1  50 % · 2/2 chorus · 0.5 s of music · 10 tok/s · about 5.0 s left\n"


def test_a_task_of_nothing_is_no_division_by_zero(capsys, clock_hand):
    console = Console()
    console.emit(progress(0, total=0))
    clock_hand.now += 6
    console.emit(progress(0, total=0))
    assert capsys.readouterr().err == "stage 1  0 % · 1/2 verse · 0.0 s of music\n"


def test_on_a_terminal_a_moving_line_is_cleared_and_finished_lines_stay(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    console = Console()
    with console.watching():
        for label in ("1/2 verse", "2/2 [/chorus]"):
            for done in range(3):
                console.emit(progress(done, label=label))
            console.emit(Finished("stage 1", label, 2, "tokens", 1.0, 0.02))
    out, err = capsys.readouterr()
    assert out == ""
    assert "stage 1  1/2 verse · 0.0 s of music · 2 tokens in 1.0 s · 2 tok/s" in err
    assert "stage 1  2/2 [/chorus] · 0.0 s of music · 2 tokens in 1.0 s · 2 tok/s" in err, "brackets are no markup"
