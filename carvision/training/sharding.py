"""trainer=fsdp: each process keeps a part of every weight, of its gradient and of the optimizer's state.

Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277. The processes share the photos as under trainer=ddp; a block's
weights are gathered when it is computed, and dropped after it. Checkpoints and the model file are those of any run.
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
from carvision.training.lit_classifier import LitClassifier
from carvision.training.optimizers import OPTIMIZERS

MIN_BLOCKS = 8  # at least, in which weights are gathered, where the network has so many


def check_fsdp(cfg: dict, precision: str) -> None:
    """Raises InputError for what would not be right where weights are divided, or has not been tried.

    precision: what trainer.precision comes to on this machine.
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
    # The sizes are known only to the Trainer: see `enable_sharding`
    return ModelParallelStrategy(tensor_parallel_size=1, save_distributed_checkpoint=False)


def enable_sharding(trainer: pl.Trainer, lit: LitClassifier) -> None:
    """To be called before the Trainer fits: the weights are divided when the processes are connected."""
    trainer.strategy._data_parallel_size = trainer.num_devices * trainer.num_nodes
    lit.configure_model = partial(shard, lit)  # by Lightning, once a process


def shard(lit: LitClassifier) -> None:
    """Divides the weights of the network over the processes."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # only now: half a second

    if not any(_is_sharded(p) for p in lit.model.parameters()):
        lit.model.to(memory_format=torch.contiguous_format)  # which FSDP insists on
        mesh = lit.device_mesh["data_parallel"]
        for block in blocks_of(lit.model.backbone):
            fully_shard(block, mesh=mesh)
        fully_shard(lit.model, mesh=mesh)
        register_fsdp_forward_method(lit.model, "outputs")


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The parts whose weights are gathered together: of the parts that follow each other in the network, the largest
    with at most 1 / MIN_BLOCKS of the weights, and no crumbs."""
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
    """Whether it is surely called as a module, which is when its weights are gathered: an element of a sequence or a
    list, or one of several parts of a kind. Layers within a block are not always (attention may take their weights)."""
    if isinstance(parent, nn.Sequential):
        return True
    if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return False
    of_a_kind = sum(type(other) is type(child) for other in parent.children())
    return isinstance(parent, nn.ModuleList) or (of_a_kind > 1 and any(child.children()))


def unshard(lit: LitClassifier) -> None:
    """A network of its own in each process again, with random weights. To be called after training."""
    if any(_is_sharded(p) for p in lit.model.parameters()):
        lit.model = classifier_from(lit.model.description)
        lit.configure_model = lambda: None  # Lightning insists on one


class SyncStatistics(pl.Callback):
    """The statistics of batch norms are those of the first process wherever they are used, as under trainer=ddp."""

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for buffer in module.model.buffers():
            dist.broadcast(buffer, src=0)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_sharded(parameter: nn.Parameter) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")  # without which none is
    return tensor is not None and isinstance(parameter, tensor.DTensor)
