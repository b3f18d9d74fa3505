"""What one start of carvision.evaluate does, from the model's folder to the folder of the evaluation."""

import json
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from carvision import portable
from carvision.data.table import UNKNOWN, Table
from carvision.description import read_description
from carvision.errors import InputError
from carvision.evaluation.calibration import fit_temperature
from carvision.evaluation.figures import CHUNK, head_weights_of, losses_of, measure
from carvision.evaluation.matching import Matched, match_classes
from carvision.evaluation.photos import compose_data, photos_of, read_photos
from carvision.evaluation.predicting import predict_table, rank_and_world_size
from carvision.evaluation.predictions import Predictions
from carvision.inference.inputs import Photo
from carvision.inference.predictor import Predictor
from carvision.inference.reading import choose_device
from carvision.inference.rows import Layout, rows_of
from carvision.inference.text_rows import header, to_text
from carvision.reports.evaluation.report import write_evaluation
from carvision.run_log import start_log

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
    no_temperature: bool,
    device: str,
) -> Path | None:
    """Returns the folder; None in all processes but the first. The arguments are those of carvision.evaluate."""
    rank, world_size = rank_and_world_size()
    start_log(None, quiet=rank > 0)
    folder = (out or run_folder(run) / "evaluations" / f"{split}_{time.strftime('%Y-%m-%d_%H-%M-%S')}").expanduser()
    predictor = Predictor([portable.load(path) for path in (run, *ensemble)], tta)
    labels = {name: predictor.about["labels"][name] for name in predictor.labels}
    data, own = compose_data(predictor.about, overrides)
    splits_file = run_folder(run) / "splits.csv"
    same = own and not any(word.lstrip("+").startswith("data.split.") for word in overrides)
    whole, repeated = read_photos(data, list(labels), split, splits_file if same and splits_file.is_file() else None)
    table, matched = judged_photos(photos_of(whole, split), labels, match, label)
    for note in matched.notes:
        log.warning("%s", note)
    choose_device(device)
    if rank == 0:
        claim_folder(folder)
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
    predict = partial(predict_table, predictor, data=data, device=device)
    log.info("%s: %s photos, %s", table.name, f"{len(table):,}", "all" if split == "all" else split)
    predictions, bad = predict(table, matched.targets, what=split)
    stored = not predictor.averages and "temperature" in predictor.about
    # The photos that chose the weights, and no others, choose the temperature.
    trained_on = same and (repeated or not any("data.root=" in word for word in overrides))
    notes = list(matched.notes)
    if not stored and not no_temperature and trained_on:
        val = predictions
        if split != "val" and "val" in set(whole.rows["split"]):
            val_table, val_matched = judged_photos(photos_of(whole, "val"), labels, match, label)
            val, _ = predict(val_table, val_matched.targets, what="val")
        if val is not None:
            predictor.temperature = _fit(predictor, run, val)
            predictions = replace(predictions, temperature=predictor.temperature)
    elif not stored:
        notes.append("no temperature was fitted: the probabilities are as the network gives them")
    if world_size > 1:
        torch.distributed.destroy_process_group()
    if predictions is None:
        return None
    about = {
        "run": str(run), "ensemble": [str(path) for path in ensemble], "tta": tta, "split": split,
        "data": {"name": data["name"], "root": str(table.root)}, "num_photos": len(table), "notes": notes,
    }  # fmt: skip
    _write(folder, predictor, predictions, matched.unmatched, bad, about, data, samples)
    return folder


def run_folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent


def judged_photos(table: Table, labels: dict, match: str, renamed: dict[str, str]) -> tuple[Table, Matched]:
    """The photos that can be judged, and their targets."""
    matched = match_classes(table, labels, match, renamed)
    targets = {name: values[torch.from_numpy(matched.judged)] for name, values in matched.targets.items()}
    return table.select(matched.judged), replace(matched, targets=targets)


def _fit(predictor: Predictor, run: Path, val: Predictions) -> dict[str, float]:
    """The temperature of each head, on validation photos; of a single network it is stored in its model.json."""
    fitted = {
        name: fit_temperature(val.logits[name][val.known(name)], val.targets[name][val.known(name)])
        for name in predictor.classes
    }
    log.info(
        "temperature on %s validation photos: %s",
        f"{len(val.paths):,}",
        ", ".join(f"{n} {t:.2f}" for n, t in fitted.items()),
    )
    if not predictor.averages:
        folder, file = portable.find_model(run)
        try:
            portable.write_description(folder, {**read_description(file), "temperature": fitted})
        except OSError as error:
            log.warning(
                "%s: the temperature can't be stored there (%s); this evaluation uses it all the same",
                file,
                error.strerror,
            )
    return fitted


def write_predictions(file: Path, predictor: Predictor, predictions: Predictions, bad: dict[str, str]) -> None:
    """A row a photo, as carvision.predict writes it: path, true class, predicted class, its id and probability."""
    layout = Layout(true_heads=tuple(predictor.classes))
    columns = layout.columns(predictor.class_ids, predictor.labels)
    codes = {head: predictions.targets[head].tolist() for head in predictor.classes}
    with file.open("w", encoding="utf-8", newline="") as out:
        out.write(header(columns, file.suffix))
        for start in range(0, len(predictions.paths), CHUNK):
            paths = predictions.paths[start : start + CHUNK]
            truths = [
                {head: None if codes[head][i] == UNKNOWN else codes[head][i] for head in codes}
                for i in range(start, start + len(paths))
            ]
            logits = {head: values[start : start + CHUNK] for head, values in predictions.logits.items()}
            photos, reasons = [Photo(path, path) for path in paths], [bad.get(path) for path in paths]
            out.write(to_text(rows_of(predictor, layout, photos, truths, logits, reasons), columns, file.suffix))


def _write(
    folder: Path,
    predictor: Predictor,
    predictions: Predictions,
    unmatched: pd.DataFrame,
    bad: dict[str, str],
    about: dict,
    data: dict,
    samples: int,
) -> None:
    labels = {name: predictor.about["labels"][name] for name in predictor.labels}
    rule = predictor.about["decoding"]
    # Where probabilities are averaged, a loss of the sigmoids of logits would be one of numbers that no network gave.
    loss = (
        {"name": "cross_entropy"}
        if predictor.averages
        else predictor.about["config"].get("loss", {"name": "cross_entropy"})
    )
    losses, head_weights = losses_of(predictions, labels, loss), head_weights_of(labels, loss)
    figures, decodings = measure(predictions, labels, losses, head_weights, rule)
    write_predictions(folder / "predictions.csv", predictor, predictions, bad)
    if bad:
        pd.DataFrame({"path": list(bad), "reason": list(bad.values())}).to_csv(folder / "bad_images.csv", index=False)
        log.warning(
            "%d photos could not be read (first: %s); all are in %s",
            len(bad),
            next(iter(bad)),
            folder / "bad_images.csv",
        )
    if len(unmatched):
        unmatched.to_csv(folder / "unmatched.csv", index=False)
    others = f" with {len(about['ensemble'])} more" if about["ensemble"] else ""
    views = f", views {about['tta']}" if about["tta"] != "none" else ""
    title = f"{Path(about['run']).name}{others} on {data['name']}, {about['split']}{views}"
    written = write_evaluation(
        predictions, labels, folder, figures=figures, decodings=decodings, losses=losses, head_weights=head_weights,
        rule=rule, title=title, notes=about["notes"], crop_to_box=data["crop_to_box"], num_samples=samples,
    )  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps({**about, **written}, indent=1))


def claim_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"--out: {folder} exists already; give a folder that does not, or remove it") from None
    except OSError as error:
        raise InputError(f"--out: {folder} can't be made ({error.strerror}); choose another with --out") from None
