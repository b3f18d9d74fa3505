"""Shard weights, gradients and optimizer state over the processes, for trainer=fsdp.

Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277. Photos are divided as with trainer=ddp; a block's weights are
gathered when it is computed, and dropped afterwards. Checkpoints and the model file are those of any run.
"""

import sys
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed as dist
from torch import nn

from carvision.errors import InputError
from carvision.models.classifier import classifier_from
from carvision.training.module import LitClassifier
from carvision.training.optim import OPTIMIZERS

MIN_BLOCKS = 8  # gathered separately, if the network has so many


def check_fsdp(cfg: dict, precision: str) -> None:
    """Raise InputError for options that would be wrong with sharded weights, or have not been tried.

    precision: trainer.precision, resolved for this machine.
    """
    optimizer = cfg["optimizer"]
    refused = {
        "phases: one phase alone": cfg["phases"] is not None and len(cfg["phases"]) > 1,
        "callbacks.ema_decay: no averages": cfg["callbacks"]["ema_decay"] is not None,
        "optimizer.sam_rho: not": bool(optimizer.get("sam_rho")),
        f"optimizer.name: only {', '.join(OPTIMIZERS)}": optimizer["name"] not in OPTIMIZERS,
        "compile: not": cfg["compile"],
        "loss.head_weights: no learned weights": cfg["loss"]["head_weights"] == "learned",
        f"trainer.precision: only 32-true and bf16-mixed, not {precision},": precision not in ("32-true", "bf16-mixed"),
    }
    for what, wrong in refused.items():
        if wrong:
            raise InputError(f"{what} with trainer=fsdp; trainer=ddp has no such limit")


def create_strategy() -> ModelParallelStrategy:
    """Create Lightning's strategy. The Trainer sets its sizes later, see enable_sharding."""
    return ModelParallelStrategy(tensor_parallel_size=1, save_distributed_checkpoint=False)


def enable_sharding(trainer: pl.Trainer, lit: LitClassifier) -> None:
    """Let Lightning shard the weights once the processes are connected. Call before the Trainer fits."""
    assert isinstance(trainer.strategy, ModelParallelStrategy)
    trainer.strategy._data_parallel_size = trainer.num_devices * trainer.num_nodes
    lit.configure_model = partial(shard, lit)  # Lightning calls it once a process


def shard(lit: LitClassifier) -> None:
    """Shard the network's weights over the processes."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # late import: takes 0.5 s

    if not any(_is_sharded(p) for p in lit.model.parameters()):
        lit.model.to(memory_format=torch.contiguous_format)  # FSDP requires it
        assert lit.device_mesh is not None
        mesh = lit.device_mesh["data_parallel"]
        for block in blocks_of(lit.model.backbone):
            fully_shard(block, mesh=mesh)
        fully_shard(lit.model, mesh=mesh)
        register_fsdp_forward_method(lit.model, "outputs")


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights are gathered together: the largest consecutive parts of the network with at most
    1 / MIN_BLOCKS of the weights, ignoring parts below 0.1 %."""
    limit, least = _size(backbone) // MIN_BLOCKS, _size(backbone) // 1000

    def within(module: nn.Module) -> list[nn.Module]:
        found = []
        for child in module.children():
            inner = within(child)
            covered = sum(map(_size, inner))
            small = _size(child) <= limit or covered < _size(child) / 2
            found += [child] if _size(child) > least and small and _is_called_alone(child, module) else inner
        return found

    return within(backbone)


def _is_called_alone(child: nn.Module, parent: nn.Module) -> bool:
    """Return whether the child is certainly called as a module, which gathers its weights: an element of a sequence or
    list, or one of several modules of a type. Layers within a block may not be (attention may read their weights)."""
    if isinstance(parent, nn.Sequential):
        return True
    if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    of_a_kind = sum(type(other) is type(child) for other in parent.children())
    return isinstance(parent, nn.ModuleList) or (of_a_kind > 1 and any(child.children()))


def unshard(lit: LitClassifier) -> None:
    """Replace the sharded network by a whole one with random weights in each process. Call after training."""
    if any(_is_sharded(p) for p in lit.model.parameters()):
        lit.model = classifier_from(lit.model.description)
        lit.configure_model = lambda: None  # Lightning requires one


class SyncStatistics(pl.Callback):
    """Broadcast the first process's batch-norm statistics before validation, as with trainer=ddp."""

    def on_validation_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        for buffer in module.model.buffers():
            dist.broadcast(buffer, src=0)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_sharded(parameter: nn.Parameter) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")  # not imported: nothing is sharded
    return tensor is not None and isinstance(parameter, tensor.DTensor)
