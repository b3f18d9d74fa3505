"""Environment variables that libraries read when torch is imported; to be set before."""

import os

DEFAULTS = {
    # Threads that wait sleep, instead of keeping the cores busy that the photo readers need. Steps took a tenth of the
    # time where other processes were at work on the same two cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Where one of several processes ends, torch would print its own calls on the way to the others, hundreds of lines
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def set_thread_defaults() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
