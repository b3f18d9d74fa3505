"""Whole epochs on the CPU: carvision.train beside timm's own training script and torchvision's reference loop.

    python scripts/bench_epoch.py --photos FOLDER --timm pytorch-image-models/train.py

FOLDER has train/ and val/ with a folder a class. All train MobileNetV2 0.35 from random weights, with random crops and
mirroring, cross-entropy and SGD with momentum, in the same batches, and validate after each epoch; each with the same
number of threads that compute, and of threads (carvision) or processes that read photos. epoch_s: training and
validation together, from one epoch's line of the log to the next one's, without the first epoch; wall_s, cpu_s,
peak_mb: of the whole process, start included.

torchvision's reference script takes no network of 0.35: its loop is here (`--as-torchvision`), with what references/
classification/train.py does for each batch and epoch, on Pillow's images, which are its default.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from side_by_side import machine, measure, summarise, table, write

LR = "0.05"
CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--timm", type=Path, help="timm's train.py, of a release that fits the timm installed")
    parser.add_argument("--before", type=Path, help="an earlier checkout of carvision, to compare with")
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--as-torchvision", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_torchvision:
        train_as_torchvision(options)
        return
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        candidates = {
            "torchvision": partial(run_torchvision, options),
            "carvision": partial(run_carvision, options, folder, CHECKOUT),
        }
        if options.before:
            candidates["before"] = partial(run_carvision, options, folder, options.before.resolve())
        if options.timm:
            candidates = {"timm": partial(run_timm, options, folder), **candidates}
        samples = measure(candidates, options.rounds)
    summary = summarise(samples, baseline=next(iter(candidates)))
    print(table(summary, ["epoch_s", "wall_s", "cpu_s", "peak_mb"]))
    write(options.out, {"machine": machine(), "samples": samples, "summary": summary})


def run_carvision(options: argparse.Namespace, top: str, checkout: Path) -> dict:
    folder = Path(top) / f"carvision{time.monotonic_ns()}"
    printed = run([
        "env", f"PYTHONPATH={checkout}", "CARVISION_JPEG=simplejpeg", sys.executable, "-m", "carvision.train",
        "data=folder", f"data.root={options.photos.resolve()}", f"data.image_px={options.image_px}",
        f"data.batch_size={options.batch_size}", f"data.num_workers={options.workers}",
        "model.backbone=mobilenetv2_035", "model.weights=random", "optimizer=sgd", f"optimizer.lr={LR}",
        f"trainer.max_epochs={options.epochs}", f"run.dir={folder}",
        *(["run.report=false"] if checkout == CHECKOUT else []),  # the others write no page
    ])  # fmt: skip
    return {"epoch_s": seconds_between(printed, r"epoch \d+/")}


def run_timm(options: argparse.Namespace, top: str) -> dict:
    folder = Path(top) / f"timm{time.monotonic_ns()}"
    classes = sum(path.is_dir() for path in (options.photos / "train").iterdir())
    printed = run([
        sys.executable, str(options.timm), "--data-dir", str(options.photos), "--train-split", "train", "--val-split",
        "val", "--num-classes", str(classes), "--device", "cpu", "--model", "mobilenetv2_035", "--img-size",
        str(options.image_px), "--batch-size", str(options.batch_size), "--workers", str(options.workers), "--opt",
        "sgd", "--lr", LR, "--epochs", str(options.epochs), "--warmup-epochs", "0", "--cooldown-epochs",
        "0", "--color-jitter", "0", "--output", str(folder), "--seed", "0",
    ])  # fmt: skip
    return {"epoch_s": seconds_between(printed, r"Train: \d+ \[\s*0/")}


def run_torchvision(options: argparse.Namespace) -> dict:
    own = ["image_px", "batch_size", "workers", "threads", "epochs"]
    flags = [text for name in own for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    printed = run([sys.executable, __file__, "--as-torchvision", "--photos", str(options.photos), *flags])
    return {"epoch_s": seconds_between(printed, r"Epoch: \[\d+\] \[0/")}


def run(command: list[str]) -> list[tuple[float, str]]:
    """Run a command; return its lines, each with the second at which it was printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    lines = [(time.perf_counter(), line) for line in process.stdout]
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(line for _, line in lines)[-4000:]}")
    return lines


def seconds_between(lines: list[tuple[float, str]], start: str) -> float:
    """Return the mean time between lines that begin with the pattern `start`.

    carvision prints such a line after an epoch, the others in its first batch. Of these the first is left out, as it
    includes the warm-up.
    """
    at = [second for second, line in lines if re.match(start, line)]
    at = at if start.startswith("epoch") else at[1:]
    return (at[-1] - at[0]) / (len(at) - 1)


def train_as_torchvision(options: argparse.Namespace) -> None:
    """Train as references/classification/train.py and presets.py of torchvision do."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.models import mobilenet_v2

    to_float = [
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    size = options.image_px
    crops = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(0.5)]
    centre = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    photos = {
        "train": ImageFolder(options.photos / "train", transforms.Compose(crops + to_float)),
        "val": ImageFolder(options.photos / "val", transforms.Compose(centre + to_float)),
    }
    order = {"train": RandomSampler(photos["train"]), "val": SequentialSampler(photos["val"])}
    load = {
        name: DataLoader(photos[name], options.batch_size, sampler=order[name], num_workers=options.workers)
        for name in photos
    }
    model = mobilenet_v2(num_classes=len(photos["train"].classes), width_mult=0.35)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=float(LR), momentum=0.9, weight_decay=1e-4)

    def top_1_and_5(output, target) -> list[float]:
        found = output.topk(5, dim=1).indices.eq(target[:, None])
        return [found[:, :k].any(dim=1).float().mean().item() for k in (1, 5)]

    for epoch in range(options.epochs):
        model.train()
        for number, (images, targets) in enumerate(load["train"]):
            loss = criterion(output := model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            metrics = [loss.item(), *top_1_and_5(output, targets)]
            if number % 10 == 0:
                print(f"Epoch: [{epoch}] [{number}/{len(load['train'])}] {metrics}", flush=True)
        model.eval()
        with torch.inference_mode():
            metrics = []
            for images, targets in load["val"]:
                output = model(images)
                metrics.append([criterion(output, targets).item(), *top_1_and_5(output, targets)])
        print(f"Test: {sum(one[1] for one in metrics) / len(metrics):.3f}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder) / "model.pth")


if __name__ == "__main__":
    main()
