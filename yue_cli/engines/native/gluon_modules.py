"""Where kernels in Gluon can be had: below Triton's language, it gives every tensor's layout over threads."""

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
        importlib.import_module("triton.experimental.gluon")
    except ImportError:  # it is an experiment of Triton's, which a build may lack
        return None
    return importlib.import_module(f"yue_cli.engines.native.{name}")
