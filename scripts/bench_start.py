"""Measure start-up time: carvision's, compared with timm's script and with bare imports.

    python scripts/bench_start.py --timm pytorch-image-models/train.py --out bench_start.json
    python scripts/bench_start.py imports                       what a training imports, package by package

import: `import carvision` against a Python that does nothing. messages: --help, TAB's completion and a wrong value
against the help of timm's script. first_step: carvision.train on the demo data until its first step begins, and on a
manifest of --rows rows with as many classes as CompCars has; against a script that only imports torch, timm and
Lightning. Each is a process of its own, as users start it, in turns.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from side_by_side import machine, measure, rows_as_table, summarise, table, write

CLASSES = 1716
IMPORTS = "import torch, timm, pytorch_lightning"
TRAIN = [sys.executable, "-m", "carvision.train"]
TINY = ["model.backbone=test_resnet", "model.weights=random", "data.image_px=32", "callbacks.progress_bar=false"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar=f"{{{','.join(PARTS)}}}", help="default: all")
    parser.add_argument("--timm", type=Path, help="timm's train.py, of a release that fits the timm installed")
    parser.add_argument("--rows", type=int, default=136_726, help="of the manifest: CompCars' photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where photos are made; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--until-first-step", nargs="+", help=argparse.SUPPRESS)  # in this process
    options, more = parser.parse_known_args()
    if options.until_first_step:
        return train_until_first_step([*options.until_first_step, *more])
    if unknown := set(options.part) - PARTS.keys() or set(more):
        parser.error(f"{min(unknown)} is not one of {', '.join(PARTS)}")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        found = {part: PARTS[part](options, Path(scratch)) for part in options.part or PARTS}
    write(options.out, {"machine": machine(), **found})


def compare(candidates: dict[str, Callable | list[str]], rounds: int, columns: list[str]) -> dict:
    """Measure the candidates, print them relative to the first, and return samples and summary."""
    samples = measure(
        candidates, rounds, warm_up=1
    )  # the warm-up also compiles Python's files and reads them into memory
    summary = summarise(samples, baseline=next(iter(candidates)))
    print(f"\n{table(summary, columns)}", flush=True)
    return {"samples": samples, "summary": summary}


def measure_import(options: argparse.Namespace, scratch: Path) -> dict:
    words = {"Python": "pass", "import carvision": "import carvision"}
    commands = {name: [sys.executable, "-c", text] for name, text in words.items()}
    return compare(commands, 4 * options.rounds, ["cpu_s"])


def measure_messages(options: argparse.Namespace, scratch: Path) -> dict:
    candidates = {
        "carvision.train --help": partial(run, [*TRAIN, "--help"]),
        "TAB": partial(
            run, [*TRAIN, "--shell-completion", "query=bash"], COMP_LINE="python -m carvision.train optimizer.l"
        ),
        "a wrong value": partial(run, [*TRAIN, "optimizer.lr=fast"], 1),
        "a wrong choice": partial(run, [*TRAIN, "experiment=cars"], 1),
    }
    if options.timm:
        candidates = {
            "timm's train.py --help": partial(run, [sys.executable, str(options.timm), "--help"]),
            **candidates,
        }
    return compare(candidates, options.rounds, ["wall_s", "cpu_s"])


def run(command: list[str], status: int = 0, **environment: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, encoding="utf-8")
    assert done.returncode == status, f"{command} ended with {done.returncode}: {done.stderr}"


def measure_first_step(options: argparse.Namespace, scratch: Path) -> dict:
    from made_photos import overrides, write_photos

    demo = scratch / "demo"
    given = {"the demo data": ["data=demo", f"data.root={demo}"]}
    run(
        [*TRAIN, *given["the demo data"], *TINY, "run.max_minutes=0.001", f"run.dir={scratch / 'run'}"]
    )  # draws the photos
    if options.rows:
        root = scratch / "rows"
        write_photos(root, options.rows, CLASSES, image_px=32)
        given[f"{options.rows:,} rows"] = overrides(root)
    commands = {"torch, timm and Lightning imported": [sys.executable, "-c", IMPORTS]}
    for name, words in given.items():
        folder = scratch / f"run {name}"  # which stays empty without a checkpoint
        commands[f"first step, {name}"] = [
            sys.executable, __file__, "--until-first-step", *words, *TINY, f"run.dir='{folder}'"
        ]  # fmt: skip
    return compare(commands, options.rounds, ["wall_s", "cpu_s", "peak_mb"])


def train_until_first_step(words: list[str]) -> None:
    """Run python -m carvision.train up to the start of its first step."""
    import runpy

    def watch() -> None:
        name = "carvision.training.module"
        while not hasattr(sys.modules.get(name), "LitClassifier"):
            time.sleep(0.01)
        sys.modules[name].LitClassifier.training_step = lambda *arguments: os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    sys.argv[1:] = words
    runpy.run_module("carvision.train", run_name="__main__", alter_sys=True)


def measure_imports(options: argparse.Namespace, scratch: Path) -> dict:
    """Measure the milliseconds that the modules of each package take to import."""
    run([*TRAIN, "data=demo", f"data.root={scratch / 'demo'}", *TINY, "run.max_minutes=0.001", "run.dir=null"])
    words = ["data=demo", f"data.root={scratch / 'demo'}", *TINY, f"run.dir={scratch / 'imports'}"]
    commands = {
        "bare imports": [sys.executable, "-X", "importtime", "-c", IMPORTS],
        "first step": [sys.executable, "-X", "importtime", __file__, "--until-first-step", *words],
    }
    found = {name: milliseconds_of_packages(command) for name, command in commands.items()}
    most = sorted(
        {*found["bare imports"], *found["first step"]}, key=lambda p: -max(f.get(p, 0) for f in found.values())
    )
    rows = [[package, *(f"{times.get(package, 0):.0f}" for times in found.values())] for package in most[:25]]
    rows.append(["all", *(f"{sum(times.values()):.0f}" for times in found.values())])
    print(f"\n{rows_as_table(['ms', *found], rows)}", flush=True)
    return found


def milliseconds_of_packages(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    total: Counter[str] = Counter()
    for own_us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE):
        package = ".".join(name.split(".")[: 2 if name.startswith("torch.") else 1])
        total[package] += int(own_us) / 1000
    return dict(total)


PARTS = {
    "import": measure_import,
    "messages": measure_messages,
    "first_step": measure_first_step,
    "imports": measure_imports,
}

if __name__ == "__main__":
    main()
