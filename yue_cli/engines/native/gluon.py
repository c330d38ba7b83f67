"""Where kernels in Gluon can be had: a language below Triton's, in which the place of every number is told."""

import importlib
from functools import lru_cache
from types import ModuleType

from yue_cli.engines.native import kernels

_TRITON = (3, 6), (3, 9)  # with which they compile: the language is new and still changes


@lru_cache
def find(name: str) -> ModuleType | None:
    """Import a module of such kernels where this Triton has their language, when it is needed: it takes a while."""
    first, last = _TRITON
    if kernels.INTERPRETED or not first <= kernels.TRITON <= last:
        return None
    try:
        return importlib.import_module(f"yue_cli.engines.native.{name}")
    except (ImportError, AttributeError):
        return None
