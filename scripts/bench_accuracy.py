"""Compare time to accuracy: carvision's experiments `linear` and `fast`, and timm's own training script.

    python scripts/bench_accuracy.py --timm pytorch-image-models/train.py --weights mobilenetv2_035.safetensors \
        --ten imagenette --cars stanford_cars --out accuracy.json

Whole processes are measured, from their start to the test accuracy, including imports. Both have the same training and
test photos: the folders that timm reads hold links to those of carvision's split. timm trains at --timm-px and is
evaluated once, at the end, on the test photos; its rate and flags were chosen on validation photos
(docs/benchmarks/accuracy.md). Further flags for it follow --. The test accuracy is that of the class (ten) and of the
model (cars).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from side_by_side import machine, measure, rows_as_table, summarise, write

TIMM = [
    "--device", "cpu", "--model", "mobilenetv2_035", "--model-kwargs", "pad_type=same", "--pretrained",
    "--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--opt", "adamw", "--sched", "cosine",
    "--sched-on-updates", "--warmup-epochs", "1", "--weight-decay", "0.05", "--smoothing", "0.1",
    "--head-init-scale", "0.01", "--scale", "0.35", "1.0", "--batch-size", "64", "--checkpoint-hist", "1",
]  # fmt: skip
OURS = [
    "model.backbone=mobilenetv2_035", "model.backbone_kwargs={pad_type:same}", "model.mean=[0.5,0.5,0.5]",
    "model.std=[0.5,0.5,0.5]", "callbacks.progress_bar=false", "logger=none",
]  # fmt: skip
DATA = {
    "ten": ["data=folder", "data.split.val_as_test=true", "data.split.val_fraction=0.1"],
    "cars": [
        "data=stanford_cars", "data.allow_missing=true", "data.split.kind=stratified",
        "data.split.fractions=[0.7,0.15,0.15]",
    ],
}  # fmt: skip
# The ten classes are among those of the backbone's own pretraining: lower rates, chosen on validation photos, as timm's
FAST = {
    "ten": ["optimizer.lr=5e-4", "optimizer.layer_decay=0.7", "data.image_px=224", "trainer.max_epochs=4"],
    "cars": [],
}
LABEL = {"ten": "class", "cars": "model"}


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, encoding="utf-8"
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def carvision(top: Path, name: str, args: argparse.Namespace, overrides: list[str]) -> Path:
    """Train with an empty feature cache; return the run's folder."""
    moment = time.monotonic_ns()
    folder, root = top / str(moment), {"ten": args.ten, "cars": args.cars}[name].resolve()
    where = [
        f"data.root={root}",
        f"model.weights={args.weights.resolve()}",
        f"features.dir={top / f'features{moment}'}",
    ]
    command = [sys.executable, "-m", "carvision.train", f"run.dir={folder}", "run.report=false"]
    run([*command, *overrides[:1], *DATA[name], *where, *OURS, *overrides[1:]])
    return folder


def ours(top: Path, name: str, args: argparse.Namespace, *overrides: str) -> Callable[[], dict]:
    def start() -> dict:
        metrics = json.loads((carvision(top, name, args, list(overrides)) / "metrics.json").read_text(encoding="utf-8"))
        return {"accuracy": 100 * metrics["test"][f"{LABEL[name]}/top1"]}

    return start


def theirs(top: Path, photos: Path, num_classes: int, args: argparse.Namespace) -> Callable[[], dict]:
    def start() -> dict:
        out = top / f"timm{time.monotonic_ns()}"
        run([
            sys.executable, str(args.timm), "--data-dir", str(photos), "--train-split", "train", "--val-split", "test",
            "--num-classes", str(num_classes), "--pretrained-path", str(args.weights.resolve()), "--img-size",
            str(args.timm_px), "--lr", str(args.timm_lr), "--epochs", str(args.timm_epochs), "--val-interval",
            str(args.timm_epochs), "--workers", "1", "--output", str(out), "--seed", "0", *TIMM, *args.more,
        ])  # fmt: skip
        summary = pd.read_csv(next(out.rglob("summary.csv")))
        return {"accuracy": float(summary["eval_top1"].dropna().iloc[-1])}

    return start


def link_photos(splits: Path, root: Path, label: str, folder: Path) -> int:
    """Write class folders of links under train and test, as timm reads them; return the number of classes."""
    rows = pd.read_csv(splits, dtype=str)
    for row in rows[rows["split"].isin(["train", "test"])].to_dict("records"):
        link = folder / row["split"] / row[label].replace("/", "_") / row["path"].replace("/", "_")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root.resolve() / row["path"])
    return rows[label].nunique()


def compare(top: Path, name: str, args: argparse.Namespace) -> dict:
    made = carvision(top, name, args, ["experiment=linear", "data.image_px=32"])  # for its split alone
    root, photos = {"ten": args.ten, "cars": args.cars}[name], top / f"photos_{name}"
    num_classes = link_photos(made / "splits.csv", root, LABEL[name], photos)
    epochs = [f"trainer.max_epochs={args.epochs}"] if args.epochs else []
    candidates = {
        "timm": theirs(top, photos, num_classes, args),
        "carvision linear": ours(top, name, args, "experiment=linear", f"data.image_px={args.linear_px}"),
        "carvision fast": ours(
            top, name, args, "experiment=fast", f"data.image_px={args.fast_px}", *FAST[name], *epochs
        ),
    }
    samples = measure(candidates, args.rounds, memory=False)
    return {"samples": samples, "summary": summarise(samples, "timm")}


def rows_of(name: str, summary: dict) -> list[list[str]]:
    rows = []
    for candidate, found in summary.items():
        cells = [name, candidate]
        for metric in ("accuracy", "wall_s", "cpu_s"):
            one = found[metric]
            cells.append(f"{one['median']:.1f} ({one['min']:.1f} to {one['max']:.1f})")
            if metric != "accuracy":
                cells.append(f"{one['ratio']:.3f}")
        rows.append(cells)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, required=True, help="timm's train.py, of a release that fits timm's own")
    parser.add_argument("--weights", type=Path, required=True, help="of mobilenetv2_035, made with pad_type=same")
    parser.add_argument("--ten", type=Path, help="Imagenette: train/ and val/")
    parser.add_argument("--cars", type=Path, help="Stanford Cars")
    parser.add_argument("--linear-px", type=int, default=192, help="input of experiment=linear")
    parser.add_argument("--fast-px", type=int, default=192, help="input of experiment=fast")
    parser.add_argument("--epochs", type=int, help="of experiment=fast; default: its own")
    parser.add_argument("--timm-px", type=int, default=128)
    parser.add_argument("--timm-epochs", type=int, default=10)
    parser.add_argument("--timm-lr", type=float, default=2e-3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON of all measurements")
    parser.add_argument("more", nargs="*", help="further flags of timm's script, after --")
    args = parser.parse_args()
    names = [name for name, root in {"ten": args.ten, "cars": args.cars}.items() if root]
    if not names:
        parser.error("give --ten or --cars, or both")
    with tempfile.TemporaryDirectory() as folder:
        results = {name: compare(Path(folder), name, args) for name in names}
    rows = [row for name in names for row in rows_of(name, results[name]["summary"])]
    print(rows_as_table(["photos", "", "test top-1 %", "wall s", "of timm's", "CPU s", "of timm's"], rows))
    write(args.out, {"machine": machine(), "arguments": {k: str(v) for k, v in vars(args).items()}, **results})


if __name__ == "__main__":
    main()
