"""On XLA's CPU device, in the environment of scripts/setup_tpu.sh; scripts/test_tpu.sh runs these."""

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch_xla") else ["test_*.py"]
if find_spec("torch_xla"):  # which reads these when it is imported
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles in half the time
