"""Search the largest batch whose training step fits on the GPU, for `data.batch_size=auto`."""

import contextlib
import copy
import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from carvision.data.loading.dataset import Batch
from carvision.errors import InputError
from carvision.training.hardware import uses_cuda
from carvision.training.module import LitClassifier, datamodule_of

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.9  # of the free memory; the rest is for fragmentation, validation, and ddp's buffers


class FindBatchSize(pl.Callback):
    """Replace the datamodule's batch size "auto" before the first phase; all processes take the smallest one found.
    Refuse a size with which the network can't be trained. store: called with the size, in the first process only."""

    def __init__(self, store: Callable[[int], None]):
        self.store = store

    def setup(self, trainer: pl.Trainer, module: LitClassifier, stage: str) -> None:
        data = datamodule_of(trainer)
        if stage != "fit":
            return
        if data.batch_size == "auto":
            device = trainer.strategy.root_device
            limit = max(1, round(len(data.datasets["train"].paths) * data.epoch_fraction) // trainer.world_size)
            require_batch_norm_size(module, limit)
            photo = data.datasets["train"][[(0, 0)]]
            number = find_batch_size(module, trainer.precision_plugin, device, photo, limit)
            number = int(trainer.strategy.reduce(torch.tensor(number, device=device), reduce_op="min"))
            if number == 0:
                raise InputError(
                    "data.batch_size: auto finds that not even one photo fits on the GPU (two with batch norm); use a "
                    "smaller data.image_px or model.backbone, or train fewer layers with model.train_layers"
                )
            log.info("data.batch_size=auto: %d on each device", number)
            data.batch_size = number
            if trainer.is_global_zero:
                self.store(number)
        require_batch_norm_size(module, data.train_batch_size)


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


def require_batch_norm_size(lit: LitClassifier, size: int) -> None:
    """Raise InputError if batches of a single photo would train a batch norm in any phase: the variance of one value is
    0."""
    if size == 1 and (names := trained_batch_norms(lit)):
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


def find_batch_size(lit: LitClassifier, precision, device: torch.device, photo: Batch, limit: int) -> int:
    """Return the largest power of two, up to `limit`, of which two training steps of each phase fit in MEMORY_FRACTION
    of the device's free memory; 0 if none does.

    precision: Lightning's precision plugin. photo: a batch of one photo, which is repeated. `lit` does not change: a
    copy is trained, and the random generators are restored.
    """
    found, size = 0, 2 if trained_batch_norms(lit) else 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []), memory_limit(device, MEMORY_FRACTION):
        trial = precision.convert_module(copy.deepcopy(lit)).to(device).train()
        while size <= limit and fits_in_memory(trial, precision, photo, size):
            found, size = size, 2 * size
        del trial
        free_memory()
    return found


def fits_in_memory(lit: LitClassifier, precision, photo: Batch, size: int) -> bool:
    """Return whether two training steps of each phase fit in memory: only the second holds the optimizer's state beside
    the gradients."""
    fits = True
    try:
        batch = precision.convert_input(repeat(photo, size, lit.device))
        for number in range(len(lit.phases)):
            lit.start_phase(number)
            lit.zero_grad()
            optimizer = lit.create_phase_optimizer()
            for _ in range(2):
                # pyrefly: ignore[no-matching-overload] - torch says float, and means a tensor, too
                optimizer.step(partial(compute_gradients, lit, optimizer, precision, batch))
    except RuntimeError as error:
        # Libraries below torch have messages of their own; some kernels take no more than 2 ** 31 elements
        messages = ("out of memory", "ALLOC_FAILED", "canUse32BitIndexMath")
        if not isinstance(error, torch.OutOfMemoryError) and not any(message in str(error) for message in messages):
            raise
        fits = False
    free_memory()  # only now: the error has released the tensors of the failed step
    return fits


def compute_gradients(lit: LitClassifier, optimizer: torch.optim.Optimizer, precision, batch: Batch) -> torch.Tensor:
    """Return the loss of the batch, with new gradients."""
    optimizer.zero_grad()
    with precision.train_step_context():
        loss = lit.training_step(batch, 0)
    loss.backward()
    return loss


def repeat(batch, size: int, device: torch.device):
    """Return a batch of one photo as a batch of `size` on the device, without what is no tensor."""
    if isinstance(batch, dict):
        return {key: repeat(value, size, device) for key, value in batch.items() if not isinstance(value, list)}
    repeated = batch.to(device).repeat(size, *[1] * (batch.ndim - 1))
    return repeated.to(memory_format=torch.channels_last) if batch.ndim == 4 else repeated


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
