"""Where the golden vectors are: the few committed ones, and the full folder that `YUE_CONFORMANCE` names.

The full folder holds `lm/` and `codec/`. Its cases are marked `slow`; the committed ones are part of every run.
"""

import os
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
VARIABLE = "YUE_CONFORMANCE"


def files(part: str, pattern: str) -> list[Any]:
    """List the files of one kind as parameters for `pytest.mark.parametrize`.

    A kind that the full folder lacks is listed as the pattern itself: a path that no test can open, so that a
    missing folder or kind is a failure and never a silent skip.
    """
    cases = [_case("golden", path) for path in sorted((GOLDEN / part).glob(pattern))]
    if full := os.environ.get(VARIABLE):
        folder = Path(full) / part
        found = sorted(folder.glob(pattern)) or [folder / pattern]
        cases += [_case("full", path, pytest.mark.slow) for path in found]
    return cases


def _case(folder: str, path: Path, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(path, id=f"{folder}/{path.name}", marks=[pytest.mark.conformance, *marks])
