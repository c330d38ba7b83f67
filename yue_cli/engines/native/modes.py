"""How a step is computed: by recorded kernels, by recorded operations of PyTorch, or one operation after the other."""

import importlib
from dataclasses import dataclass

import torch

from yue_cli.engines.native.config import LlamaConfig
from yue_cli.errors import EngineError

MODES = ("auto", "kernels", "graphs", "eager")

_KERNEL_CAPABILITY = 8.0  # of the oldest GPUs for which the kernels are compiled and checked
_KERNEL_TRITON = 3, 5  # the oldest that compiles them all; it comes with PyTorch 2.9
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Mode:
    name: str  # kernels, graphs or eager
    why: str = ""  # a faster one is not used, if there is one

    def describe(self, device: torch.device) -> str:
        """Say it in words."""
        graphs = "CUDA graphs" if device.type == "cuda" else "no graphs on this device"
        words = {
            "kernels": f"{graphs}, Triton kernels",
            "graphs": f"{graphs}, PyTorch's operations",
            "eager": "one operation after the other",
        }[self.name]
        return f"{words} ({self.why})" if self.why else words


def choose(
    wanted: str, config: LlamaConfig, *, device: torch.device, dtype: torch.dtype, capability: float | None
) -> Mode:
    """Choose the fastest way that works here, or the one that is wanted. Raises EngineError if that cannot be.

    capability: compute capability of the GPU; None where there is none.
    """
    assert wanted in MODES, f"{wanted} is no mode"
    if wanted == "eager" or (wanted == "auto" and device.type != "cuda"):
        return Mode("eager")
    if wanted == "graphs":
        return Mode("graphs")
    obstacle = _kernel_obstacle(config, device, dtype, capability)
    if obstacle is None:
        return Mode("kernels")
    if wanted == "kernels":
        raise EngineError(f"execution.mode is kernels, but {obstacle}; use auto, graphs or eager.")
    return Mode("graphs", why=f"no kernels: {obstacle}")


def capability_of(device: torch.device, pretended: float | None = None) -> float | None:
    """Tell a GPU's compute capability, such as 9.0; None for what is no GPU."""
    if device.type != "cuda":
        return None
    return pretended or float("{}.{}".format(*torch.cuda.get_device_capability(device)))


def _kernel_obstacle(
    config: LlamaConfig, device: torch.device, dtype: torch.dtype, capability: float | None
) -> str | None:
    """Tell what keeps the kernels from being used, None if nothing does."""
    try:
        kernels = importlib.import_module("yue_cli.engines.native.kernels")
    except Exception as error:  # Triton may be absent, or fail in many ways where it does not belong
        return f"Triton cannot be used here ({str(error).splitlines()[0]})"
    if kernels.INTERPRETED:
        return misfit(config)  # for tests: any device, any dtype
    if device.type != "cuda" or capability is None:
        return "they run on CUDA GPUs only"
    if kernels.TRITON < _KERNEL_TRITON:
        found, needed = (".".join(map(str, version)) for version in (kernels.TRITON, _KERNEL_TRITON))
        return f"they need Triton {needed} or newer, this is {found}: a newer PyTorch brings it"
    if capability < _KERNEL_CAPABILITY:
        return f"they need a GPU of compute capability {_KERNEL_CAPABILITY:g}, this one has {capability:g}"
    if dtype not in _KERNEL_DTYPES:
        return f"they compute in bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    return misfit(config)


def misfit(config: LlamaConfig) -> str | None:
    """Tell which size of a model the kernels do not take, None if they take all."""
    groups = config.heads // config.key_value_heads
    if config.head_size not in (32, 64, 128, 256):  # of keys in bytes tensor cores take 32 features or more
        return f"they do not take heads of {config.head_size}"
    if groups not in (1, 2, 4, 8, 16, 32):
        return f"they do not take {groups} heads to a key"
    for name, size in (("hidden_size", config.hidden), ("intermediate_size", config.inner)):
        if size % 64:
            return f"they take multiples of 64 only, and {name} is {size}"
    return None
