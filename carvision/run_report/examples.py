"""The photos of a page: the surest mistakes and right answers with their heat maps, the nearest training photos, labels
that are probably wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pandas as pd

from carvision.data.table import UNKNOWN, Table
from carvision.embedding.embed import Embedder, Source
from carvision.embedding.store import Embeddings
from carvision.evaluation.predict import ReadingConfig, boxes_of
from carvision.explanation.cam import class_activation_maps
from carvision.explanation.overlay import overlay, seen_part
from carvision.metrics.neighbours import nearest
from carvision.models.classifier import Classifier
from carvision.reports.photos import data_uri, small_photo, thumbnail
from carvision.run_report.gather import Judged, RunResults
from carvision.run_report.label_errors import find_label_errors

NUM_MISTAKES, NUM_RIGHT, NUM_NEIGHBOURS, NUM_LABEL_ERRORS = 24, 8, 3, 24
MAX_GALLERY = 2000  # training photos among which the nearest ones are searched
PHOTO_PX, SMALL_PX = 260, 96
STRONG = 0.9  # accuracy from which on a suspicious label is more often wrong than the model


@dataclass
class Example:
    """A photo of the page. Names are shown; probabilities are of the predicted and the true class, 0..1.

    photo, heat_map: data URIs, "" without. neighbours: (data URI, name of its class) of training photos. note: a line
    below, such as how the heat map was made.
    """

    path: str
    true: str
    predicted: str
    prob: float
    prob_true: float
    photo: str = ""
    heat_map: str = ""
    note: str = ""
    neighbours: list[tuple[str, str]] = field(default_factory=list)


def surest(results: RunResults, head: str, right: bool, most: int) -> list[int]:
    """Return the rows of the photos with the highest probability among the mistakes, or among the right answers."""
    part, predictions = results.heads[head], results.judged[results.split].predictions
    known = np.flatnonzero(predictions.known(head).numpy())
    of_kind = np.flatnonzero(part.right == right)
    order = of_kind[np.argsort(-part.confidence[of_kind], kind="stable")]
    if right:  # one of each class, as the surest ones are often all of one
        classes = predictions.targets[head].numpy()[known[order]]
        order = order[np.sort(np.unique(classes, return_index=True)[1])]
    return known[order[:most]].tolist()


def examples_of(results: RunResults, head: str, rows: Sequence[int], gallery: Embeddings | None) -> list[Example]:
    """Return the photos of these rows, with heat maps of the predicted class and the nearest training photos."""
    judged, part = results.judged[results.split], results.heads[head]
    predictions, names = judged.predictions, results.labels[head]["names"]
    boxes = boxes_of(judged.table, results.chosen.data)
    probs = predictions.probs(head)
    found = []
    for row in rows:
        true, guess = int(predictions.targets[head][row]), int(part.predicted[row])
        found.append(
            Example(
                predictions.paths[row], names[true], names[guess], float(probs[row, guess]), float(probs[row, true])
            )
        )
    _add_heat_maps(results, judged, head, rows, found, boxes)
    if gallery is not None and rows:
        _add_neighbours(results, judged.table, head, rows, found, gallery)
    return found


def _add_heat_maps(
    results: RunResults, judged: Judged, head: str, rows: Sequence[int], found: list[Example], boxes: np.ndarray | None
) -> None:
    predicted = results.heads[head].predicted
    for row, example in zip(rows, found, strict=True):
        box = None if boxes is None else boxes[row]
        image = small_photo(judged.predictions.photo(row), max(PHOTO_PX, results.preprocessing.size_px), box)
        if image is None:
            continue
        [made] = class_activation_maps(results.model, [image], [None], head, [int(predicted[row])])
        shown = seen_part(image, results.preprocessing, None)
        shown.thumbnail((PHOTO_PX, PHOTO_PX))
        example.photo, example.heat_map = data_uri(shown), data_uri(overlay(shown, made.values))
        example.note = made.note


def embed_training_photos(results: RunResults) -> Embeddings | None:
    """Embed training photos, at most MAX_GALLERY, evenly of all classes; None without any."""
    train, head = results.train, results.main_head
    if head is None or head not in train.labels:
        return None
    order = np.random.default_rng(0).permutation(np.flatnonzero(train.rows[head] != UNKNOWN))
    rank = train.rows[head].iloc[order].groupby(train.rows[head].iloc[order]).cumcount().to_numpy()
    chosen = np.zeros(len(train), bool)
    chosen[order[np.argsort(rank, kind="stable")[:MAX_GALLERY]]] = True
    return _embed(results, train.select(chosen)) if chosen.any() else None


def _embed(results: RunResults, table: Table) -> Embeddings:
    embedder = Embedder(cast(Classifier, results.model), results.preprocessing)
    return Source(embedder, results.chosen, results.device, results.folder, {}).embed(table)


def _add_neighbours(
    results: RunResults, table: Table, head: str, rows: Sequence[int], found: list[Example], gallery: Embeddings
) -> None:
    """Add the nearest training photos to the examples, which are these rows of the table."""
    chosen = np.zeros(len(table), bool)
    chosen[list(rows)] = True
    own = _embed(results, table.select(chosen))
    _, near = nearest(own.values, gallery.values, min(NUM_NEIGHBOURS, len(gallery.values)))
    near_of = dict(zip(own.table.rows["path"], near, strict=True))
    codes, names = gallery.table.rows[head].to_numpy(), gallery.table.class_labels[head].names
    boxes = boxes_of(gallery.table, results.chosen.data)
    for example in found:
        example.neighbours = [
            (thumbnail(gallery.table.photo(i), SMALL_PX, None if boxes is None else boxes[i]), names[codes[i]])
            for i in near_of.get(example.path, ())
        ]


def class_samples(results: RunResults, head: str, size_px: int, quality: int) -> list[str]:
    """Return a photo of each class as a data URI, of the training photos if there are any, "" where there is none."""
    train = results.train if len(results.train) else results.judged[results.split].table
    ids = results.labels[head]["ids"]
    samples = [""] * len(ids)
    if head not in train.class_labels:
        return samples
    boxes, own_ids = boxes_of(train, results.chosen.data), train.class_labels[head].ids
    codes = train.rows[head].to_numpy()
    first = {own_ids[code]: row for row, code in reversed(list(enumerate(codes))) if code != UNKNOWN}
    for code, identity in enumerate(ids):
        if identity in first:
            row = first[identity]
            samples[code] = thumbnail(train.photo(row), size_px, None if boxes is None else boxes[row], quality)
    return samples


def wrong_labels(judged: Mapping[str, Judged], head: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the photos whose label is probably wrong, most likely first, of all parts together.

    judged: {part: photos with predictions of a network that was not trained on them}: splits, or the tests of folds.
    names: of the head's classes. Columns: split (the part), path, given, suggested (names), score (0..1: how much more
    probable the suggested class is than the given one), row.
    """
    known = {part: np.flatnonzero(each.predictions.known(head).numpy()) for part, each in judged.items()}
    parts = np.repeat(np.array([*known], object), [*map(len, known.values())])
    rows = np.concatenate([*known.values()]).astype(int)
    probs = np.concatenate([judged[part].predictions.probs(head)[own].numpy() for part, own in known.items()])
    targets = np.concatenate([judged[part].predictions.targets[head][own].numpy() for part, own in known.items()])
    found = find_label_errors(probs, targets)
    found = found[found["score"] > 0]
    at, shown = found["row"].to_numpy(int), np.array(names, dtype=object)
    paths = [judged[part].predictions.paths[row] for part, row in zip(parts[at], rows[at], strict=True)]
    given, suggested = (shown[found[name].to_numpy(int)] for name in ("given", "suggested"))
    columns = {"split": parts[at], "path": paths, "given": given, "suggested": suggested}
    return pd.DataFrame({**columns, "score": found["score"].to_numpy(), "row": rows[at]})


def label_photos(judged: Mapping[str, Judged], suspicious: pd.DataFrame, data: ReadingConfig) -> list[dict]:
    """Return the first rows of wrong_labels, each with its "photo" as a data URI. data: how photos are read."""
    shown = []
    for row in suspicious.head(NUM_LABEL_ERRORS).to_dict("records"):
        part = judged[row["split"]]
        boxes = boxes_of(part.table, data)
        box = None if boxes is None else boxes[row["row"]]
        shown.append({**row, "photo": thumbnail(part.predictions.photo(row["row"]), PHOTO_PX, box)})
    return shown
