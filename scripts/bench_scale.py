"""Measure how carvision's cost grows with photos and classes.

    python scripts/bench_scale.py --out bench_scale.json        all but the table of a million rows
    python scripts/bench_scale.py photos --photos 1000 10000
    python scripts/bench_scale.py rows --rows 1000000           makes a million files of 1 kB first, in --scratch

photos: reading the table, splitting it, writing splits.csv, making loaders, an epoch's order, the first batch. classes:
what a step costs beyond the network (loss, its gradient, counters), a step of validation and of the test, the metrics
at an epoch's end, the report of an evaluation. rows: what
carvision.train does with a manifest until the end of its first step.

Seconds are CPU seconds unless marked wall. "growth" is the exponent p of cost ~ size^p between the last two
sizes: 1 is linear. Each measurement is a process of its own, in turns; medians (minimum to maximum).
"""

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from made_photos import overrides, write_photos
from side_by_side import machine, measure, memory_mb, rows_as_table, write

PARTS = ("photos", "classes")
CLASSES = 200  # where the number of photos grows
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar=f"{{{','.join(MEASURES)}}}", help="default: all but rows")
    parser.add_argument("--photos", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 200, 2000])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where photos are made; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # a measurement in this process
    options = parser.parse_args()
    if unknown := set(options.part) - set(MEASURES):
        parser.error(f"{min(unknown)} is not one of {', '.join(MEASURES)}")
    if options.one:
        name, root, *numbers = options.one
        print(json.dumps(ONE[name](Path(root), *map(int, numbers))))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        samples = {part: MEASURES[part](options, Path(scratch)) for part in options.part or PARTS}
    write(options.out, {"machine": machine(), "samples": samples})


def command(name: str, root: Path, *numbers: int) -> list[str]:
    return [sys.executable, __file__, "--one", name, str(root), *map(str, numbers)]


def measure_photos(options: argparse.Namespace, scratch: Path) -> dict:
    roots = {number: folder_of(scratch, number) for number in options.photos}
    samples = measure({f"{n:,}": command("photos", root, n) for n, root in roots.items()}, options.rounds)
    show("photos", samples, options.photos)
    return samples


def measure_classes(options: argparse.Namespace, scratch: Path) -> dict:
    samples = measure({f"{n:,}": command("classes", scratch, n) for n in options.classes}, options.rounds)
    show("classes", samples, options.classes)
    return samples


def measure_rows(options: argparse.Namespace, scratch: Path) -> dict:
    samples = measure({f"{options.rows:,}": command("rows", folder_of(scratch, options.rows), options.rows)}, 1)
    show("rows", samples, [])
    return samples


def folder_of(scratch: Path, num_photos: int) -> Path:
    root = scratch / f"{num_photos}"
    if not root.exists():
        write_photos(root, num_photos, CLASSES, image_px=32)
    return root


def show(title: str, samples: dict[str, list[dict]], sizes: list[int]) -> None:
    """Print a row per metric, a column per size, and the growth between the last two sizes."""
    metrics = [key for key in next(iter(samples.values()))[0] if key not in ("wall_s", "cpu_s")]
    rows = []
    for metric in [*metrics, "cpu_s"]:
        values = [[one[metric] for one in rounds] for rounds in samples.values()]
        cells = [f"{statistics.median(v):.3g} ({min(v):.3g} to {max(v):.3g})" for v in values]
        growth = []
        if len(sizes) > 1:
            before, last = (statistics.median(v) for v in values[-2:])
            steps = math.log(sizes[-1] / sizes[-2])
            growth = [f"{math.log(last / before) / steps:.2f}" if min(before, last) > 0 else "-"]
        rows.append([metric if metric != "cpu_s" else "whole process, cpu_s", *cells, *growth])
    print(f"\n{rows_as_table([title, *samples, *(['growth'] if len(sizes) > 1 else [])], rows)}", flush=True)


class Stages:
    """CPU seconds of each stage, and at the end the memory that they still hold."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.before = memory_mb(os.getpid())

    def __call__(self, name: str, function: Callable, *arguments):
        began = time.process_time()
        result = function(*arguments)
        self.seconds[f"{name}, s"] = time.process_time() - began
        return result

    def done(self) -> dict[str, float]:
        return self.seconds | {"memory held, MB": memory_mb(os.getpid()) - self.before}


def config_of(root: Path, *more: str) -> dict:
    from hydra import compose, initialize_config_dir

    from carvision.config.compose import conf_dir, plain_config

    given = [*overrides(root), "data.image_px=32", f"data.batch_size={BATCH}", "model.backbone=test_resnet"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain_config(compose("train", overrides=[*given, "model.weights=random", *more]))


def one_of_photos(root: Path, num_photos: int) -> dict:
    from carvision.data import splits
    from carvision.data.build import build_split, build_table
    from carvision.training.build import build_datamodule, describe_labels

    cfg, stages = config_of(root, "data.num_workers=0"), Stages()
    table = stages("read", build_table, cfg["data"], False)
    copies = stages("equal bytes", splits.equal_bytes, table)
    plain, splits.equal_bytes = splits.equal_bytes, lambda _: copies
    table = stages("divide", build_split, table, cfg["data"]["split"])
    splits.equal_bytes = plain
    stages("write splits.csv", splits.write_splits, table, root / "splits.csv")
    del table
    datamodule = stages("all of these and the photos' arrays", build_datamodule, cfg, None)
    stages("labels", describe_labels, cfg, datamodule.table)
    loader = stages("loader", datamodule.train_dataloader)
    stages("order of an epoch", list, loader.sampler)
    stages("first batch", lambda: next(iter(loader)))
    return stages.done()


def one_of_classes(root: Path, num_classes: int) -> dict:
    """Measure steps with logits that exist already: what is left is the cost of the step itself."""
    import torch

    from carvision.models.classifier import Outputs
    from carvision.system.runtime import keep_freed_memory
    from carvision.training.build import build_datamodule, build_lit_classifier
    from carvision.training.optim import build_phases

    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(dir=root)) / "photos"
    write_photos(folder, max(4 * num_classes, 8 * BATCH), num_classes, image_px=32)
    cfg = config_of(folder, "data.num_workers=0", "model.decoding=joint", "loss.class_weights=balanced")
    datamodule = build_datamodule(cfg, None)
    lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
    batch = next(iter(datamodule.train_dataloader()))
    sizes = {name: len(label["ids"]) for name, label in lit.labels.items()}
    logits = {name: torch.randn(BATCH, size, requires_grad=True) for name, size in sizes.items()}
    lit.outputs = lambda images, shares: Outputs(logits, torch.zeros(()), torch.zeros(BATCH, 1), None)
    found = {"training step, ms": milliseconds(lambda: lit.train().training_step(batch, 0).backward())}
    with torch.inference_mode():
        found["validation step, ms"] = milliseconds(lambda: lit.eval().validation_step(batch, 0))
        found["test step, ms"] = milliseconds(lambda: lit.eval().test_step(batch, 0))
        for name, metrics in {"an epoch": lit.val_metrics, "the test": lit.test_metrics}.items():
            began = time.process_time()
            metrics.compute()  # once: the result is cached
            found[f"metrics of {name}, ms"] = 1000 * (time.process_time() - began)
    began = time.process_time()
    write_report(folder, lit.labels)
    return found | {"report, s": time.process_time() - began}


def write_report(photos: Path, labels: dict[str, dict], num_photos: int = 2000) -> None:
    """Write the report of carvision.evaluate for made-up logits."""
    import torch

    from carvision.evaluation.bootstrap import measure
    from carvision.evaluation.predict import Predictions
    from carvision.evaluation.report import write_evaluation
    from carvision.losses.classification import cross_entropy

    random = torch.Generator().manual_seed(0)
    model = torch.randint(len(labels["model"]["ids"]), (num_photos,), generator=random)
    targets = {"make": torch.tensor(labels["model"]["parent_codes"])[model], "model": model}
    logits = {name: torch.randn(num_photos, len(labels[name]["ids"]), generator=random) for name in targets}
    for name, codes in targets.items():
        logits[name][torch.arange(num_photos), codes] += 3
    valid = torch.ones(num_photos, dtype=torch.bool)
    paths = [f"0/{i % 256}.jpg" for i in range(num_photos)]
    predictions = Predictions(paths, photos, None, logits, targets, valid, {})
    losses = {name: cross_entropy(logits[name], targets[name]) for name in targets}
    weights = dict.fromkeys(targets, 1.0)
    measured = measure(predictions, labels, "joint", losses, weights)
    with contextlib.redirect_stdout(io.StringIO()):  # its tables
        write_evaluation(predictions, labels, photos / "report", measured=measured, rule="joint", title="made up")


def milliseconds(function: Callable) -> float:
    """Return the median CPU time of a call."""
    for _ in range(3):
        function()
    times = []
    for _ in range(30):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times)


def one_of_rows(root: Path, num_rows: int) -> dict:
    run = Path(tempfile.mkdtemp(dir=root)) / "run"
    given = [*overrides(root), "data.image_px=32", f"data.batch_size={BATCH}", "model.backbone=test_resnet"]
    given += ["model.weights=random", "run.max_minutes=0.001", f"run.dir={run}"]  # at least one step is taken
    subprocess.run([sys.executable, "-m", "carvision.train", *given], check=False, stdout=subprocess.DEVNULL)
    seconds = json.loads((run / "seconds.json").read_text(encoding="utf-8"))
    return {f"{stage}, s wall": seconds[stage] for stage in ("reading", "building", "training", "first_step")}


MEASURES = {"photos": measure_photos, "classes": measure_classes, "rows": measure_rows}
ONE = {"photos": one_of_photos, "classes": one_of_classes, "rows": one_of_rows}

if __name__ == "__main__":
    main()
