"""Search the largest batch whose training step fits on the GPU, for `data.batch_size=auto`."""

import contextlib
import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from carvision.data.loading.dataset import Batch
from carvision.errors import InputError
from carvision.training.compile import compile_steps
from carvision.training.hardware import uses_cuda
from carvision.training.module import LitClassifier, datamodule_of
from carvision.training.run.folder import read_config

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.9  # of the free memory; the rest is for fragmentation, validation, and ddp's buffers
SMALL_SIZES = (1, 2, 4)  # tried beside the multiples of 8, with which the GPU's matrix units are fastest


class FindBatchSize(pl.Callback):
    """Replace the datamodule's batch size "auto" before the first phase; all processes take the smallest. Refuse a size
    with which the network can't be trained.

    store: called with the size, in the first process only. compile: whether the run trains compiled code.
    """

    def __init__(self, store: Callable[[int], None], compile: bool):
        self.store, self.compile = store, compile

    def setup(self, trainer: pl.Trainer, module: LitClassifier, stage: str) -> None:
        if stage != "fit":
            return
        data = datamodule_of(trainer)
        if data.batch_size == "auto":
            self._find(trainer, module)
        require_batch_norm_size(module, data.train_batch_size)

    def _find(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        data = datamodule_of(trainer)
        began = time.perf_counter()
        limit = max(1, round(len(data.datasets["train"].paths) * data.epoch_fraction) // trainer.world_size)
        require_batch_norm_size(module, limit)
        device = trainer.strategy.root_device
        number = find_batch_size(module, trainer.precision_plugin, device, limit, self.compile)
        number = int(trainer.strategy.reduce(torch.tensor(number, device=device), reduce_op="min"))
        if number == 0:
            raise InputError(
                "data.batch_size: auto finds that not even one photo fits on the GPU (two with batch norm); use a "
                "smaller data.image_px or model.backbone, or train fewer layers with model.train_layers"
            )
        bound = ", as many as there are training photos" if number > limit - 8 else ""
        log.info("data.batch_size=auto: %d on each device%s (%.0f s)", number, bound, time.perf_counter() - began)
        data.batch_size = number
        if trainer.is_global_zero:
            self.store(number)


def require_gpu(trainer: dict) -> None:
    """Raise InputError if the search is impossible: no GPU, or a strategy that shards the network.

    trainer: the keys of conf/trainer.
    """
    if not uses_cuda(trainer["accelerator"]):
        raise InputError(
            "data.batch_size: auto looks for the largest batch that fits on a GPU, and this run has none; give a "
            "number, such as data.batch_size=64"
        )
    if trainer["strategy"] != "auto" and not str(trainer["strategy"]).startswith("ddp"):
        raise InputError(
            f"data.batch_size: auto tries the whole network on one GPU, which is not what trainer.strategy="
            f"{trainer['strategy']} trains; give a number"
        )


def with_batch_size(cfg: dict, number: int) -> dict:
    """Return a copy of cfg with data.batch_size=number."""
    return {**cfg, "data": {**cfg["data"], "batch_size": number}}


def restore_batch_size(cfg: dict, folder: Path) -> dict:
    """Return cfg with "auto" replaced by the batch size that an earlier start of the run in `folder` found, if any."""
    if cfg["data"]["batch_size"] != "auto":
        return cfg
    return with_batch_size(cfg, read_config(folder)["data"].get("batch_size", "auto"))


def require_batch_norm_size(lit: LitClassifier, size: int) -> None:
    """Raise InputError if batches of a single photo would train a batch norm in any phase: the variance of one value is
    0."""
    names = [] if size > 1 else trained_batch_norms(lit)
    if names:
        raise InputError(
            f"data.batch_size: batches of one photo can't train batch norm ({names[0]} and {len(names) - 1} more); "
            "give 2 or more and as many training photos to each process, or do without: model.freeze_statistics=true "
            "for the backbone, batch_norm=false for other layers"
        )


def trained_batch_norms(lit: LitClassifier) -> list[str]:
    """Return the names of the batch norms that use batch statistics in any phase."""
    model, found = lit.model, {}
    was_training = model.training
    model.train()
    for phase in (*lit.phases, lit.phase):  # the current phase last, to restore it
        model.set_trained(phase["train_layers"])
        found |= {name: None for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}
    model.train(was_training)
    return list(found)


def find_batch_size(lit: LitClassifier, precision, device: torch.device, limit: int, compile: bool) -> int:
    """Return the largest batch size of which two training steps fit in MEMORY_FRACTION of the device's free memory, in
    the phase that trains the most parameters; 0 if none does.

    precision: Lightning's precision plugin. limit: the largest size to try. compile: try the size found again with
    compiled code, which takes minutes a size, so that only sizes that fit uncompiled are compiled. `lit` does not
    change: a copy trains on random images, and the random generators are restored.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), memory_limit(device, MEMORY_FRACTION):
        found = _search(precision.convert_module(copy.deepcopy(lit)).to(device), precision, device, limit, compile)
        free_memory()
    return found


def _search(lit: LitClassifier, precision, device: torch.device, limit: int, compile: bool) -> int:
    lit.start_phase(largest_phase(lit))
    least = 2 if trained_batch_norms(lit) else 1
    step = create_step(lit.train(), precision, device)
    found = largest_batch(lambda size: size >= least and fits_in_memory(step, size), limit)
    if compile and found:
        compile_steps(lit)
        while found and not fits_in_memory(step, found):
            found = found * 7 // 8 // 8 * 8 or found // 2
        torch.compiler.reset()
    return found


def largest_phase(lit: LitClassifier) -> int:
    """Return the index of the phase that trains the most parameters."""
    counts = []
    for number in range(len(lit.phases)):
        lit.start_phase(number)
        counts.append(sum(p.numel() for p in lit.parameters() if p.requires_grad))
    return counts.index(max(counts))


def create_step(lit: LitClassifier, precision, device: torch.device) -> Callable[[int], None]:
    """Return step(size), which trains twice on a random batch: only the second step holds the optimizer's state beside
    the gradients."""
    optimizer = lit.create_phase_optimizer()

    def step(size: int) -> None:
        batch = precision.convert_input(random_batch(lit, size, device))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            with precision.train_step_context():
                loss = lit.training_step(batch, 0)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)  # pyrefly: ignore[no-matching-overload] - torch says float, and means a tensor, too
        optimizer.zero_grad()

    return step


def random_batch(lit: LitClassifier, size: int, device: torch.device) -> Batch:
    """Return a random batch with the keys of a PhotoDataModule batch, without "reasons"."""
    px = lit.preprocessing.size_px
    targets = {
        name: torch.randint(len(label["ids"]), (size,), device=device)
        if "ids" in label
        else torch.randn(size, device=device)
        for name, label in lit.labels.items()
    }
    return {
        "images": torch.randint(256, (size, px, px, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2),
        "targets": targets,
        "index": torch.arange(size, device=device),
        "draws": torch.rand(size, lit.augment.num_draws, device=device),
        "valid": torch.ones(size, dtype=torch.bool, device=device),
    }


def largest_batch(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest of 1, 2, 4 and the multiples of 8, up to `limit`, that fits; 0 if none does.

    fits: called with doubling sizes, then by bisection. Must be monotonic: whatever fits, fits in smaller sizes.
    """
    sizes = [size for size in SMALL_SIZES if size <= limit] + list(range(8, limit + 1, 8))
    good, bad = -1, len(sizes)  # indices of the largest known to fit and the smallest known not to
    index = min(len(SMALL_SIZES), bad - 1)  # 8, or the last
    while good < index < bad:
        if fits(sizes[index]):
            good, index = index, min(2 * index - len(SMALL_SIZES) + 1, bad - 1)  # twice the size, or the last
        else:
            bad = index
    while bad - good > 1:
        index = (good + bad) // 2
        good, bad = (index, bad) if fits(sizes[index]) else (good, index)
    return sizes[good] if good >= 0 else 0


def fits_in_memory(step: Callable[[int], None], size: int) -> bool:
    """Return whether step(size) runs without running out of memory."""
    try:
        step(size)
        fits = True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    free_memory()  # only now: the error has released the tensors of the failed step
    log.debug("data.batch_size=auto: %d %s", size, "fits" if fits else "does not fit")
    return fits


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch or a library below it ran out of memory, or a tensor exceeds the 2 ** 31 elements that some
    kernels support."""
    messages = ("out of memory", "ALLOC_FAILED", "canUse32BitIndexMath")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)


@contextlib.contextmanager
def memory_limit(device: torch.device, share: float) -> Iterator[None]:
    """Limit torch to this share of the device's currently free memory within the context. No effect off CUDA."""
    if device.type != "cuda":
        yield
        return
    free_memory()
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((reserved + share * free) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.reset_peak_memory_stats(device)  # metrics.json reports the run's peak, not the search's


def free_memory() -> None:
    """Release unused tensors and torch's cached GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
