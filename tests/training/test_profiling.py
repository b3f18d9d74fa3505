"""trainer.profiler on the CPU: the files it leaves in the run's folder."""

import gzip
import json

from tests.small_runs import demo, train


def test_simple_writes_a_table_of_the_parts_of_training(demo_photos, tmp_path):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.profiler=simple", "trainer.max_epochs=1")
    table = (folder / "profile.txt").read_text()
    assert table.count("run_training_batch") == 1 and "train_dataloader_next" in table and "test_step" in table
    assert "trainer.profiler=simple: " in (folder / "run.log").read_text()


def test_torch_writes_a_trace_of_three_steps_and_a_table(demo_photos, tmp_path):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.profiler=torch")
    file = folder / "profile" / "trace.pt.trace.json.gz"
    assert file.stat().st_size < 5e6
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#12", "ProfilerStep#13", "ProfilerStep#14"}
    assert any(event.get("name") == "aten::convolution_backward" for event in events)
    assert "aten::convolution_backward" in (folder / "profile.txt").read_text()
    assert str(file) in (folder / "run.log").read_text()


def test_too_few_steps_for_a_trace_are_reported(demo_photos, tmp_path):
    overrides = ["trainer.profiler=torch", "trainer.max_epochs=1", "data.batch_size=64"]
    folder = train(tmp_path / "run", *demo(demo_photos), *overrides)
    assert not (folder / "profile").exists() and (folder / "metrics.json").exists()
    assert "training had too few steps for a trace" in (folder / "run.log").read_text()
