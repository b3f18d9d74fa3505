"""Import timm and Lightning in half the time: without torch's compiler and other modules that training does not use.

At their top torchvision, timm and Lightning import torch._dynamo, and with it sympy and triton, for three names, as
does every optimizer at its first step; Lightning imports all of torchmetrics, and with it SciPy and matplotlib, for two
classes. Here a Deferred module replaces each of these in sys.modules. It has only the names needed: access to another
one executes the real module in the same object, which then is the real module. Classes that it has before that are the
real ones. If a version of these packages needs more than that, everything is imported as usual.
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
    """A module that is executed at the first access to an attribute that it was not given."""

    def __init__(self, spec: ModuleSpec, later: tuple[str, ...] = (), **given):
        """Put the module into sys.modules.

        later: its functions and classes that others import at once, but call only later. given: its attributes.
        """
        super().__init__(spec.name)
        given |= {name: functools.partial(self.call, name) for name in later}
        self.__dict__.update(given, __spec__=spec, __file__=spec.origin, executing=None)
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        sys.modules[spec.name] = self

    def __getattr__(self, name: str):
        # Dunder names are looked up on every module now and then; others by its own parts, while it is executed
        if name.startswith("__") or self.executing == threading.get_ident():
            raise AttributeError(name)
        self.execute()
        return getattr(self, name)

    def call(self, name: str, /, *args, **kwargs):
        """Call the real module's function."""
        self.execute()
        return getattr(self, name)(*args, **kwargs)

    def execute(self) -> None:
        """Execute the real module in this object, once."""
        with EXECUTING:  # waits while another thread executes it
            if isinstance(self, Deferred) and not self.executing:
                self.executing = threading.get_ident()
                try:
                    spec = self.__spec__
                    assert spec is not None and spec.loader is not None
                    self.__dict__.update(vars(importlib.util.module_from_spec(spec)))
                    spec.loader.exec_module(self)
                except BaseException:
                    self.executing = None  # the next access fails in the same way
                    raise
                # Python allows this for a module and a subclass of its type
                self.__class__ = types.ModuleType  # pyrefly: ignore[bad-argument-type]


class PartsOfCompiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader for submodules of torch._dynamo: executes the whole of it first, which imports them."""

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
    """Import timm, without the compiler unless it is imported already; afterwards nothing more is deferred."""
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
    """Import pytorch_lightning, with the compiler and all but the core of torchmetrics deferred."""
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
    """Import torchmetrics; unless it is imported already, only the classes that Lightning and carvision use."""
    if "torchmetrics" not in sys.modules:
        try:
            _import_core()
        except (ImportError, AttributeError, FileNotFoundError):  # another version has other files
            _remove(*_of("torchmetrics"))
    importlib.import_module("torchmetrics")


def _import_core() -> None:
    """Import torchmetrics' needed classes, each from its own file; its plots, with matplotlib, are deferred."""
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
    """Remove modules from sys.modules, except for Deferred ones that have become the real module."""
    for module in modules:
        became_real = hasattr(module, "executing") and not isinstance(module, Deferred)
        if sys.modules.get(module.__name__) is module and not became_real:
            del sys.modules[module.__name__]


def compiler() -> types.ModuleType | None:
    """Return torch._dynamo if it was really imported, else None."""
    module = sys.modules.get(DYNAMO)
    return None if isinstance(module, Deferred) else module


class _AsOfCompiler(type):
    def __instancecheck__(cls, instance: object) -> bool:
        real = getattr(compiler(), "OptimizedModule", None)
        return real is not None and real is not cls and isinstance(instance, real)


class OptimizedModule(metaclass=_AsOfCompiler):
    """The type of a compiled module. As long as the compiler is not imported, nothing is an instance of it."""


def _defer_compiler() -> Deferred:
    if not any(isinstance(finder, PartsOfCompiler) for finder in sys.meta_path):
        sys.meta_path.insert(0, PartsOfCompiler())
    given = {"disable": _disable, "graph_break": _graph_break, "OptimizedModule": OptimizedModule}
    return Deferred(_spec_of(DYNAMO), **given)


def _graph_break(msg: str = "") -> None:
    """Do nothing: without the compiler there is no graph to break."""


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module(UTILS).is_compile_supported(device_type)


def _disable(fn=None, recursive: bool = True, **options):
    """Replace torch._dynamo.disable: call fn itself until the compiler is imported, then fn excluded from it."""
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
