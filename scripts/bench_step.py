"""Measure what carvision's training and validation cost beyond the network, compared with bare PyTorch.

    python scripts/bench_step.py --out bench_step.json                      all, one thread and two
    python scripts/bench_step.py step --network resnet18 --threads 1        only training steps
    python scripts/bench_step.py validation --profile profile.txt           with a profile of Python

step: LitClassifier under Lightning's Trainer with all callbacks of carvision.train, against a loop of forward,
cross-entropy, backward and optimizer; the same network, uint8 batches in memory, normalisation and optimizer. The
loop has neither metrics nor a schedule nor checks. validation: the same with the forward pass in inference mode
against Lightning's validation with all metrics.

files: validation of photos that one process reads, each of --photo-px square, between the epochs of a training run;
against the forward pass on as many batches in memory. The wall clock shows whether decoding hides behind the network,
and cpu_s, of the main process only, what Python and the counting cost.

All take turns within one process and one epoch, --chunk steps each, so that other work on the machine affects both
alike. The result is the median of the ratios of neighbouring turns.
"""

import argparse
import contextlib
import copy
import cProfile
import io
import itertools
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as carvision.train does

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from made_photos import write_photos
from side_by_side import machine, summarise, table, write

from carvision.config.compose import conf_dir, plain_config
from carvision.system.runtime import keep_freed_memory
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.callbacks import Clock
from carvision.training.module import LitClassifier
from carvision.training.optim import build_phases, create_optimizer
from carvision.training.run.single_run import quiet_libraries
from carvision.training.trainer import build_trainer, fit_phases

NUM_BATCHES = 8  # in memory
WARM_UP = 2  # turns that do not count
ALL = ("step", "validation", "files")
FILES_CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="{step,validation,files}", help="default: all")
    parser.add_argument("--network", nargs="+", default=["mobilenetv2_035", "resnet18"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 1716])
    parser.add_argument("--image-px", type=int, default=64)
    parser.add_argument("--files-px", type=int, default=128, help="what the network takes where photos are read")
    parser.add_argument("--photo-px", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=5, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4, help="validations of photos that are read")
    parser.add_argument("--set", nargs="+", default=[], help="overrides of carvision.train, such as augment=light")
    parser.add_argument("--profile", type=Path, help="a file for a profile of Python")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    options = parser.parse_args()
    keep_freed_memory()  # as carvision.train does; the bare loop benefits, too
    quiet_libraries()
    samples = {}
    for network, num_classes in itertools.product(options.network, options.classes):
        with tempfile.TemporaryDirectory() as scratch:
            cfg = read_config(network, num_classes, options, Path(scratch), options.image_px)
            for threads, what in itertools.product(options.threads, ["step", "validation"]):
                if what in (options.what or ALL):
                    torch.set_num_threads(threads)
                    name = f"{what}, {network}, {num_classes:,} classes, {threads} threads"
                    samples[name] = measure(what, cfg, options)
                    show(name, samples[name])
    if "files" in (options.what or ALL):
        torch.set_num_threads(1)
        for network in options.network:
            with tempfile.TemporaryDirectory() as scratch:
                name = f"files, {network}, {FILES_CLASSES} classes, {options.files_px} px, 1 thread and 1 worker"
                samples[name] = measure_files(network, options, Path(scratch))
                show(name, samples[name])
    write(options.out, {"machine": machine(), "options": vars(options) | {"out": None}, "samples": samples})


def show(name: str, samples: dict[str, list[dict]]) -> None:
    print(f"\n{name}\n{table(summarise(samples, 'bare'), ['wall_s', 'cpu_s'])}", flush=True)


def read_config(
    network: str, num_classes: int, options: argparse.Namespace, scratch: Path, photo_px: int, *more: str
) -> dict:
    photos = max(4 * num_classes, NUM_BATCHES * options.batch_size * 2)
    given = [
        *write_photos(scratch / "photos", photos, num_classes, photo_px), f"run.dir={scratch / 'run'}",
        f"data.image_px={options.image_px}", f"data.batch_size={options.batch_size}", "data.num_workers=0",
        f"model.backbone={network}", "model.weights=random", "augment=none", "trainer.max_epochs=1",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain_config(compose("train", overrides=[*given, *more, *options.set]))


def measure(what: str, cfg: dict, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Return the samples of "bare" and "carvision", one per turn."""
    datamodule, lit, trainer = built(cfg)
    order = itertools.islice(datamodule.train_dataloader(), NUM_BATCHES)
    turns = Turns(list(order), {"step": bare_step, "validation": bare_forward}[what](lit), options)
    with profiled(options.profile, f"{what}, {cfg['model']['backbone']}"):
        if what == "step":
            datamodule.train_dataloader = lambda: turns
            fit_phases(trainer, lit, datamodule)
        else:
            datamodule.val_dataloader = lambda: turns
            trainer.validate(lit, datamodule=datamodule, verbose=False)
    return turns.samples


def built(cfg: dict) -> tuple:
    folder = Path(cfg["run"]["dir"])
    datamodule = build_datamodule(cfg, None)
    lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
    return datamodule, lit, build_trainer(cfg, folder, lit, Clock(folder / "seconds.json"), None)


def measure_files(network: str, options: argparse.Namespace, scratch: Path) -> dict[str, list[dict]]:
    """Time each epoch's validation, and after it the forward pass on as many batches in memory."""
    epochs = options.epochs + 1  # the first starts the workers, and does not count
    cfg = read_config(
        network, FILES_CLASSES, options, scratch, options.photo_px, "data.num_workers=1",
        f"trainer.max_epochs={epochs}", f"data.image_px={options.files_px}", "data.split.fractions=[0.4,0.6,0]",
    )  # fmt: skip
    datamodule, lit, trainer = built(cfg)
    validations = Validations(lit)
    trainer.callbacks.append(validations)
    fit_phases(trainer, lit, datamodule)
    return {name: found[1:] for name, found in validations.samples.items()}


class Validations(pl.Callback):
    def __init__(self, lit: LitClassifier):
        self.forward, self.batch = bare_forward(lit), None
        self.samples: dict[str, list[dict]] = {"bare": [], "carvision": []}

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = now()

    def on_validation_batch_end(self, trainer, module, outputs, batch: dict, batch_idx: int) -> None:
        self.batch = self.batch or copy.deepcopy(batch)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        moments = [self.began, now()]
        for _ in range(trainer.num_val_batches[0]):
            self.forward(self.batch)
        moments.append(now())
        record(self.samples, moments)


class Turns:
    """A loader for Lightning. After each chunk of batches the bare loop takes as many, and both are timed."""

    def __init__(self, batches: list[dict], bare: Callable[[dict], None], options: argparse.Namespace):
        self.batches, self.bare, self.chunk = batches, bare, options.chunk
        self.num_turns = WARM_UP + options.turns
        self.samples: dict[str, list[dict]] = {"bare": [], "carvision": []}

    def __len__(self) -> int:
        return (self.num_turns + 1) * self.chunk  # the last turn, after which nothing is requested, is not recorded

    def __iter__(self) -> Iterator[dict]:
        for turn in range(self.num_turns + 1):
            batches = [self.batches[i % len(self.batches)] for i in range(turn, turn + self.chunk)]
            moments = [now()]
            yield from map(dict, batches)
            moments.append(now())  # Lightning requests the next batch when it has finished the last
            for batch in batches:
                self.bare(batch)
            moments.append(now())
            if turn >= WARM_UP:
                record(self.samples, moments, self.chunk)


def record(samples: dict[str, list[dict]], moments: list[tuple[float, float]], steps: int = 1) -> None:
    """Add the times per step. moments: before carvision's steps, between them and the bare ones, after those."""
    for name, (began, ended) in zip(("carvision", "bare"), itertools.pairwise(moments), strict=True):
        wall, cpu = ((ended[i] - began[i]) / steps for i in range(2))
        samples[name].append({"wall_s": wall, "cpu_s": cpu})


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def bare_step(lit: LitClassifier) -> Callable[[dict], None]:
    """Return a function that trains a copy of the network by a step, as a user's own loop would."""
    model, normalise = copy.deepcopy(lit.model).train(), copy.deepcopy(lit.normalise)
    optimizer = create_optimizer(model, **lit.phase["optimizer"])

    def step(batch: dict) -> None:
        optimizer.zero_grad()
        logits = model(normalise(batch["images"].float() / 255))
        loss = sum(F.cross_entropy(logits[name], batch["targets"][name]) for name in logits)
        loss.backward()
        optimizer.step()

    return step


def bare_forward(lit: LitClassifier) -> Callable[[dict], None]:
    model, normalise = copy.deepcopy(lit.model).eval(), copy.deepcopy(lit.normalise)

    @torch.inference_mode()
    def forward(batch: dict) -> None:
        model(normalise(batch["images"].float() / 255))

    return forward


@contextlib.contextmanager
def profiled(file: Path | None, title: str) -> Iterator[None]:
    if file is None:
        yield
        return
    profile, text = cProfile.Profile(), io.StringIO()
    with profile:
        yield
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(45)
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{title}\n{text.getvalue()}\n")


if __name__ == "__main__":
    main()
