"""How golden vectors of the codec are compared with what this program computes."""

import json
from pathlib import Path

import numpy as np
from torch import Tensor, nn


def salt_beside(path: Path) -> str:
    return str(json.loads((path.parent / "weights_check.json").read_text())["salt"])


def close(found: Tensor, expected: np.ndarray, tolerance: float, name: str) -> None:
    assert tuple(found.shape) == expected.shape, f"{name}: shape {tuple(found.shape)}, expected {expected.shape}"
    array = found.cpu().numpy()
    difference = np.abs(array - expected)
    worst = np.unravel_index(difference.argmax(), difference.shape)
    error = difference[worst] / np.abs(expected).max()
    assert error <= tolerance, f"{name}: {error:.2e} of the peak at {worst}: {array[worst]}, expected {expected[worst]}"


def record(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Keep what modules return in the next run."""
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output.clone()
            handle.remove()

        handle = module.register_forward_hook(keep)

    for name, module in modules.items():
        watch(name, module)
    return seen
