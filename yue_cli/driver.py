"""Readies a GPU while PyTorch is imported: both take a while, and neither needs the other."""

import ctypes
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_DIGITS = 3  # of a GPU's number, at most


def wake(device: str) -> Thread | None:
    """Begin to make the context that PyTorch will work in, in a thread; what fails there, PyTorch will tell.

    device: the `execution.device` setting. None where there is nothing to do: no GPU is wanted, or PyTorch knows none.
    """
    kind, _, number = device.partition(":")
    number = number or "0"
    if kind not in ("auto", "cuda") or not (number.isdecimal() and len(number) <= _DIGITS) or not _knows_cuda():
        return None
    thread = Thread(target=_make_context, args=(int(number),), daemon=True)
    thread.start()
    return thread


def _knows_cuda() -> bool:
    """Tell whether the PyTorch that is installed can use a GPU, without importing it."""
    found = find_spec("torch")
    return bool(found and found.origin and list((Path(found.origin).parent / "lib").glob("*torch_cuda.*")))


def _make_context(number: int) -> None:
    """Call CUDA's driver, which does its work without Python's lock. Every call gives 0 where it succeeds."""
    with suppress(OSError, AttributeError):  # there is no driver, or one that does not know these calls
        driver, device, context = ctypes.CDLL(_LIBRARY), ctypes.c_int(), ctypes.c_void_p()
        _ = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), number)
            or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        )
