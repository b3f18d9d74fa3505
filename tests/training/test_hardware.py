"""Precision, deterministic=true, trainer.profiler, compile=true, data.batch_size=auto. GPUs and memory: simulated."""

import functools
import gzip
import json
import os
import shutil

import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning.plugins.precision import Precision

from carvision.errors import InputError
from carvision.training import batch_size
from carvision.training.batch_size import find_batch_size
from carvision.training.compile import compile_steps, require_compiler, undo_compilation
from carvision.training.hardware import resolve_precision, set_deterministic
from carvision.training.module import LitClassifier
from carvision.training.trainer import trainer_values
from tests.small_runs import SMALL, config, demo, refuse, train
from tests.training.run.test_killed_runs import DEMANDING, assert_same_run
from tests.training.test_module import FLIP, batch_of, lit_classifier, phases


def test_auto_is_bf16_if_all_gpus_of_the_run_have_it_and_float16_on_others(monkeypatch):
    def gpus(*capabilities: tuple[int, int]) -> None:
        """Pretend so many GPUs of these compute capabilities."""
        for name, answer in (
            ("is_available", lambda: bool(capabilities)), ("device_count", lambda: len(capabilities)),
            ("get_device_capability", lambda device=None: capabilities[device]),
            ("is_bf16_supported", lambda *_: True),  # as it says where bf16 is emulated
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, answer)

    gpus((8, 0))
    assert resolve_precision("auto", "gpu") == resolve_precision("auto", "auto") == "bf16-mixed"
    assert resolve_precision("auto", "cpu") == resolve_precision("32-true", "gpu") == "32-true"
    gpus((9, 0), (7, 5))
    found = [resolve_precision("auto", "gpu", devices) for devices in (2, [0], [1])]
    assert found == ["16-mixed", "bf16-mixed", "16-mixed"]
    assert resolve_precision("auto", "gpu", 2, "fsdp") == "32-true"
    gpus()
    assert resolve_precision("auto", "auto") == "32-true"
    with pytest.raises(InputError, match=r"trainer\.precision: only 32-true and bf16-mixed, not 16-mixed, with"):
        trainer_values(config("trainer=fsdp", "trainer.precision=16-mixed", "data=demo"), [])


def test_a_run_reports_its_precision_and_the_parts_of_training(demo_photos, tmp_path):
    auto = ["trainer.precision=auto", "trainer.profiler=simple", "trainer.max_epochs=1"]
    folder = train(tmp_path / "run", *demo(demo_photos), *auto)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["hardware"] == {"device": "cpu", "precision": "32-true"}
    table = (folder / "profile.txt").read_text()
    assert table.count("run_training_batch") == 1 and "train_dataloader_next" in table and "test_step" in table


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.slow
def test_another_process_with_another_number_of_workers_gives_the_same_bits(run_module, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *DEMANDING, "data.sampler=balanced", "deterministic=true"]
    a, b = train(tmp_path / "a", *overrides), tmp_path / "b"
    several = [*SMALL, *overrides, "data.num_workers=2", f"run.dir={b}"]
    run_module("carvision.train", *several, "run.report=false", check=0, env={"PYTHONHASHSEED": "1"})
    assert_same_run(a, b)
    assert (a / "splits.csv").read_bytes() == (b / "splits.csv").read_bytes()


def test_an_operation_without_a_deterministic_form_is_one_line(demo_photos, tmp_path, monkeypatch):
    def step(self, batch, batch_idx):
        return torch.zeros(3).put_(torch.tensor([1]), torch.ones(1)).sum()  # refused on the CPU, too

    monkeypatch.setattr(LitClassifier, "training_step", step)
    overrides = [*demo(demo_photos), "deterministic=true"]
    refuse(r"^deterministic: put_ has no form .* or deterministic=false", tmp_path / "run", *overrides)
    assert torch.backends.cudnn.deterministic and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    refuse(r"CUBLAS_WORKSPACE_CONFIG=:0:0 .*:4096:8 or :16:8", tmp_path / "other", *overrides)
    set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_torch_writes_a_trace_of_three_steps_and_a_table(demo_photos, tmp_path):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.profiler=torch")
    with gzip.open(folder / "profile" / "trace.pt.trace.json.gz") as opened:
        names = {str(event.get("name")) for event in json.load(opened)["traceEvents"]}
    assert {n for n in names if n.startswith("ProfilerStep")} == {f"ProfilerStep#{step}" for step in (12, 13, 14)}
    assert "aten::convolution_backward" in names and "aten::" in (folder / "profile.txt").read_text()


COMPILE = torch.compile


@pytest.fixture
def quick(monkeypatch):
    """Run torch.compile without code generation, which takes minutes; a list of the graphs traced."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
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
    for _ in range(2):
        parts = train(tmp_path / "parts", *overrides, "compile=true", "run.max_epochs_per_start=1")
    pd.testing.assert_frame_equal(losses(parts), losses(folder))


@pytest.fixture
def small_memory(monkeypatch):
    """Let steps of more than 20 photos run out of memory; a list of the sizes and phases tried."""
    tried = []
    real = LitClassifier.training_step

    def step(self, batch, batch_idx):
        tried.append((len(batch["images"]), self.phase["name"]))
        if len(batch["images"]) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", step)
    return tried


def test_doubled_sizes_are_tried_in_each_phase_and_change_nothing(small_memory):
    parts = [{**phases()[0], "name": name, "train_layers": layers} for name, layers in (("a", "none"), ("b", "all"))]
    lit = lit_classifier(heads=("make", "model", "speed"), augment=FLIP | {"mixup": 0.2}, phases=parts)
    before = {name: value.clone() for name, value in lit.state_dict().items()}
    photo = {**batch_of(1), "draws": torch.rand(1, lit.augment.num_draws), "bad": []}
    random = torch.get_rng_state().clone()
    assert find_batch_size(lit, Precision(), torch.device("cpu"), photo, limit=1000) == 16
    assert small_memory == [(size, phase) for size in (2, 4, 8, 16) for phase in "aabb"] + [(32, "a")]
    assert find_batch_size(lit, Precision(), torch.device("cpu"), photo, limit=9) == 8
    assert all(torch.equal(value, before[name]) for name, value in lit.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and lit.phase["name"] == "a"
    assert all(parameter.grad is None for parameter in lit.parameters())
    assert not lit.train_metrics.penalty.update_called


def test_auto_needs_a_gpu_with_memory_for_a_photo(demo_photos, tmp_path, monkeypatch):
    auto = [*demo(demo_photos), "data.batch_size=auto"]
    with pytest.raises(InputError, match=r"auto looks for .* has none; give a number, such as data\.batch_size=64"):
        train(tmp_path / "run", *auto)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("carvision.training.trainer.require_gpu", lambda trainer: None)
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: 0)
    refuse("not even one photo fits on the GPU", tmp_path / "run", *auto)


def test_the_size_found_is_stored_and_used_by_a_resumed_run(demo_photos, tmp_path, monkeypatch, small_memory):
    monkeypatch.setattr("carvision.training.trainer.require_gpu", lambda trainer: None)
    overrides = [*demo(demo_photos), "data.batch_size=auto", "run.max_epochs_per_start=1"]
    folder = train(tmp_path / "run", *overrides)
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["batch_size"] == 16
    assert small_memory[-1][0] == 16
    small_memory.clear()
    monkeypatch.setattr(batch_size, "find_batch_size", lambda *_: pytest.fail("a second search"))
    train(folder, *overrides)  # with "auto" again
    assert (folder / "metrics.json").exists() and {size for size, _ in small_memory} == {16}


def test_batches_of_one_photo_with_batch_norm_are_refused(demo_photos, tmp_path):
    phases = ["model.train_layers=none", "+phases.a={epochs:1}", "+phases.b={epochs:1,train_layers:all}"]
    with pytest.raises(InputError, match=r"data\.batch_size: batches of one photo can't train batch norm"):
        train(tmp_path / "run", *demo(demo_photos), "data.batch_size=1", *phases)
    assert not (tmp_path / "run").exists()
