"""Compile the training step's network and augmentation with torch.compile, for `compile=true`."""

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Callable

import pytorch_lightning as pl
import torch

from carvision.errors import InputError, one_line
from carvision.training.module import LitClassifier

log = logging.getLogger(__name__)


def require_compiler(accelerator: str, cuda: bool) -> None:
    """Raise InputError if torch.compile lacks what it needs: a C++ compiler, or for a GPU Triton and a C compiler."""
    if accelerator == "tpu":
        raise InputError("compile: XLA compiles every step for a TPU as it is; leave compile=false")
    if cuda and importlib.util.find_spec("triton") is None:
        raise InputError("compile: torch.compile needs Triton on a GPU; pip install triton, or leave compile=false")
    variable, usual = ("CC", ["gcc", "clang"]) if cuda else ("CXX", ["g++", "clang++"])
    wanted = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in wanted):
        raise InputError(
            f"compile: torch.compile needs a compiler, and {' or '.join(wanted)} is not on this machine; install one, "
            f"name another with {variable}=, or leave compile=false"
        )


def compile_steps(lit: LitClassifier) -> None:
    """Compile the training step of `lit` itself, which keeps its state_dict keys.

    Only training steps are compiled, as one graph of static shapes (two with SAM). Validation, a small part of the
    work, would need another graph that takes as long to compile. On the CPU augmentation stays uncompiled: it works in
    pieces that fit the processor's cache.
    """
    # Each phase trains other parameters and needs its own graph. torch.compile silently falls back to eager after a few
    # recompilations, so drop earlier graphs.
    torch.compiler.reset()
    plain, compiled = lit.outputs, with_input_errors(torch.compile(lit.outputs, dynamic=False))
    # Shadows the method, of which torch.nn.Module knows nothing
    lit.outputs = lambda *inputs: (compiled if lit.training else plain)(*inputs)  # pyrefly: ignore[bad-assignment]
    if lit.device.type != "cpu":
        lit.augmented = with_input_errors(torch.compile(lit.augmented, dynamic=False))


def undo_compilation(lit: LitClassifier) -> None:
    """Restore the uncompiled methods."""
    for name in ("outputs", "augmented"):
        lit.__dict__.pop(name, None)  # the compiled function shadowed the method


def with_input_errors(function: Callable) -> Callable:
    """Return the function with torch.compile's own errors turned into InputError."""

    def call(*args):
        try:
            return function(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            text = one_line(error, 300)
            raise InputError(f"compile: torch.compile can't build this network ({text}); use compile=false") from error

    return call


class FirstStep(pl.Callback):
    """Measure the first step of each phase, which includes CUDA's set-up and, with `compile`, compilation.

    seconds: the sum over all phases.
    """

    def __init__(self, compile: bool):
        self.compile = compile
        self.seconds = 0.0
        self.steps: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.steps = []
        if self.compile:
            compile_steps(module)

    def on_train_batch_start(self, trainer: pl.Trainer, module: LitClassifier, batch: dict, batch_idx: int) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: LitClassifier, outputs, batch: dict, batch_idx) -> None:
        if len(self.steps) == 2:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()  # only after the first two steps
        self.steps.append(time.perf_counter() - self.started)
        if len(self.steps) == 1:
            self.seconds += self.steps[0]
        elif self.compile:
            log.info("compile: the first step took %.1f s, the second %.2f s", *self.steps)

    def teardown(self, trainer: pl.Trainer, module: LitClassifier, stage: str) -> None:
        undo_compilation(module)
