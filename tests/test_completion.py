"""What a shell is told when Tab is pressed, asked as a shell asks: through the variables that typer reads."""

import subprocess
import sys

import pytest

from yue_cli import models, presets
from yue_cli.main import execute
from yue_cli.settings import KEYS, WEIGHTS

STAGE1 = ["en-cot", "en-icl", "zh-cot", "zh-icl", "jp-kr-cot", "jp-kr-icl"]


@pytest.fixture
def offered(monkeypatch, capsys):
    """Press Tab after these words; the last one may be half typed."""

    def press(*words: str) -> list[str]:
        monkeypatch.setenv("_YUE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(["yue", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as ended:
            execute([])
        assert ended.value.code == 0
        return capsys.readouterr().out.split()

    return press


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stage1", "song", "--model", ""], STAGE1),
        (["stage1", "song", "--model", "zh"], ["zh-cot", "zh-icl"]),
        (["stage2", "song", "--model", ""], ["s2"]),
        (["decode", "song", "--model", ""], ["codec"]),
        (["encode", "song", "--model", ""], ["codec"]),
        (["models", "pull", ""], list(models.CATALOGUE)),
        (["models", "rm", "s2@"], ["s2@native-8bit", "s2@native-4bit"]),
        (["stage1", "song", "--model", "en-icl@native-4"], ["en-icl@native-4bit"]),
        (["models", "pull", "codec@"], []),
        (["models", "rm", "jp"], ["jp-kr-cot", "jp-kr-icl"]),
        (["models", "verify", "s"], ["s2"]),
        (["models", "path", "c"], ["codec"]),
        (["run", "--preset", ""], presets.names()),
        (["run", "--preset", "1"], ["12gb", "16gb"]),
        (["presets", "ex"], ["exl2-port"]),
        (["run", "--set", ""], [f"{key}=" for key in KEYS]),
        (["run", "--set", "decode."], ["decode.codec=", "decode.limit=", "decode.format="]),
        (["plan", "--set", "execution.stage1_weights="], [f"execution.stage1_weights={v}" for v in ("auto", *WEIGHTS)]),
        (["run", "--set", "stage2.restrict_picks="], [f"stage2.restrict_picks={v}" for v in ("null", "true", "false")]),
        (["run", "--set", "stage1.temperature="], []),
        (["run", "--set", "no.such.key="], []),
        (["run", "--language", ""], ["en", "zh", "jp-kr"]),
        (["run", "--format", ""], ["wav", "flac", "ogg", "mp3"]),
        (["run", "--engine", "n"], ["native"]),
        (["run", "--lyrics", ""], []),
    ],
)
def test_tab_offers_what_may_follow(offered, words, expected):
    assert offered(*words) == expected


def test_devices_are_those_that_every_machine_may_have_and_its_gpus(offered, monkeypatch):
    assert offered("run", "--device", "")[:3] == ["auto", "cpu", "cuda"]
    monkeypatch.setattr("pathlib.Path.glob", lambda path, pattern: ["nvidia0", "nvidia1"])
    assert offered("run", "--device", "cuda") == ["cuda", "cuda:0", "cuda:1"]


def test_what_is_offered_comes_with_a_word_about_it(monkeypatch, capsys):
    monkeypatch.setenv("_YUE_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "yue run --preset ")
    with pytest.raises(SystemExit):
        execute([])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == presets.names(), "one line each, however long the description"
    assert all(presets.find(name).description.startswith(told.removesuffix(" …")) for name, told in rows)


def test_tab_waits_for_neither_torch_nor_the_hub(monkeypatch):
    for name, value in {"_YUE_COMPLETE": "complete_bash", "COMP_WORDS": "yue run --preset ", "COMP_CWORD": "3"}.items():
        monkeypatch.setenv(name, value)
    code = (
        "import sys\nfrom yue_cli.main import execute\n"
        "try:\n    execute([])\nfinally:\n    print({'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.split()[-1] == "set()"
    assert "24gb" in ended.stdout.split()
