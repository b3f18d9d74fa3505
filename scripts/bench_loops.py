"""Measure what carvision's training is compared with, one measurement per process. Started by bench_gpu.py.

    python scripts/bench_loops.py step --network resnet50 --root PHOTOS ...    only the training step: the limit
    python scripts/bench_loops.py timm --network resnet50 --root PHOTOS ...    a plain loop with timm's own loader

Both: cross-entropy, SGD with momentum, channels last, on CUDA bf16 (fp16 on chips before Ampere), TF32 and cuDNN's
fastest convolutions; one linear head on the classes of PHOTOS/train. The last line printed is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from torch import nn

from carvision.training.hardware import device_name, resolve_precision

WARM_UP = 10  # steps that are not counted: compiling, choosing convolutions, first memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["step", "timm"])
    parser.add_argument("--network", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--image-px", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    measure = {"step": measure_step, "timm": measure_timm}[options.kind]
    train = Trainer(options)
    result = measure(options, train) | {"device": device_name(train.device), "precision": train.precision}
    if options.device == "cuda":
        result["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    print(json.dumps(result))


class Trainer:
    """A network that is trained: train(images, targets) takes one step, and waits for nothing."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.precision = resolve_precision("auto", "gpu" if options.device == "cuda" else "cpu")
        self.dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        num_classes = sum(folder.is_dir() for folder in (options.root / "train").iterdir())
        model = timm.create_model(options.network, num_classes=num_classes)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        if options.compile:
            self.model.compile(dynamic=False)
        fused = True if self.device.type == "cuda" else None
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.loss = nn.CrossEntropyLoss()

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.loss(self.model(images), targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def now(self) -> float:
        """Return the time in seconds at which all steps so far are finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.time()


def measure_step(options: argparse.Namespace, train: Trainer) -> dict:
    """Train on as many photos as the other measurements, from a few normalised batches that are on the device."""
    steps = max(1, num_photos(options.root) // options.batch_size) * (options.epochs - 1)
    shape = (options.batch_size, 3, options.image_px, options.image_px)
    batches = [torch.randn(shape, device=train.device).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    targets = torch.zeros(options.batch_size, dtype=torch.long, device=train.device)
    for step in range(WARM_UP):
        train(batches[step % 4], targets)
    began = train.now()
    for step in range(steps):
        train(batches[step % 4], targets)
    ended = train.now()
    return {"images_per_s": steps * options.batch_size / (ended - began), "began": began, "ended": ended}


def measure_timm(options: argparse.Namespace, train: Trainer) -> dict:
    """Measure epochs after the first, with timm's defaults for training: random resized crop, flip, colour jitter."""
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(options.root / "train")),
        (3, options.image_px, options.image_px),
        options.batch_size,
        is_training=True,
        num_workers=options.workers,
        pin_memory=options.device == "cuda",
        device=train.device,
        persistent_workers=options.workers > 0,
    )
    counts, times = [], []
    for _ in range(options.epochs):
        count = 0
        for images, targets in loader:
            train(images.contiguous(memory_format=torch.channels_last), targets)
            count += len(images)
        counts.append(count)
        times.append(train.now())
    speed = sum(counts[1:]) / (times[-1] - times[0])
    return {"images_per_s": speed, "began": times[0], "ended": times[-1]}


def num_photos(root: Path) -> int:
    return sum(1 for file in (root / "train").glob("*/*") if file.is_file())


if __name__ == "__main__":
    main()
