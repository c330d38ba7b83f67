"""The end of a run: what was made, how long it took, and the answer on stdout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yue_cli.commands.console import Console, answer, answer_json, clock, counted, duration, fail, gigabytes
from yue_cli.errors import YueError

if TYPE_CHECKING:
    from yue_cli.pipeline import Result

Failure = tuple[str, str, YueError]  # what the song is called, its folder, why it failed


def tell_one(console: Console, result: "Result", as_json: bool) -> None:
    """Tell of one song."""
    for remark in result.remarks:
        console.line("note", remark)
    took = _took([result], result.music_s) if result.made else " · nothing to do"
    console.line("done", f"{clock(result.music_s)} of music{took} · seed {result.seed}")
    if as_json:
        answer_json(result.as_json(console.warnings))
    else:
        answer(str(result.answer))


def tell_several(
    console: Console,
    results: Sequence["Result"],
    failures: Sequence[Failure],
    labels: Mapping[Path, str],
    as_json: bool,
) -> None:
    """Tell of several songs: a line for each, one for all, and a path or a reason for each."""
    for result in results:
        label = labels[result.root]
        for remark in result.remarks:
            console.line("note", f"{label} · {remark}")
        nothing = "" if result.made else " · nothing to do"
        console.line("done", f"{label} · {clock(result.music_s)} of music · seed {result.seed}{nothing}")
    music_s = sum(result.music_s for result in results)
    made = [result for result in results if result.made]
    console.line("done", f"{counted(len(results), 'song')} · {clock(music_s)} of music{_took(made, music_s)}")
    if as_json:
        answer_json(_as_json(console, results, failures))
        return
    for result in results:
        answer(str(result.answer))
    reasons: dict[str, list[str]] = {}
    for label, _, error in failures:
        reasons.setdefault(str(error), []).append(label)
    for reason, names in reasons.items():
        fail(f"{', '.join(names)}: {reason}")


def _took(made: Sequence["Result"], music_s: float) -> str:
    if not made:
        return ""
    longest = max(made, key=lambda result: result.seconds)
    times = f" ({longest.seconds / music_s:.1f} × its length)" if music_s else ""
    return f" in {duration(longest.seconds)}{times} · peak memory {_peak(longest.peak_memory)}"


def _as_json(console: Console, results: Sequence["Result"], failures: Sequence[Failure]) -> dict[str, Any]:
    songs: list[dict[str, Any]] = []
    for result in results:
        facts = result.as_json([])
        del facts["seconds_taken"], facts["peak_memory_bytes"]  # those of all together
        songs.append(facts)
    for _, root, error in failures:
        songs.append({"song": root, "error": {"kind": error.kind, "message": str(error)}})
    answer: dict[str, Any] = {
        "songs": songs,
        "seconds_of_music": round(sum(result.music_s for result in results), 3),
        "seconds_taken": round(max((result.seconds for result in results), default=0.0), 3),
        "peak_memory_bytes": max((max(result.peak_memory) for result in results), default=0),
        "warnings": console.warnings,
    }
    if failures:
        message = f"{len(failures)} of {counted(len(songs), 'song')} failed"
        answer["error"] = {"kind": "songs", "message": message, "exit_code": 1}
    return answer


def _peak(peak: tuple[int, int]) -> str:
    main, gpu = peak
    return f"{gigabytes(gpu)} GPU, {gigabytes(main)} RAM" if gpu else gigabytes(main)
