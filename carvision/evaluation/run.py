"""Run carvision.evaluate, from the model's folder to the folder of the evaluation."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from carvision.data.table import UNKNOWN, LabelDescription, Table
from carvision.evaluation.bootstrap import measure
from carvision.evaluation.calibration import choose_temperature
from carvision.evaluation.metrics import CHUNK, evaluation_loss, head_weights_of, photo_losses
from carvision.evaluation.predict import Predictions, predict_table, rank_and_world_size
from carvision.evaluation.report import write_evaluation
from carvision.evaluation.select import (
    Matched,
    compose_data,
    match_classes,
    notes_on_seen_photos,
    read_photos,
    select_split,
)
from carvision.files.atomic import atomic_file, write_csv, write_json
from carvision.files.folders import output_folder
from carvision.files.log import start_log
from carvision.inference import model_file
from carvision.inference.predictor import Predictor, choose_device
from carvision.inference.rows import Layout, header, rows_of, to_text
from carvision.system.runtime import keep_freed_memory

log = logging.getLogger(__name__)


def run(
    run: Path,
    overrides: list[str],
    split: str,
    out: Path | None,
    ensemble: list[Path],
    tta: str,
    match: str,
    label: dict[str, str],
    samples: int,
    temperature: str,
    keras: bool,
    device: str,
) -> Path | None:
    """Evaluate and return the folder written; None in all processes but the first.

    The arguments are those of carvision.evaluate.
    """
    keep_freed_memory()
    rank, world_size = rank_and_world_size()
    start_log(None, quiet=rank > 0)
    models = [model_file.load(path) for path in (run, *ensemble)]
    for model in models if temperature == "none" else []:
        model.temperature = dict.fromkeys(model.classes, 1.0)
    predictor = Predictor(models, tta)
    layout = Layout(predictor.class_ids, predictor.labels, true_heads=tuple(predictor.classes))
    labels = {name: predictor.about["labels"][name] for name in predictor.labels}
    loss = evaluation_loss(predictor.about, predictor.averages)
    chosen = compose_data(predictor.about, overrides)
    folders = [model_file.find_model(path)[0] for path in (run, *ensemble)]
    splits_files = [each / "splits.csv" for each in folders]
    all_photos, is_run_split = read_photos(chosen, list(labels), split, splits_files[0])
    table, matched = judged_photos(select_split(all_photos, split), labels, match, label)
    notes = [*matched.notes, *notes_on_seen_photos(table, split, splits_files)]
    for note in notes:
        log.warning("%s", note)
    choose_device(device)
    parent = folders[0] / "evaluations"
    with output_folder(out, parent, "evaluate", f"{split}_") if rank == 0 else nullcontext() as folder:
        if world_size > 1:
            torch.distributed.init_process_group("gloo")
        log.info("%s: %s photos, %s", table.name, f"{len(table):,}", "all" if split == "all" else split)
        predict = partial(predict_table, predictor, data=chosen.data, device=device, process=(rank, world_size))
        predictions, bad = predict(table, matched.targets, what=split)

        def predict_val() -> Predictions | None:
            if split == "val" or not (all_photos.rows["split"] == "val").any():
                return predictions if split == "val" else None
            val, matched_val = judged_photos(select_split(all_photos, "val"), labels, match, label)
            return predict(val, matched_val.targets, what="val")[0]

        notes += choose_temperature(
            predictor, temperature, split, chosen.as_in_training, is_run_split, predict_val, run
        )
        if world_size > 1:
            torch.distributed.destroy_process_group()
        if predictions is None or folder is None:
            return None
        write_predictions(folder / "predictions.csv", predictor, layout, predictions, bad)
        write_problems(folder, bad, matched.unmatched)
        predictions = replace(predictions, temperature=predictor.temperature)
        about = {
            "run": str(run), "ensemble": [str(path) for path in ensemble], "tta": tta, "split": split,
            "data": {"name": chosen.data["name"], "root": str(table.root)}, "num_photos": len(table), "notes": notes,
        }  # fmt: skip
        keras = keras or predictor.about.get("config", {}).get("run", {}).get("keras_metrics", False)
        _write_report(folder, predictions, labels, predictor.about["decoding"], loss, samples, about, keras)
        return folder


def _write_report(
    folder: Path,
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    loss: dict,
    num_samples: int,
    about: dict,
    keras: bool,
) -> None:
    """Compute the metrics, and write the tables, the pictures and evaluation.json, which begins with `about`. keras:
    show precision and recall as Keras counts them, too."""
    losses, head_weights = photo_losses(predictions, labels, loss), head_weights_of(labels, loss)
    measured = measure(predictions, labels, rule, losses, head_weights, num_samples)
    others = f" with {len(about['ensemble'])} more" if about["ensemble"] else ""
    views = f", views {about['tta']}" if about["tta"] != "none" else ""
    title = f"{Path(about['run']).resolve().name}{others} on {about['data']['name']}, {about['split']}{views}"
    written = write_evaluation(
        predictions, labels, folder, measured=measured, rule=rule, title=title, notes=about["notes"], keras=keras
    )
    write_json(folder / "evaluation.json", {**about, **written})


def judged_photos(
    table: Table, labels: dict[str, LabelDescription], match: str, renamed: dict[str, str]
) -> tuple[Table, Matched]:
    """Return the photos with a known target of some head, and their targets. The arguments are match_classes'."""
    matched = match_classes(table, labels, match, renamed)
    targets = {name: values[torch.from_numpy(matched.judged)] for name, values in matched.targets.items()}
    return table.select(matched.judged), replace(matched, targets=targets)


def write_predictions(
    file: Path, predictor: Predictor, layout: Layout, predictions: Predictions, bad: dict[str, str]
) -> None:
    """Write one row per photo, as carvision.predict does: path, true class, predicted class, its id and probability.

    bad: {path: reason} of the unusable photos.
    """
    codes = {head: predictions.targets[head].tolist() for head in predictor.classes}
    with atomic_file(file) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        out.write(header(layout.columns, file.suffix))
        for start in range(0, len(predictions.paths), CHUNK):
            paths = predictions.paths[start : start + CHUNK]
            truths = [
                {head: None if codes[head][i] == UNKNOWN else codes[head][i] for head in codes}
                for i in range(start, start + len(paths))
            ]
            logits = {head: values[start : start + CHUNK] for head, values in predictions.logits.items()}
            rows = rows_of(predictor, layout, paths, truths, logits, [bad.get(path) for path in paths])
            out.write(to_text(rows, layout.columns, file.suffix))


def write_problems(folder: Path, bad: dict[str, str], unmatched: pd.DataFrame) -> None:
    """Write bad_images.csv and unmatched.csv if there is anything to list."""
    if bad:
        file = folder / "bad_images.csv"
        write_csv(file, pd.DataFrame({"path": list(bad), "reason": list(bad.values())}))
        log.warning("%d photos could not be read (first: %s); all are in %s", len(bad), next(iter(bad)), file)
    if len(unmatched):
        write_csv(folder / "unmatched.csv", unmatched)
