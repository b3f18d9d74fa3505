"""On XLA's CPU device, in the environment of scripts/setup_tpu.sh; scripts/test_tpu.sh runs them."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HAS_XLA = find_spec("torch_xla") is not None
if HAS_XLA:
    # Read when torch-xla is imported
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in half the time


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and not HAS_XLA:
            item.add_marker(pytest.mark.skip(reason="no torch-xla here; scripts/test_tpu.sh runs these"))


@pytest.fixture
def counted(monkeypatch):
    """A list, to which each fit of this test adds its Counting."""
    from carvision.training.distributed import tpu
    from tests.tpu import counting

    fits = []
    monkeypatch.setattr(tpu, "Steps", lambda: fits.append(counting.Counting()) or fits[-1])
    return fits
