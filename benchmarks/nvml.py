"""What the driver tells of a GPU's memory: how much is in use, and how much of it by one process.

NVML is called by hand, since no package of ours brings it. Asking it opens nothing on the GPU.
"""

import ctypes
import os
from ctypes import byref, c_char_p, c_uint, c_ulonglong, c_void_p

_MOST_PROCESSES = 64
_UNKNOWN = 2**64 - 1  # what it says where it may not tell


class _Memory(ctypes.Structure):
    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", c_uint), ("used", c_ulonglong), ("instance", c_uint), ("compute_instance", c_uint)]


class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES names. Raises OSError where there is no NVML or no such GPU."""

    def __init__(self) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        self._handle = c_void_p()
        name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
        if name.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(int(name)), byref(self._handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", c_char_p(name.encode()), byref(self._handle))

    def used(self) -> int:
        """Tell how many bytes are in use, by anyone."""
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._handle, byref(memory))
        return int(memory.used)

    def processes(self) -> dict[int, int | None]:
        """List who uses it, by process id: bytes, None where that is not told. A container may see nobody."""
        count, found = c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
        try:
            self._call("nvmlDeviceGetComputeRunningProcesses_v3", self._handle, byref(count), found)
        except OSError:
            return {}
        return {each.pid: None if each.used == _UNKNOWN else int(each.used) for each in found[: count.value]}

    def _call(self, name: str, *arguments: object) -> None:
        try:
            code = getattr(self._nvml, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"{name}: this driver's NVML does not have it") from error
        if code:
            raise OSError(f"{name}: error {code} of NVML")
