"""Make runs repeatable to the bit on the same machine, for `deterministic=true`."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from carvision.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read when cuBLAS starts, which is not deterministic without it
REPEATABLE = (":4096:8", ":16:8")


def set_deterministic(wanted: bool) -> None:
    """Turn torch's deterministic algorithms on or off. Call before anything runs on a GPU. Operations without a
    deterministic form then raise RuntimeError."""
    if wanted and os.environ.setdefault(WORKSPACE, REPEATABLE[0]) not in REPEATABLE:
        raise InputError(
            f"deterministic: the environment variable {WORKSPACE}={os.environ[WORKSPACE]} lets matrix products differ; "
            f"unset it, or set it to {' or '.join(REPEATABLE)}"
        )
    if torch.are_deterministic_algorithms_enabled() != wanted:  # the call imports torch's compiler
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        torch.backends.cudnn.benchmark = False  # it chooses kernels by timing


@contextlib.contextmanager
def nondeterministic_operation_errors() -> Iterator[None]:
    """Turn the RuntimeError of an operation without a deterministic form into an InputError that names it."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        other = "model.pool=avg" if "adaptive_max_pool" in found[1] else "another network"
        raise InputError(
            f"deterministic: {found[1]} has no form that is repeatable to the bit on this device; "
            f"choose {other}, or deterministic=false"
        ) from error
