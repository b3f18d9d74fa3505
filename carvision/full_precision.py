"""Products in float32, for what near equal numbers are subtracted of."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Neither 16 bits nor TF32 on that kind of device, whatever a network may compute in."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
