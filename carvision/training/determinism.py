"""deterministic=true: the same command gives the same run, to the bit, on the same machine."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from carvision.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read when CUDA's library of matrix products starts; without it, it may vary
REPEATABLE = (":4096:8", ":16:8")


def set_deterministic(wanted: bool) -> None:
    """To be called before anything runs on a GPU. Operations without a deterministic form then raise RuntimeError."""
    if wanted and os.environ.setdefault(WORKSPACE, REPEATABLE[0]) not in REPEATABLE:
        raise InputError(
            f"deterministic: the environment variable {WORKSPACE}={os.environ[WORKSPACE]} lets matrix products differ; "
            f"unset it, or set it to {' or '.join(REPEATABLE)}"
        )
    if torch.are_deterministic_algorithms_enabled() != wanted:  # setting it imports torch's compiler
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        torch.backends.cudnn.benchmark = False  # which would choose the kernels by a race


@contextlib.contextmanager
def nondeterministic_operation_errors() -> Iterator[None]:
    """Around training: an operation that has no deterministic form ends as one line that names it."""
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
