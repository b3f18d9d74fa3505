"""What a server reports of a model: its heads, metrics with intervals, operating points, card, classes."""

import csv
import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from carvision.errors import InputError
from carvision.exports.hub import model_card
from carvision.inference.model_file import LoadedClassifier
from carvision.reports.tables import without_nan
from carvision.serving.limits import MAX_BODY_BYTES, MAX_PHOTOS, MAX_PIXELS, MAX_WAITING

SHARES = ("top1", "top3", "top5")  # metrics that are a share of photos
Z = 1.959964  # of an interval of 95 %
LIMITS = {"photos": MAX_PHOTOS, "body_bytes": MAX_BODY_BYTES, "pixels": MAX_PIXELS, "waiting": MAX_WAITING}


def wilson(share: float, num: int) -> tuple[float, float]:
    """Return the interval of 95 % of a share of `num` photos (Wilson 1927)."""
    centre = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def heads_of(model: LoadedClassifier) -> dict[str, dict[str, Any]]:
    """Return what each head predicts: classes, perhaps with a parent, or a number in a unit."""
    heads = {}
    for name in model.labels:
        label = model.about["labels"][name]
        if name in model.classes:
            parent = model.parents[name][0] if name in model.parents else None
            heads[name] = {"kind": "classes", "num_classes": len(model.classes[name]), "parent": parent}
        else:
            heads[name] = {"kind": "number", "unit": label.get("unit", "")}
    return heads


def metrics_of(model: LoadedClassifier, splits: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {split: {name: {"value", "low", "high", "num"}}}. low, high: of 95 %, for shares of `num` photos, else
    None. splits: the run's splits.csv, which has the number of photos; it may be missing."""
    counts = num_known(splits)
    found: dict = {}
    for split in ("val", "test"):
        values = model.about.get("metrics", {}).get(split)
        for name, value in (without_nan(values) if isinstance(values, dict) else {}).items():
            head, _, metric = name.rpartition("/")
            num = counts.get((split, head)) if metric in SHARES else None
            share = num and isinstance(value, int | float) and 0 <= value <= 1
            low, high = wilson(value, num) if share else (None, None)
            found.setdefault(split, {})[name] = {"value": value, "low": low, "high": high, "num": num}
    return found


def num_known(splits: Path) -> Counter[tuple[str, str]]:
    """Return {(split, head): number of photos whose class is known} of a splits.csv."""
    counts: Counter[tuple[str, str]] = Counter()
    try:
        with splits.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                split = row.get("split") or ""
                counts.update((split, head) for head, cell in row.items() if head and cell)
    except (OSError, ValueError, csv.Error):
        return Counter()
    return counts


def card_of(model: LoadedClassifier, splits: Path) -> str:
    """Return the model card as Markdown, without its front matter."""
    card = model_card(model, splits, splits.with_name("none.json"))
    return card.split("\n---\n", 1)[-1].strip() if card.startswith("---\n") else card


def find_classes(model: LoadedClassifier, head: str, text: str, offset: int, limit: int) -> dict[str, Any]:
    """Return the classes of a head whose name or id contains the text, in the order of the logits.

    Raises InputError for a head without classes.
    """
    if head not in model.classes:
        known = ", ".join(model.classes) or "none"
        raise InputError(f"{head[:100]!r} is no head with classes; those are: {known}")
    names, ids, wanted = model.classes[head], model.class_ids[head], _folded(text)
    codes = [i for i, (name, id_) in enumerate(zip(names, ids, strict=True))
             if not wanted or wanted in _folded(name) or wanted in _folded(id_)]  # fmt: skip
    classes = []
    for code in codes[offset : offset + limit]:
        parent = None
        if head in model.parents:
            of, parent_codes = model.parents[head]
            parent = {"id": model.class_ids[of][parent_codes[code]], "name": model.classes[of][parent_codes[code]]}
        classes.append({"id": ids[code], "name": names[code], "parent": parent})
    return {"head": head, "num_classes": len(names), "matches": len(codes), "classes": classes}


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
