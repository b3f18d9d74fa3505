"""Collective operations of the processes that train one network, besides the gradients.

All processes must call a function here at the same step. A single process gets its own value back at no cost. Values
that are not tensors travel between the processors, and do not synchronise with the devices.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def num_processes() -> int:
    """Return the number of connected processes; 1 before they are connected."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def any_process(value: bool) -> bool:
    """Return whether the value is true in any process."""
    if num_processes() == 1:
        return bool(value)
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def broadcast_object(value: T) -> T:
    """Return the first process's value (any picklable object) in all processes."""
    if num_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_objects(value: T) -> list[T]:
    """Return the values (any picklable objects) of all processes, by rank."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sums over all processes, without gradient. Does not synchronise with the device."""
    values = values.detach()
    if num_processes() == 1:
        return values
    if values.device.type == "xla":
        import torch_xla.core.xla_model as xm  # has its own environment

        return xm.all_reduce(xm.REDUCE_SUM, values)
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
