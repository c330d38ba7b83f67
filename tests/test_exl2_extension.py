"""exllamav2's extension: why it cannot be used, and what is said while it is built or when that fails."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from yue_cli.engines.exl2 import extension
from yue_cli.errors import EngineError
from yue_cli.events import Event, Finished, Note, Progress

THERE = {"exllamav2", "tokenizers"}
TOOLS = "install the CUDA 12.8 toolkit, or a wheel of exllamav2 that was built for this PyTorch"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which exllamav2 could be built; returns where PyTorch would build it."""
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(extension, "_is_installed", THERE.__contains__)
    monkeypatch.setattr(extension, "_build_folder", lambda: tmp_path / "build")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr("torch.utils.cpp_extension.is_ninja_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda program, path=None: f"/usr/bin/{program}")
    return tmp_path / "build"


def test_a_machine_that_can_build_it_can_use_it(machine: Path) -> None:
    assert extension.reason() is None


def test_nothing_is_needed_where_it_is_built(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    (machine / "exllamav2_ext.so").touch()
    assert extension.reason() is None
    (machine / "exllamav2_ext.so").unlink()
    monkeypatch.setattr(extension, "_is_installed", {*THERE, "exllamav2_ext"}.__contains__)
    assert extension.reason() is None


@pytest.mark.parametrize("package", sorted(THERE))
def test_a_missing_package(machine: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(extension, "_is_installed", (THERE - {package}).__contains__)
    assert extension.reason() == (f"the package {package} is not installed; `pip install 'yue-cli[exl2]'` brings it")


def test_no_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert extension.reason() == f"it needs a CUDA GPU, and PyTorch {torch.__version__} sees none"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("torch.utils.cpp_extension.CUDA_HOME", None, f"nvcc, which was not found: {TOOLS}"),
        ("shutil.which", lambda program, path=None: path and None, f"nvcc, which was not found: {TOOLS}"),
        (
            "shutil.which",
            lambda program, path=None: "nvcc" if path else None,
            "a C++ compiler, which was not found: install g++, or a wheel of exllamav2 that was built for this PyTorch",
        ),
        ("torch.utils.cpp_extension.is_ninja_available", lambda: False, "ninja; pip install ninja"),
    ],
    ids=["no toolkit", "no nvcc", "no compiler", "no ninja"],
)
def test_a_missing_tool(machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, text: str) -> None:
    monkeypatch.setattr(name, value)
    assert extension.reason() == f"its first build needs {text}"


def test_no_setuptools(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.cpp_extension", raising=False)
    monkeypatch.delattr("torch.utils.cpp_extension", raising=False)
    monkeypatch.setitem(sys.modules, "setuptools", None)
    assert extension.reason() == "its first build needs the package setuptools; pip install setuptools"


def test_the_reason_is_found_without_importing_it() -> None:
    extension.reason()
    assert "exllamav2" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package named exllamav2 whose `ext` the test writes; returns that file."""
    folder = tmp_path / "site" / "exllamav2"
    (folder / "exllamav2_ext" / "cuda").mkdir(parents=True)
    for name in ("ext_bindings.cpp", "cuda/q_matrix.cu", "cuda/q_matrix.cuh", "config.h"):
        (folder / "exllamav2_ext" / name).touch()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(extension, "_build_folder", lambda: tmp_path / "build")
    monkeypatch.setattr(extension, "_LOOK_EVERY_S", 0.01)
    (tmp_path / "build").mkdir()
    yield folder / "ext.py"
    for name in [name for name in sys.modules if name.startswith("exllamav2")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_build_is_told_and_prints_nothing(package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build, threads = tmp_path / "build", torch.get_num_threads()
    package.write_text(
        "import pathlib, time, torch\n"
        "print('Loading exllamav2_ext extension (JIT)...')\n"
        f"pathlib.Path({str(build)!r}, 'q_matrix.cuda.o').touch()\n"
        f"torch.set_num_threads({threads + 1})\n"
        "time.sleep(0.2)\n"
        "ext_c = 'compiled'\n"
    )
    events: list[Event] = []
    assert extension.load(events.append).ext_c == "compiled"
    *progress, last = events
    assert Progress("engine", "building exllamav2's extension, once", 1, 2, "files") in progress
    assert isinstance(last, Finished)
    assert (last.done, last.unit) == (1, "files")
    assert capsys.readouterr().out == ""
    assert torch.get_num_threads() == threads


def test_a_build_that_was_cut_off_does_not_hang_without_a_word(package: Path, tmp_path: Path) -> None:
    (tmp_path / "build" / "lock").touch()
    package.write_text("ext_c = 'compiled'\n")
    events: list[Event] = []
    extension.load(events.append)
    assert events[0] == Note(
        "engine",
        f"another program is building exllamav2's extension; if none is, delete {tmp_path}/build/lock",
    )


def test_what_is_built_is_loaded_without_a_word(package: Path, tmp_path: Path) -> None:
    (tmp_path / "build" / "exllamav2_ext.so").touch()
    package.write_text("ext_c = 'compiled'\n")
    events: list[Event] = []
    extension.load(events.append)
    assert events == []


BUILD_LOG = """Error building extension 'exllamav2_ext': [1/47] c++ -MMD -MF ext_bindings.o.d
[2/47] nvcc --generate-dependencies
FAILED: [code=1] q_matrix.cuda.o
/usr/include/crt/host_config.h(143): fatal error: unsupported GNU version! gcc versions later than 13 are not supported!
ninja: build stopped: subcommand failed.
"""


NEEDS = (
    "It needs the CUDA toolkit that PyTorch was built for and a C++ compiler that this toolkit serves. Models that are "
    "not EXL2 need neither."
)


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (
            f"RuntimeError({BUILD_LOG!r})",
            "exllamav2's extension could not be built or loaded: /usr/include/crt/host_config.h(143): fatal error: "
            f"unsupported GNU version! gcc versions later than 13 are not supported! {NEEDS}",
        ),
        (
            "OSError('CUDA_HOME environment variable is not set. Please set it to your CUDA install root.')",
            "exllamav2's extension could not be built or loaded: CUDA_HOME environment variable is not set. Please set "
            f"it to your CUDA install root. {NEEDS}",
        ),
        (
            "ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')",
            "exllamav2 needs the package pandas, which is not installed; pip install pandas.",
        ),
        (
            "RuntimeError()",
            f"exllamav2's extension could not be built or loaded: RuntimeError. {NEEDS}",
        ),
    ],
    ids=["compiler", "toolkit", "package", "nothing said"],
)
def test_a_failed_build_is_one_line(package: Path, raised: str, text: str) -> None:
    package.write_text(f"raise {raised}\n")
    with pytest.raises(EngineError) as error:
        extension.load()
    assert str(error.value) == f"engine exl2: {text}"


UNLOADABLE = (
    "engine exl2: exllamav2_ext cannot be loaded ({}). It was built for another PyTorch than "
    f"{torch.__version__}, or lacks a library: {{}}."
)


@pytest.mark.parametrize(
    "said",
    [
        "exllamav2_ext.so: undefined symbol: _ZN3c104cuda9SetDeviceEi",
        "libcudart.so.12: cannot open shared object file: No such file or directory",
    ],
)
def test_a_built_extension_that_does_not_load_names_the_cause(package: Path, said: str) -> None:
    (package.parent.parent / "exllamav2_ext.py").write_text(f"raise ImportError({said!r})\n")
    # As exllamav2 0.3.2 does: it re-raises but one kind of error, then misses the name.
    package.write_text("try:\n    import exllamav2_ext\nexcept ImportError:\n    pass\next_c = exllamav2_ext\n")
    with pytest.raises(EngineError) as error:
        extension.load()
    remedy = "install its wheel for this one, or the package without a built extension, which builds its own"
    assert str(error.value) == UNLOADABLE.format(said, remedy)


def test_what_was_built_here_before_and_does_not_load_is_built_anew(package: Path, tmp_path: Path) -> None:
    (tmp_path / "build" / "exllamav2_ext.so").touch()
    package.write_text("raise ImportError('exllamav2_ext.so: undefined symbol: _ZN3c10')\n")
    with pytest.raises(EngineError) as error:
        extension.load()
    remedy = f"delete {tmp_path}/build, so that it is built anew"
    assert str(error.value) == UNLOADABLE.format("exllamav2_ext.so: undefined symbol: _ZN3c10", remedy)
