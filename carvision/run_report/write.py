"""Write the page of a run: report.html in its folder."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from carvision.embedding.store import Embeddings
from carvision.errors import one_line
from carvision.evaluation.page.write import head_values
from carvision.evaluation.report import calibration_tables, metric_tables
from carvision.reports.page import write_template
from carvision.run_report.examples import (
    MAX_GALLERY,
    NUM_MISTAKES,
    NUM_RIGHT,
    STRONG,
    Example,
    class_samples,
    embed_training_photos,
    examples_of,
    label_photos,
    surest,
    wrong_labels,
)
from carvision.run_report.facts import curves, data_sheet, run_facts, run_warnings
from carvision.run_report.folds import LABEL_ERRORS, Fold, fold_of, write_folds_page, write_label_errors
from carvision.run_report.gather import RunResults, gather
from carvision.run_report.verdict import threshold_of, verdict

log = logging.getLogger(__name__)

REPORT = "report.html"
SAMPLES_BYTES = 2_500_000  # of the photos of all classes, at most


def write_report(run: Path, overrides: list[str], device: str = "auto") -> Path:
    """Write report.html into the run's folder and return its path.

    run: the folder of a finished run, or of one of several folds: then each fold has a page, and the run one of all.
    overrides: of the data group, as data.root=<where the photos are now>. Also writes label_errors_<head>.csv if labels
    of photos that the network was not trained on are probably wrong. Raises InputError if the model or its photos
    can't be read.
    """
    folds = [part for part in sorted(run.glob("fold_*")) if (part / "model.json").exists()] if run.is_dir() else []
    if not folds:
        return _write_run(gather(run, overrides, device))
    tested: dict[str, Fold] = {}
    for fold in folds:
        results = gather(fold, overrides, device)
        _write_run(results)
        tested[fold.name] = fold_of(results)
    return write_folds_page(run / REPORT, tested)


def _write_run(results: RunResults) -> Path:
    """Write the page of a single run into its folder and return its path."""
    main = results.main_head
    gallery = embed_training_photos(results)
    heads = [_head_values(results, head) for head in results.heads]
    mistakes, right, suspicious, map_note = [], [], pd.DataFrame(), ""
    if main is not None:
        mistakes = examples_of(results, main, surest(results, main, False, NUM_MISTAKES), gallery)
        right = examples_of(results, main, surest(results, main, True, NUM_RIGHT), None)
        map_note = _shared_note([*mistakes, *right])
        suspicious = wrong_labels(results.judged, main, results.labels[main]["names"])
        write_label_errors(results.folder, main, suspicious)
    accuracy = float(results.heads[main].right.mean()) if main else 1.0
    tables, notes = data_sheet(results)
    judged = results.judged[results.split]
    file = results.folder / REPORT
    write_template(
        file,
        "run.html",
        title=results.folder.resolve().name,
        about=f"{results.table.name}, judged on {len(judged.table):,} {results.split} photos",
        verdict=verdict(results),
        facts=run_facts(results),
        warnings=run_warnings(results.folder),
        curves=curves(results),
        metrics=metric_tables(results.measured.values, results.measured.intervals, results.labels),
        calibration=calibration_tables(
            results.measured.values, results.measured.intervals, judged.predictions.temperature, list(results.heads)
        ),
        heads=heads,
        main=main,
        mistakes=mistakes,
        num_mistakes=int((~results.heads[main].right).sum()) if main else 0,
        right=right,
        map_note=map_note,
        gallery_note=_gallery_note(gallery, len(results.train)),
        suspicious=label_photos(results.judged, suspicious, results.chosen.data),
        num_suspicious=len(suspicious),
        weak=accuracy if accuracy < STRONG else None,
        label_file=LABEL_ERRORS.format(main),
        sheet=tables,
        sheet_notes=notes,
        bad=results.bad,
        run=str(results.folder),
    )
    return file


def write_reports(folder: Path) -> Iterator[Path]:
    """Write the page of a finished run, or of each of its folds or seeds, at the end of training; yield each page.

    A page that can't be written is a warning: the run itself is whole.
    """
    for part in [folder, *sorted(folder.glob("seed_*"))]:
        if (part / "model.json").exists() or any(part.glob("fold_*/model.json")):
            try:
                page = write_report(part, [])
            except Exception as error:  # whatever it is, training has ended well
                log.warning("%s can't be written: %s", part / REPORT, one_line(error))
            else:
                yield page


def _head_values(results: RunResults, head: str) -> dict:
    """Return what the template shows of a head: evaluation.page's values, with a photo of each class."""
    values = head_values(results.judged[results.split].predictions, results.labels, head, results.heads[head])
    ids = results.labels[head]["ids"]
    budget = SAMPLES_BYTES / len(results.heads) / len(ids)
    size_px, quality = (64, 70) if budget > 2400 else (40, 60) if budget > 1200 else (28, 50)
    samples = class_samples(results, head, size_px, quality) if budget > 700 else [""] * len(ids)
    of_id = dict(zip(ids, samples, strict=True))
    classes = [{**row, "sample": of_id[row["id"]]} for row in values["classes"]]
    return {**values, "classes": classes, "sample_px": size_px, "threshold": threshold_of(results, head)}


def _shared_note(examples: list[Example]) -> str:
    """Return how all the heat maps were made, and take it out of their own notes; "" if they were made differently."""
    parts = [example.note.partition("; ") for example in examples if example.note]
    if len({part[0] for part in parts}) != 1 or len(parts) < len(examples):
        return ""
    for example, part in zip(examples, parts, strict=True):
        example.note = part[2]
    return f"The heat maps were {parts[0][0]}."


def _gallery_note(gallery: Embeddings | None, num_train: int) -> str:
    if gallery is None:
        return ""
    of_all = f" of the {num_train:,}" if num_train > MAX_GALLERY else ""
    return f"Below: the nearest of {len(gallery.table):,}{of_all} training photos."
