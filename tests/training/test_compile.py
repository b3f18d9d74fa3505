"""compile=true: its steps, a whole run, and what is refused."""

import functools
import shutil

import pandas as pd
import pytest
import torch

from carvision.errors import InputError
from carvision.training.compile import compile_steps, require_compiler, undo_compilation
from tests.small_runs import demo, train
from tests.training.test_module import FLIP, batch_of, lit_classifier

COMPILE = torch.compile


@pytest.fixture
def quick(monkeypatch):
    """Run torch.compile without code generation, which takes minutes; a list of the shapes traced, graph by graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs if value.ndim == 4 and value.shape[1] == 3])
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))
    yield graphs
    torch.compiler.reset()


def losses(folder) -> pd.DataFrame:
    table = pd.read_csv(folder / "history.csv")
    return table[[name for name in table if name.endswith("loss")]]


def test_only_training_steps_are_compiled_with_the_same_gradients(quick):
    lit, other = lit_classifier(augment=FLIP), lit_classifier(augment=FLIP)
    compile_steps(lit)
    for size in (16, 16, 16):
        gradients = []
        for module in (lit, other):
            module.train().zero_grad()
            module.training_step(batch_of(size), 0).backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(quick) == 1  # not a graph for each step
    lit.eval().validation_step(batch_of(7), 0)
    undo_compilation(lit)
    lit.train().training_step(batch_of(5), 0)
    assert len(quick) == 1


def test_a_missing_compiler_and_a_failing_one_are_reported_in_one_line(monkeypatch, quick):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CC", "no-such-compiler")
    for accelerator, line in (("cpu", "no-such-compiler is not on"), ("tpu", "XLA compiles")):
        with pytest.raises(InputError, match=line):
            require_compiler(accelerator, cuda=False)

    def broken(graph, inputs):
        raise NotImplementedError("no kernel\nof this kind")

    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=broken))
    lit = lit_classifier()
    compile_steps(lit)
    with pytest.raises(InputError, match=r"compile: .*no kernel of this kind.*use compile=false") as caught:
        lit.train().training_step(batch_of(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_compiled_run_has_the_keys_and_metrics_of_the_plain_one_and_resumes(demo_photos, tmp_path):
    """Runs the C++ compiler: half a minute to two minutes, or seconds if torch has the code in its cache."""
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine")
    overrides = [*demo(demo_photos), "callbacks.ema_decay=0.9"]
    plain, folder = (train(tmp_path / f"{flag}", *overrides, f"compile={flag}") for flag in ("false", "true"))
    states = [torch.load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (plain, folder)]
    assert list(states[0]) == list(states[1])
    pd.testing.assert_frame_equal(losses(folder), losses(plain), rtol=0.02)
    assert not losses(folder).equals(losses(plain))  # else nothing was compiled
    assert "compile: the first step took" in (folder / "run.log").read_text()
    for _ in range(2):
        parts = train(tmp_path / "parts", *overrides, "compile=true", "run.max_epochs_per_start=1")
    pd.testing.assert_frame_equal(losses(parts), losses(folder))
