"""What README and docs say of the command line is what the command line is."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from yue_cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def leaves(group: typer.core.TyperGroup, prefix: str = "") -> dict[str, object]:
    """List the commands by the words that call them; those of a group by two."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= leaves(command, f"{prefix}{name} ") if inner else {f"{prefix}{name}": command}
    return found


COMMANDS = leaves(typer.main.get_command(app))
COMMAND_LINE = re.compile(r"(?:^|`|\()(?:\.venv/bin/)?(yue [a-z][^`\n#)]*)", re.MULTILINE)


def command_table() -> str:
    rows = [f"| `yue {name}` | {command.help.splitlines()[0]} |" for name, command in COMMANDS.items()]
    return "\n".join(rows)


def command_lines() -> list[str]:
    texts = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
    return sorted({line.strip() for text in texts for line in COMMAND_LINE.findall(text)})


def test_the_list_of_commands_is_the_program_s_own():
    listed = README.split("<!-- commands -->\n")[1].split("\n<!-- end of commands -->")[0]
    assert listed == command_table()


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_in_the_docs_name_real_commands_and_flags(line):
    name, *words = shlex.split(line)[1:]
    if name not in COMMANDS and words:
        name, words = f"{name} {words[0]}", words[1:]
    assert name in COMMANDS or name in {known.split()[0] for known in COMMANDS if " " in known}
    if name not in COMMANDS:
        return  # a group, named as a whole
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-") and word != "-"} <= known


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_every_command_and_flag_has_a_sentence_of_help():
    for command in COMMANDS.values():
        assert command.help.strip().endswith(".")
        for parameter in command.params:
            if parameter.name != "help":
                assert parameter.help and parameter.help.endswith("."), f"{command.name} {parameter.name}"


def test_every_flag_of_the_published_programs_has_a_row():
    """infer.py of YuE and of YuE-exllamav2."""
    flags = """
        stage1_model stage2_model max_new_tokens repetition_penalty run_n_segments stage2_batch_size genre_txt
        lyrics_txt use_audio_prompt audio_prompt_path prompt_start_time prompt_end_time use_dual_tracks_prompt
        vocal_track_prompt_path instrumental_track_prompt_path output_dir keep_intermediate disable_offload_model
        cuda_idx seed basic_model_config resume_path config_path vocal_decoder_path inst_decoder_path rescale
        stage1_use_exl2 stage2_use_exl2 stage1_cache_size stage2_cache_size stage1_cache_mode stage2_cache_mode
        stage1_no_guidance
    """.split()
    tables = [
        line for line in (ROOT / "docs/migration.md").read_text(encoding="utf-8").splitlines() if line[0:1] == "|"
    ]
    named = {flag for line in tables for flag in re.findall(r"`--(\w+)`", line.split("|")[1])}
    assert named == set(flags)
