"""exllamav2's compiled functions: why they cannot be used here, and loading them, which may mean building them once.

The only file that imports exllamav2. Of that package nothing is used but the extension: it turns EXL2 weights into what
its kernels read, multiplies with them, and turns them back into numbers.
"""

import contextlib
import importlib
import importlib.util
import io
import shutil
import threading
import time
from pathlib import Path
from types import ModuleType

from yue_cli.errors import EngineError
from yue_cli.events import Emit, Finished, Note, Progress, ignore

NAME = "exllamav2_ext"
DEVICE = "cuda"  # what it computes on
_TOPIC, _LABEL = "engine", "building exllamav2's extension, once"
_LOOK_EVERY_S = 0.5
_INSTALL = "pip install 'yue-cli[exl2]'"
_OR = "or a wheel of exllamav2 that was built for this PyTorch"


def reason() -> str | None:
    """Tell why exllamav2 cannot be used here; None when it can, or could be built. Builds nothing."""
    for package in ("exllamav2", "tokenizers"):  # it imports tokenizers without asking pip for it
        if not _is_installed(package):
            return f"the package {package} is not installed; `{_INSTALL}` brings it"
    import torch

    if not torch.cuda.is_available():
        return f"it needs a CUDA GPU, and PyTorch {torch.__version__} sees none"
    try:
        from torch.utils import cpp_extension
    except ImportError as error:  # PyTorch builds extensions with setuptools, and does not bring it everywhere
        return f"its first build needs the package {error.name}; pip install {error.name}"
    if _is_built():
        return None
    toolkit = cpp_extension.CUDA_HOME
    if toolkit is None or shutil.which("nvcc", path=Path(toolkit) / "bin") is None:
        return f"its first build needs nvcc, which was not found: install the CUDA {torch.version.cuda} toolkit, {_OR}"
    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        return f"its first build needs a C++ compiler, which was not found: install g++, {_OR}"
    if not cpp_extension.is_ninja_available():
        return "its first build needs ninja; pip install ninja"
    return None


def load(emit: Emit = ignore) -> ModuleType:
    """Import exllamav2's extension, telling how far it is while it is being built. Returns `exllamav2.ext`.

    Raises EngineError with what the build said.
    """
    import torch

    outcome: list[ModuleType | BaseException] = []

    def work() -> None:
        try:
            if _is_installed(NAME):  # exllamav2 goes on when this fails, and then lacks a name
                importlib.import_module(NAME)
            from exllamav2 import ext

            outcome.append(ext)
        except BaseException as error:
            outcome.append(error)

    threads, said = torch.get_num_threads(), io.StringIO()
    began, builds = time.monotonic(), not _is_built()
    if builds and (lock := _build_folder() / "lock").exists():
        emit(Note(_TOPIC, f"another program is building exllamav2's extension; if none is, delete {lock}"))
    # It is built when it is imported. A thread of its own leaves this one free to tell, and to hear Ctrl-C.
    worker = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stdout(said):  # it prints, and standard output is for answers
        worker.start()
        while worker.is_alive():
            worker.join(_LOOK_EVERY_S)
            if builds:
                emit(Progress(_TOPIC, _LABEL, *_progress(), "files"))
    torch.set_num_threads(threads)  # importing it leaves PyTorch one thread
    (found,) = outcome
    if isinstance(found, Exception):
        raise EngineError(_explain(found)) from found
    if isinstance(found, BaseException):
        raise found
    if builds:
        emit(Finished(_TOPIC, _LABEL, _progress()[0], "files", time.monotonic() - began))
    return found


def _explain(error: Exception) -> str:
    """Say in one line why the extension could not be loaded, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A compiler says the first thing that is wrong first; whatever follows comes of it.
    first = next((line for line in lines if "error:" in line or "fatal" in line.lower()), lines[0] if lines else "")
    what = first or type(error).__name__
    end = "" if what.endswith((".", "!")) else "."
    if isinstance(error, ModuleNotFoundError) and error.name != NAME:
        return (
            f"engine exl2: exllamav2 needs the package {error.name}, which is not installed; pip install {error.name}."
        )
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):  # of what is built already
        import torch

        where = "install its wheel for this one, or the package without a built extension, which builds its own"
        remedy = where if _is_installed(NAME) else f"delete {_build_folder()}, so that it is built anew"
        return (
            f"engine exl2: {NAME} cannot be loaded ({what}). It was built for another PyTorch than "
            f"{torch.__version__}, or lacks a library: {remedy}."
        )
    return (
        f"engine exl2: exllamav2's extension could not be built or loaded: {what}{end} It needs the CUDA toolkit that "
        "PyTorch was built for and a C++ compiler that this toolkit serves. Models that are not EXL2 need neither."
    )


def _is_built() -> bool:
    """Tell whether the extension came with a wheel, or was built here before."""
    return _is_installed(NAME) or any((_build_folder() / f"{NAME}{suffix}").exists() for suffix in (".so", ".pyd"))


def _progress() -> tuple[int, int]:
    """Count the object files that are there and those that will be."""
    found = importlib.util.find_spec("exllamav2")
    places = list(found.submodule_search_locations or []) if found else []
    sources = [
        path for place in places for path in (Path(place) / NAME).rglob("*.c*") if path.suffix in (".cu", ".cpp")
    ]
    return len(list(_build_folder().glob("*.o"))), max(1, len(sources))


def _build_folder() -> Path:
    """Find where PyTorch builds the extension."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(NAME, False))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
