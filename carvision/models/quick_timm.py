"""Importing timm in two seconds instead of seven: without torch's compiler, which nothing needs before it compiles.

At their top torchvision and timm import torch._dynamo, and with it sympy and triton, for two small functions. While
they are imported, stand-ins answer for these; each calls the real one when it is needed.
"""

import functools
import importlib
import sys
import types

DYNAMO, UTILS = "torch._dynamo", "torch._dynamo.utils"


def import_timm() -> None:
    """Import timm, quickly where nothing has imported it or torch._dynamo before."""
    if not {"timm", "torchvision", DYNAMO}.isdisjoint(sys.modules):
        importlib.import_module("timm")
        return
    importlib.import_module("torch")
    sys.modules[DYNAMO], sys.modules[UTILS] = stand_ins = types.ModuleType(DYNAMO), types.ModuleType(UTILS)
    stand_ins[0].disable, stand_ins[1].is_compile_supported = _disable, _is_compile_supported
    try:
        importlib.import_module("timm")
    except (ImportError, AttributeError):  # another version needs more of torch._dynamo
        _put_back(stand_ins)
        importlib.import_module("timm")
    finally:
        _put_back(stand_ins)


def _put_back(stand_ins: tuple) -> None:
    for module in stand_ins:
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module(UTILS).is_compile_supported(device_type)


def _disable(fn=None, recursive: bool = True, **options):
    """torch._dynamo.disable: keeps the compiler out of fn. As long as there is no compiler, fn itself."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **options)

    @functools.cache
    def kept_out():
        return importlib.import_module(DYNAMO).disable(fn, recursive, **options)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return (kept_out() if DYNAMO in sys.modules else fn)(*args, **kwargs)

    return call
