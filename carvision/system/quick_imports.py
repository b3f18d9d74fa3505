"""Importing timm and Lightning in half the time: without torch's compiler, and what else a training does not use.

At their top torchvision, timm and Lightning import torch._dynamo, and with it sympy and triton, for three names, and
every optimizer does so at its first step; Lightning imports all of torchmetrics, and with it SciPy and matplotlib, for
two classes. Here a Deferred module stands in sys.modules in place of each. It has these names alone: who asks it for
another has the real module executed, in the same object, which is the real one from then on. The classes that stand in
it before are the real ones. Where a version of these packages needs more than that, all is imported as usual.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import logging
import sys
import threading
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

DYNAMO, UTILS = "torch._dynamo", "torch._dynamo.utils"
FLOPS = "torch.utils.flop_counter"
EXECUTING = threading.RLock()


class Deferred(types.ModuleType):
    """A module that is executed as soon as it is asked for an attribute that it was not given."""

    def __init__(self, spec: ModuleSpec, later: tuple[str, ...] = (), **given):
        """later: functions and classes of it that others take when they are imported, and call only later."""
        super().__init__(spec.name)
        given |= {name: functools.partial(self.call, name) for name in later}
        self.__dict__.update(given, __spec__=spec, __file__=spec.origin, executing=None)
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        sys.modules[spec.name] = self

    def __getattr__(self, name: str):
        # Of the first every module is asked now and then; of others by its own parts, while it is executed
        if name.startswith("__") or self.executing == threading.get_ident():
            raise AttributeError(name)
        self.execute()
        return getattr(self, name)

    def call(self, name: str, /, *args, **kwargs):
        self.execute()
        return getattr(self, name)(*args, **kwargs)

    def execute(self) -> None:
        with EXECUTING:  # as long as another thread has it executed, this one waits
            if isinstance(self, Deferred) and not self.executing:
                self.executing = threading.get_ident()
                try:
                    spec = self.__spec__
                    assert spec is not None and spec.loader is not None
                    self.__dict__.update(vars(importlib.util.module_from_spec(spec)))
                    spec.loader.exec_module(self)
                except BaseException:
                    self.executing = None  # who asks again is told the same
                    raise
                # Python allows it of a module and a class derived from that
                self.__class__ = types.ModuleType  # pyrefly: ignore[bad-argument-type]


class PartsOfCompiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader for Python's import of a part of torch._dynamo, as torch._dynamo.utils: first the whole is
    executed, which imports the part."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        whole = sys.modules.get(DYNAMO)
        if name.startswith(f"{DYNAMO}.") and isinstance(whole, Deferred):
            whole.execute()
            self.part = sys.modules.get(name)
            if self.part is not None:
                self.spec = self.part.__spec__
                return ModuleSpec(name, self)
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self.part

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec


def import_timm() -> None:
    """timm, without the compiler where nothing has imported it before; nothing stays deferred that was not."""
    if not {"timm", "torchvision"}.isdisjoint(sys.modules) or compiler():
        importlib.import_module("timm")
        return
    deferred = [] if DYNAMO in sys.modules else [_defer_compiler()]
    utils = sys.modules[UTILS] = types.ModuleType(UTILS)
    utils.__dict__.update(is_compile_supported=_is_compile_supported)
    try:
        importlib.import_module("timm")
    except (ImportError, AttributeError):  # another version needs more of torch._dynamo
        _remove(utils, *deferred)
        importlib.import_module("timm")
    finally:
        _remove(utils, *deferred)


def import_lightning() -> None:
    """pytorch_lightning, where nothing has imported it before, with the compiler deferred, and all but the core of
    torchmetrics."""
    import_metrics()
    if not compiler() and not {"pytorch_lightning", "lightning_fabric"} & sys.modules.keys():
        deferred = [] if DYNAMO in sys.modules else [_defer_compiler()]
        if FLOPS not in sys.modules:  # which imports triton
            deferred.append(Deferred(_spec_of(FLOPS), later=("FlopCounterMode",)))
        try:
            importlib.import_module("pytorch_lightning")
        except (ImportError, AttributeError):  # another version needs more
            _remove(*_of("pytorch_lightning"), *_of("lightning_fabric"), *deferred)
    importlib.import_module("pytorch_lightning")


def import_metrics() -> None:
    """torchmetrics, where nothing has imported it before only the classes that Lightning and carvision take."""
    if "torchmetrics" not in sys.modules:
        try:
            _import_core()
        except (ImportError, AttributeError, FileNotFoundError):  # another version is laid out otherwise
            _remove(*_of("torchmetrics"))
    importlib.import_module("torchmetrics")


def _import_core() -> None:
    """Of torchmetrics: each class from its own file. matplotlib is in its annotations, and for pictures."""
    spec = _spec_of("torchmetrics")
    torchmetrics = Deferred(spec, _logger=logging.getLogger("torchmetrics"))
    file = Path(spec.origin or "").parent / "utilities" / "plot.py"
    of_plot = importlib.util.spec_from_file_location("torchmetrics.utilities.plot", file)
    if of_plot is None:
        raise ImportError(f"no module at {file}")
    Deferred(of_plot, later=("plot_single_or_multi_val",), _AX_TYPE=object, _PLOT_OUT_TYPE=object)
    importlib.import_module("torchmetrics.utilities")  # first, as it and torchmetrics.metric import each other
    taken = {"__about__": ["__version__"], "metric": ["Metric"], "collections": ["MetricCollection"]}
    for name, own in {**taken, "aggregation": ["SumMetric"]}.items():
        module = importlib.import_module(f"torchmetrics.{name}")
        torchmetrics.__dict__.update({value: getattr(module, value) for value in own})


def _spec_of(name: str) -> ModuleSpec:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"no module {name}")
    return spec


def _of(package: str) -> list[types.ModuleType]:
    return [module for name, module in sys.modules.items() if name.partition(".")[0] == package]


def _remove(*modules: types.ModuleType) -> None:
    """But for those that stood in for a module, and meanwhile are that."""
    for module in modules:
        became_real = hasattr(module, "executing") and not isinstance(module, Deferred)
        if sys.modules.get(module.__name__) is module and not became_real:
            del sys.modules[module.__name__]


def compiler() -> types.ModuleType | None:
    """torch._dynamo, if it was really imported."""
    module = sys.modules.get(DYNAMO)
    return None if isinstance(module, Deferred) else module


class _AsOfCompiler(type):
    def __instancecheck__(cls, instance: object) -> bool:
        real = getattr(compiler(), "OptimizedModule", None)
        return real is not None and real is not cls and isinstance(instance, real)


class OptimizedModule(metaclass=_AsOfCompiler):
    """What torch.compile makes of a module. As long as there is no compiler, nothing is one."""


def _defer_compiler() -> Deferred:
    if not any(isinstance(finder, PartsOfCompiler) for finder in sys.meta_path):
        sys.meta_path.insert(0, PartsOfCompiler())
    given = {"disable": _disable, "graph_break": _graph_break, "OptimizedModule": OptimizedModule}
    return Deferred(_spec_of(DYNAMO), **given)


def _graph_break(msg: str = "") -> None:
    """Where the compiler is to end a piece of code: nothing, without it."""


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module(UTILS).is_compile_supported(device_type)


def _disable(fn=None, recursive: bool = True, **options):
    """torch._dynamo.disable: keeps the compiler out of fn. As long as there is no compiler, fn itself."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **options)

    @functools.cache
    def kept_out():
        real = compiler()
        assert real is not None  # see call
        return real.disable(fn, recursive, **options)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        return (kept_out() if compiler() else fn)(*args, **kwargs)

    return call
