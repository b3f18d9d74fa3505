"""`data.batch_size: auto`: the largest batch whose training step fits on the GPU."""

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

from carvision.errors import InputError
from carvision.training.compiling import compile_steps
from carvision.training.hardware import uses_cuda
from carvision.training.lit_classifier import LitClassifier
from carvision.training.run_folder import read_config

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.9  # of the free memory: what is left is for fragments, validation, and the buffers of ddp
SMALL_SIZES = (1, 2, 4)  # sizes that are tried beside the multiples of 8, which the GPU's matrix units are fastest with


def require_gpu(trainer: dict) -> None:
    """trainer: the keys of conf/trainer. Raises InputError where the search can't be made."""
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


def largest_batch(fits: Callable[[int], bool], limit: int) -> int:
    """The largest of 1, 2, 4 and the multiples of 8, up to `limit`, that fits; 0 if none does.

    fits: is asked for sizes that double, then for halves of what is between. What fits must fit in smaller sizes too.
    """
    sizes = [size for size in SMALL_SIZES if size <= limit] + list(range(8, limit + 1, 8))
    good, bad = -1, len(sizes)  # places of the largest that fits and of the smallest that does not, so far
    place = min(len(SMALL_SIZES), bad - 1)  # 8, or the last
    while good < place < bad:
        if fits(sizes[place]):
            good, place = place, min(2 * place - len(SMALL_SIZES) + 1, bad - 1)  # twice the size, or the last
        else:
            bad = place
    while bad - good > 1:
        place = (good + bad) // 2
        good, bad = (place, bad) if fits(sizes[place]) else (good, place)
    return sizes[good] if good >= 0 else 0


def find_batch_size(lit: LitClassifier, precision, device: torch.device, limit: int, compile: bool) -> int:
    """The largest batch of which two steps of the phase that trains the most fit in MEMORY_FRACTION of the device's
    free memory; 0 if none does.

    precision: Lightning's plugin for it. compile: what is found is tried again with compiled code, which takes minutes
    for each size, so that only sizes are tried which fit without it.
    Nothing of `lit` changes: a copy of it trains, on random photos, and the random generators are set back.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), memory_limit(device, MEMORY_FRACTION):
        found = _search(precision.convert_module(copy.deepcopy(lit)).to(device), precision, device, limit, compile)
        free_memory()
    return found


def _search(twin: LitClassifier, precision, device: torch.device, limit: int, compile: bool) -> int:
    twin.start_phase(largest_phase(twin))
    least = 2 if trained_batch_norms(twin) else 1
    step = create_step(twin.train(), precision, device)
    found = largest_batch(lambda size: size >= least and fits_in_memory(step, size), limit)
    if compile and found:
        compile_steps(twin)
        while found and not fits_in_memory(step, found):
            found = found * 7 // 8 // 8 * 8 or found // 2
        torch.compiler.reset()
    return found


def largest_phase(lit: LitClassifier) -> int:
    """The number of the phase with the most parameters that are trained."""
    counts = []
    for number in range(len(lit.hparams.phases)):
        lit.start_phase(number)
        counts.append(sum(p.numel() for p in lit.parameters() if p.requires_grad))
    return counts.index(max(counts))


def create_step(lit: LitClassifier, precision, device: torch.device) -> Callable[[int], None]:
    """step(size) trains twice on a random batch: only the second time the optimizer's state is there beside the
    gradients."""
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
            optimizer.step(closure)
        optimizer.zero_grad()

    return step


def random_batch(lit: LitClassifier, size: int, device: torch.device) -> dict:
    """As those of Photos, without "bad"."""
    px = lit.hparams.preprocessing["size_px"]
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


def fits_in_memory(step: Callable[[int], None], size: int) -> bool:
    try:
        step(size)
        fits = True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    free_memory()  # only here, where the error no longer holds the tensors of the step that failed
    log.debug("data.batch_size=auto: %d %s", size, "fits" if fits else "does not fit")
    return fits


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of torch, of the libraries beneath it; or a tensor of more than 2 ** 31 values, which some kernels don't take."""
    words = ("out of memory", "ALLOC_FAILED", "canUse32BitIndexMath")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextlib.contextmanager
def memory_limit(device: torch.device, share: float) -> Iterator[None]:
    """Within it, torch runs out of memory when it has taken this share of what is free now."""
    if device.type != "cuda":
        yield
        return
    free_memory()
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((mine + share * free) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.reset_peak_memory_stats(device)  # the peak that is reported is that of the run


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class FindBatchSize(pl.Callback):
    """Replaces the datamodule's batch size "auto" before the first phase; all processes take the smallest. Refuses a
    size with which the network can't be trained.

    store: is given the number, in the first process. compile: whether the run trains compiled code.
    """

    def __init__(self, store: Callable[[int], None], compile: bool):
        self.store, self.compile = store, compile

    def setup(self, trainer: pl.Trainer, pl_module: LitClassifier, stage: str) -> None:
        data = trainer.datamodule
        if stage != "fit":
            return
        if data.batch_size == "auto":
            self._find(trainer, pl_module)
        require_batch_norm_size(pl_module, data.train_batch_size)

    def _find(self, trainer: pl.Trainer, pl_module: LitClassifier) -> None:
        data = trainer.datamodule
        began = time.perf_counter()
        limit = max(1, round(len(data.photos["train"].paths) * data.epoch_fraction) // trainer.world_size)
        require_batch_norm_size(pl_module, limit)
        device = trainer.strategy.root_device
        number = find_batch_size(pl_module, trainer.precision_plugin, device, limit, self.compile)
        number = int(trainer.strategy.reduce(torch.tensor(number, device=device), reduce_op="min"))
        if number == 0:
            raise InputError(
                "data.batch_size: auto finds that not even one photo fits on the GPU, or two with batch norm; give a "
                "smaller data.image_px or model.backbone, or train fewer layers with model.train_layers"
            )
        bound = ", as many as there are training photos" if number > limit - 8 else ""
        log.info("data.batch_size=auto: %d on each device%s (%.0f s)", number, bound, time.perf_counter() - began)
        data.batch_size = number
        if trainer.is_global_zero:
            self.store(number)


def require_batch_norm_size(lit: LitClassifier, size: int) -> None:
    """Raises InputError where batches of one photo would train a batch norm, in any of the phases: one value has no
    spread that it could be divided by."""
    names = [] if size > 1 else trained_batch_norms(lit)
    if names:
        raise InputError(
            f"data.batch_size: batches of one photo can't train batch norm ({names[0]} and {len(names) - 1} more); "
            "give 2 or more and as many training photos to each process, or do without: model.freeze_statistics=true "
            "for the backbone, batch_norm=false for other layers"
        )


def trained_batch_norms(lit: LitClassifier) -> list[str]:
    """Names of the batch norms that take their statistics from the batches of some phase."""
    model, found = lit.model, {}
    was_training = model.training
    model.train()
    for phase in (*lit.hparams.phases, lit.phase):  # the last of them is the one at hand
        model.set_trained(phase["train_layers"])
        found |= {name: None for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}
    model.train(was_training)
    return list(found)


def with_batch_size(cfg: dict, number: int) -> dict:
    return {**cfg, "data": {**cfg["data"], "batch_size": number}}


def restore_batch_size(cfg: dict, folder: Path) -> dict:
    """cfg, with the number that an earlier start of the run has found in place of "auto"."""
    if cfg["data"]["batch_size"] != "auto":
        return cfg
    return with_batch_size(cfg, read_config(folder)["data"].get("batch_size", "auto"))
