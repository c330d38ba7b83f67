"""The table of who may import whom, read from the imports themselves. Change it on purpose."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = [
    # What a level holds may import what stands above it, and what stands before it in its own line.
    ["errors", "events", "vocab", "resources", "atomic", "garbage", "processor", "seats", "settings"],
    [
        "lyrics",
        "genre",
        "tokenizer",
        "audio_files",
        "audio_prompt",
        "artifacts",
        "presets",
        "song",
        "project",
        "foreign",
        "takes",
        "models",
        "hub",
        "copies",
        "model_card",
        "weights",
        "inventory",
        "speeds",
        "timings",
        "stopwatch",
    ],
    ["prompt"],
    ["transfers", "sampling", "sampling_kernels", "comparison", "mixing"],
    ["engines.base", "engines", "engines.native", "engines.exl2"],
    ["generation", "stages.reference", "stages.stage1", "stages.stage2", "stages.decode"],
    [
        "segments",
        "plan",
        "driver",
        "machine",
        "tiny",
        "toy",
        "workbench",
        "budget",
        "estimate",
        "making",
        "singing",
        "filling",
        "pipeline",
        "quantize",
        "replay",
        "calibration",
        "quantize_exl2",
        "plot",
        "doctor",
        "bench",
    ],
    ["commands", "main"],
]
THIRD_PARTY = {
    "yaml": {"settings"},
    "sentencepiece": {"tokenizer"},
    "soundfile": {"audio_files"},
    "filelock": {"project", "weights", "quantize"},
    "huggingface_hub": {"hub"},
    "matplotlib": {"plot"},
    "platformdirs": {"commands"},
    "typer": {"commands", "main"},
    "rich": {"commands"},
    "exllamav2": {"engines.exl2.extension", "engines.exl2.converter"},
    "safetensors": {"engines.native", "engines.exl2", "tiny", "toy"},
    "triton": {"engines.native", "sampling_kernels"},
    "torch": {
        "transfers",
        "sampling",
        "sampling_kernels",
        "comparison",
        "mixing",
        "engines.base",
        "engines.native",
        "engines.exl2",
        "generation",
        "stages",
        "machine",
        "tiny",
        "toy",
        "workbench",
        "quantize",
        "replay",
    },
    "numpy": None,  # anywhere
}
CODEC_USERS = {"weights", "mixing", "stages.reference", "stages.decode"}
PRINTERS = {"commands.console"}
STDLIB = sys.stdlib_module_names


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "yue_cli").rglob("*.py")):
        parts = path.relative_to(ROOT / "yue_cli").with_suffix("").parts
        name = ".".join(part for part in parts if part not in ("__init__", "__main__"))
        if name:
            found[name] = path
    return found


def imports(path: Path, package: str) -> set[str]:
    """List imported modules as dotted names; `from yue_cli import plan` counts as yue_cli.plan.

    What is imported for the type checker alone does not count.
    """
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    ignored = {id(inner) for check in checks for statement in check.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {alias.name for alias in node.names}
            if node.module in (package, f"{package}.stages", f"{package}.commands"):
                found |= {f"{node.module}.{name}" for name in names if name != "__version__"}
            else:
                found.add(node.module)
    return found


def room(module: str) -> tuple[int, int]:
    """Find a module's level and place: that of its longest listed prefix."""
    for length in range(len(module.split(".")), 0, -1):
        prefix = ".".join(module.split(".")[:length])
        for level, names in enumerate(LEVELS):
            if prefix in names:
                return level, names.index(prefix)
    raise AssertionError(f"{module} has no place in the table")


@pytest.mark.parametrize("module", [name for name in modules() if name not in ("stages",)])
def test_imports_go_down(module):
    for imported in imports(modules()[module], "yue_cli"):
        if not imported.startswith("yue_cli."):
            continue
        target = imported.removeprefix("yue_cli.")
        if target.rpartition(".")[0] in modules() and target not in modules():
            target = target.rpartition(".")[0]
        same_room = room(target) == room(module)
        assert room(target) < room(module) or (same_room and module.split(".")[0] in ("engines", "commands")), (
            f"{module} imports {target}"
        )


@pytest.mark.parametrize("module", modules())
def test_third_party_packages_stay_in_their_rooms(module):
    for imported in imports(modules()[module], "yue_cli"):
        package = imported.split(".")[0]
        if package in STDLIB or package == "yue_cli":
            continue
        if package == "xcodec_mini_infer":
            assert module in CODEC_USERS, f"{module} imports the codec"
            continue
        assert package in THIRD_PARTY, f"{module} imports {package}, which is in no table"
        rooms = THIRD_PARTY[package]
        assert rooms is None or any(module == name or module.startswith(f"{name}.") for name in rooms), (
            f"{module} imports {package}"
        )


@pytest.mark.parametrize("path", sorted((ROOT / "xcodec_mini_infer").glob("*.py")), ids=lambda path: path.stem)
def test_the_codec_knows_nothing_of_yue(path):
    packages = {name.split(".")[0] for name in imports(path, "xcodec_mini_infer")}
    assert packages - STDLIB <= {"torch", "numpy", "safetensors", "xcodec_mini_infer"}


def test_stages_know_no_backend_and_not_each_other():
    for module, path in modules().items():
        if module.startswith("stages.") or module == "generation":
            imported = imports(path, "yue_cli")
            assert not any(
                name.startswith(("yue_cli.engines.", "yue_cli.stages")) and name != "yue_cli.engines.base"
                for name in imported
            ), module


@pytest.mark.parametrize("module", modules())
def test_only_the_console_prints(module):
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
    assert not prints or module in PRINTERS


@pytest.mark.parametrize("module", modules())
def test_environment_is_read_by_commands_alone(module):
    text = modules()[module].read_text(encoding="utf-8")
    assert module.startswith("commands") or ("os.environ" not in text and "getcwd" not in text)


def test_help_loads_no_torch():
    code = "import sys; from yue_cli.main import execute; execute(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
