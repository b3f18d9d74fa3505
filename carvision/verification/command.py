"""Run carvision.verify, from the network's folder to the folder of the verification."""

import argparse
import logging
from pathlib import Path

from carvision.embedding.source import Source, open_source
from carvision.evaluation.photos import notes_on_seen_photos
from carvision.freed_memory import keep_freed_memory
from carvision.reports.verification import write_verification
from carvision.run_log import start_log
from carvision.verification.scoring import score
from carvision.verification.task import VerificationTask, read_task

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> Path:
    """Verify and return the folder written. options: of carvision.verify."""
    keep_freed_memory()
    start_log(None)
    source = open_source(options)
    task = read_task(source, options)
    notes = _notes(source, task, options.split or "test")
    for note in notes:
        log.warning("%s", note)
    needed = task.tested | task.train.photo_mask(len(task.table))
    if "joint_bayes" in options.methods:  # it learns from photos, the others from pairs
        needed |= task.learned
    log.info(
        "%s: %s photos, layer %s; %s training pairs",
        task.table.name, f"{needed.sum():,}", source.embedder.layer, f"{len(task.train):,}",
    )  # fmt: skip
    name = source.about["network"] if source.run is None else source.run.resolve().name
    about = {
        **source.about, "data": {"name": task.table.name, "root": str(task.table.root)}, "label": task.label,
        "seed": options.seed, "lists": task.lists, "notes": notes,
    }  # fmt: skip
    with source.claim_folder(options.out, "verifications") as folder:
        scored, train = score(task, source.embed(task.table.select(needed)), options.methods)
        about["train"] = {"split": options.train_split, **train}
        write_verification(folder, f"{name} on {task.table.name}", about, scored)
    return folder


def _notes(source: Source, task: VerificationTask, split: str) -> list[str]:
    return notes_on_seen_photos(task.table.select(task.tested), split, source.splits_files)
