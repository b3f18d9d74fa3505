"""Measure how fast carvision trains from JPEG files, and how fast it could.

    python scripts/bench_gpu.py --out bench                     EfficientNet-B5, ResNet-50, ConvNeXt-T at 224 px
    python scripts/bench_gpu.py --out bench --networks resnet50 --batch-size 256 --root photos

For each network three speeds in images per second: only the training step, on tensors that are on the device, which is
the limit; carvision.train as a user starts it, its epochs after the first; and a plain loop with timm's loader. Each is
a process of its own, `--repeats` times in turns, and the medians count. Photos are made unless --root (a folder with
train/<class>/ and val/<class>/) is given. --out keeps every measurement in measures.jsonl, so that several commands
add to one table, which is printed and written to bench.md and bench.json.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from carvision.system.machine import num_cores

HERE = Path(__file__).resolve().parent
NETWORKS = ["tf_efficientnet_b5", "resnet50", "convnext_tiny"]
KINDS = {"step": "step alone", "carvision": "whole training", "timm": "timm loop"}
WIDTH, HEIGHT, QUALITY, CLASSES, VAL = 504, 336, 90, 10, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--root", type=Path, help="photos; by default they are made in a temporary folder")
    parser.add_argument("--photos", type=int, default=16384, help="how many to make")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=max(1, min(16, num_cores() - 1)))
    parser.add_argument("--epochs", type=int, default=3, help="of which the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", choices=["off", "on", "both"], help="both on cuda, off on the CPU")
    parser.add_argument("--augment", default="color", help="of carvision; timm takes its own, of the same kind")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be 2 at least: the first is not counted")
    options.out.mkdir(parents=True, exist_ok=True)
    compiled = options.compile or ("both" if options.device == "cuda" else "off")
    with tempfile.TemporaryDirectory() as scratch:
        if options.root is None:
            options.root = Path(scratch) / "photos"
            make_photos(options.root, options.photos)
        for repeat in range(options.repeats):
            for network in options.networks:
                for compile in {"off": [False], "on": [True], "both": [False, True]}[compiled]:
                    for kind in KINDS:
                        measure(kind, network, compile, options, Path(scratch) / f"{kind}_{repeat}_{network}_{compile}")
    table = summarise(
        [json.loads(line) for line in (options.out / "measures.jsonl").read_text(encoding="utf-8").splitlines()]
    )
    (options.out / "bench.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    (options.out / "bench.md").write_text(as_markdown(table), encoding="utf-8")
    print(as_markdown(table))


def measure(kind: str, network: str, compile: bool, options: argparse.Namespace, folder: Path) -> None:
    """Run one process and add its line to measures.jsonl. Exits if the process fails."""
    began = time.time()
    command = train_command if kind == "carvision" else loop_command
    with Utilisation(options.device) as utilisation:
        done = subprocess.run(
            command(kind, network, compile, options, folder),
            capture_output=True,
            text=True,
            env=environment(),
            encoding="utf-8",
        )
    if done.returncode != 0:
        sys.exit(f"{kind} of {network} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result = read_run(folder, options) if kind == "carvision" else json.loads(done.stdout.splitlines()[-1])
    line = {
        "kind": kind,
        "network": network,
        "compile": compile,
        "image_px": options.image_px,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "cores": num_cores(),
        **result,
        "before_s": result["began"] - began,  # imports, reading, compiling, and the first epoch or warm-up
        "utilisation": utilisation.mean(result["began"], result["ended"]),
    }
    with (options.out / "measures.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{KINDS[kind]}: {network}, compile={compile}: {line['images_per_s']:.1f} images/s", flush=True)


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


def loop_command(kind: str, network: str, compile: bool, options: argparse.Namespace, folder: Path) -> list[str]:
    keys = ["root", "device", "image_px", "batch_size", "workers", "epochs"]
    values = [part for key in keys for part in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]
    arguments = [kind, "--network", network, *values, *(["--compile"] if compile else [])]
    return [sys.executable, str(HERE / "bench_loops.py"), *arguments]


def train_command(kind: str, network: str, compile: bool, options: argparse.Namespace, folder: Path) -> list[str]:
    overrides = [
        "data=folder", f"data.root={options.root.resolve()}", f"data.image_px={options.image_px}",
        f"data.batch_size={options.batch_size}", f"data.num_workers={options.workers}",
        f"model.backbone={network}", "model.weights=random", f"augment={options.augment}",
        "optimizer=sgd", f"trainer={'gpu' if options.device == 'cuda' else 'cpu'}",
        f"trainer.max_epochs={options.epochs}", f"compile={str(compile).lower()}", f"run.dir={folder}",
        "callbacks.progress_bar=false", "run.report=false",
    ]  # fmt: skip
    return [sys.executable, "-m", "carvision.train", *overrides]


def read_run(folder: Path, options: argparse.Namespace) -> dict:
    """Return the speed over the epochs after the first, including validation of a few photos, and when they ran."""
    with (folder / "history.csv").open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    with (folder / "splits.csv").open(encoding="utf-8") as file:
        photos = sum(row["split"] == "train" for row in csv.DictReader(file))
    lines = [line for line in (folder / "run.log").read_text(encoding="utf-8").splitlines() if " INFO epoch " in line]
    moments = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    batches = -(-photos // options.batch_size)  # the last is filled up
    return {
        "images_per_s": batches * options.batch_size * (options.epochs - 1) / sum(seconds[1:]),
        "began": moments[0],
        "ended": moments[-1],
        "first_step_s": metrics["seconds"]["first_step"],
        **metrics["hardware"],
    }


class Utilisation:
    """Samples nvidia-smi every half second while it is open."""

    def __init__(self, device: str):
        self.device = device
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> "Utilisation":
        self.process, self.file = None, tempfile.TemporaryFile("w+", encoding="utf-8")
        if self.device == "cuda":
            number = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
            fields = ["--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
            try:
                self.process = subprocess.Popen(
                    ["nvidia-smi", "-i", number, *fields], stdout=self.file, stderr=subprocess.DEVNULL
                )
            except FileNotFoundError:
                print("nvidia-smi is not available: utilisation is left out")
        return self

    def __exit__(self, *_) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.file.seek(0)
            for moment, _, percent in (line.partition(", ") for line in self.file):
                if percent.strip().isdigit():
                    when = datetime.strptime(moment, "%Y/%m/%d %H:%M:%S.%f").timestamp()
                    self.samples.append((when, float(percent)))
        self.file.close()

    def mean(self, began: float, ended: float) -> float | None:
        inside = [percent for when, percent in self.samples if began <= when <= ended]
        return statistics.mean(inside) if inside else None


def summarise(measures: list[dict]) -> list[dict]:
    """Return a row for each device, batch, network and compile: medians over the repeats, and ratios of medians."""
    same = ("device", "cores", "workers", "image_px", "batch_size", "network", "compile")
    rows: dict[tuple, dict[str, list[dict]]] = {}
    for line in measures:
        rows.setdefault(tuple(line[key] for key in same), {}).setdefault(line["kind"], []).append(line)
    table = []
    for names, kinds in rows.items():
        row = dict(zip(same, names, strict=True))
        for kind, lines in kinds.items():
            row[kind] = {"repeats": len(lines), "precision": lines[0]["precision"]}
            for metric in ("images_per_s", "utilisation", "peak_memory_mb", "before_s", "first_step_s"):
                values = [line[metric] for line in lines if line.get(metric) is not None]
                row[kind] |= {metric: statistics.median(values)} if values else {}
            speeds = [line["images_per_s"] for line in lines]
            row[kind]["spread"] = (max(speeds) - min(speeds)) / row[kind]["images_per_s"]
        for other in ("step", "timm"):
            if "carvision" in row and other in row:
                row[f"of_{other}"] = row["carvision"]["images_per_s"] / row[other]["images_per_s"]
        table.append(row)
    return table


def as_markdown(table: list[dict]) -> str:
    """Format images per second with the spread of the repeats; in brackets the GPU's utilisation and peak memory."""
    head = ["device", "network", "batch", "compile", *KINDS.values(), "of the limit", "of timm", "first step"]
    lines = [head, ["---"] * len(head)]
    for row in table:
        cells = [row["device"], row["network"], str(row["batch_size"]), "yes" if row["compile"] else "no"]
        for kind in KINDS:
            found = row.get(kind)
            if found is None:
                cells.append("-")
                continue
            more = [f"{found['utilisation']:.0f} %"] if "utilisation" in found else []
            more += [f"{found['peak_memory_mb']:,.0f} MB"] if "peak_memory_mb" in found else []
            cells.append(
                f"{found['images_per_s']:,.1f} ±{found['spread'] / 2:.0%}" + f" ({', '.join(more)})" * bool(more)
            )
        cells += [f"{row[key]:.1%}" if key in row else "-" for key in ("of_step", "of_timm")]
        first = row.get("carvision", {}).get("first_step_s")
        lines.append([*cells, "-" if first is None else f"{first:.1f} s"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def make_photos(root: Path, count: int) -> None:
    """Write JPEGs of noise at all scales, and a few more for validation.

    They have 47 kB, 0.28 bytes per pixel; 200 of Stanford Cars have 0.2.
    """
    jobs = [(root / "train" / f"class_{i % CLASSES}" / f"{i}.jpg", i) for i in range(count)]
    jobs += [(root / "val" / f"class_{i % CLASSES}" / f"{i}.jpg", count + i) for i in range(CLASSES * VAL)]
    for file, _ in jobs:
        file.parent.mkdir(parents=True, exist_ok=True)
    with Pool(num_cores()) as pool:
        pool.starmap(make_photo, jobs, chunksize=64)
    print(f"{len(jobs)} photos made, {jobs[0][0].stat().st_size / 1000:.0f} kB the first", flush=True)


def make_photo(file: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 127.0)
    for grain in (1, 2, 4, 8, 16, 32, 64, 128):  # px; amplitude grows with it, as in photos
        small = random.normal(0, 5 * grain**0.4, (-(-HEIGHT // grain), -(-WIDTH // grain), 3)).astype(np.float32)
        planes = [Image.fromarray(small[..., c]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for c in range(3)]
        pixels += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=QUALITY)


if __name__ == "__main__":
    main()
