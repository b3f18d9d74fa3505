"""Collective operations of the processes that train one network, besides the gradients.

All processes must call a function here at the same step. A single process gets its own value back at no cost.
"""

import sys
from typing import Any, TypeVar, cast

import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def num_processes() -> int:
    """Return the number of connected processes; 1 before they are connected."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return sys.modules["torch_xla.runtime"].world_size() if "torch_xla.runtime" in sys.modules else 1


def any_process(value: bool) -> bool:
    """Return whether the value is true in any process. Synchronises with the device: not for every step."""
    if num_processes() == 1:
        return bool(value)
    if not dist.is_initialized():
        return _reduce_on_xla("any_process", bool(value), any)
    flag = torch.tensor(int(value), device=_device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def broadcast_object(value: T) -> T:
    """Return the first process's value (any picklable object) in all processes. Synchronises with the device."""
    if num_processes() == 1:
        return value
    if not dist.is_initialized():
        return _reduce_on_xla("broadcast_object", value, lambda values: values[0])
    values = [value]
    dist.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values (any picklable objects) of all processes, by rank. Synchronises with the device."""
    if num_processes() == 1:
        return [value]
    if not dist.is_initialized():
        return _reduce_on_xla("gather_objects", value, list)
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sums over all processes, without gradient. Does not synchronise with the device."""
    values = values.detach()
    if num_processes() == 1:
        return values
    if not dist.is_initialized():
        model = sys.modules["torch_xla.core.xla_model"]
        return model.all_reduce(model.REDUCE_SUM, values)
    values = values.clone()
    dist.all_reduce(values)
    return values


def gather_rows(values: Tensor) -> Tensor:
    """Return (B * W, ...) from (B, ...) of each of W processes: the first row of each, then the second of each, ..."""
    if num_processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(num_processes())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def disable_lightning_signal_handling() -> None:
    """Replace Lightning's signal handling by nothing: run.stopping has another, on which all processes agree.

    With several processes, Lightning (2.6) broadcasts at every step whether the first got SIGTERM, and reads the
    answer, so that each step waits for the device. Its handler, set when training starts, broadcasts from wherever the
    process is, which can deadlock.
    """
    cast(Any, _TrainingEpochLoop)._broadcast_sigterm_tensor = lambda loop: None
    cast(Any, _SignalConnector).register_signal_handlers = lambda connector: None


def _device() -> torch.device:
    """Return the device of tensors that the processes exchange."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _reduce_on_xla(tag: str, value, reduce):
    return sys.modules["torch_xla.core.xla_model"].mesh_reduce(f"carvision.{tag}", value, reduce)
