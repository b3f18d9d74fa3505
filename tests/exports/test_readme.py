"""README.md's examples of loading a model elsewhere, run as they stand."""

import re

import pytest

from tests.conftest import ROOT

# The first line of each example.
MARKERS = (
    "# plain PyTorch: fine-tune", "# plain PyTorch: features", "# timm", "# Lightning", "# ONNX", "# torch.export",
    "# hub",
)  # fmt: skip


@pytest.mark.parametrize("marker", MARKERS)
def test_the_example_runs(marker, example_folder, monkeypatch):
    monkeypatch.chdir(example_folder)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    found = [block for block in blocks if block.startswith(f"{marker}\n")]
    assert len(found) == 1, f"README.md has {len(found)} examples that begin with {marker!r}"
    assert len(found[0].splitlines()) <= 12
    exec(compile(found[0], f"README.md, {marker}", "exec"), {"__name__": "__main__"})
