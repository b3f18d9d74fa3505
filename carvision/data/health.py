"""Check a data set before training: unreadable photos, copies, class counts, brightness and colours."""

import contextlib
import hashlib
import math
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from carvision.data.decode import SIDEWAYS, decode_part, grey_bits, upright_turn
from carvision.data.images import BadImage, Preprocessing, check_box, open_bytes, read_file
from carvision.data.packs.read import PackedPhoto
from carvision.data.table import BOX, SPLITS, UNKNOWN, Classes, Table
from carvision.data.threads import InThreads
from carvision.errors import InputError
from carvision.files.progress import show_bar

NO_SPLIT = "no split"
PERCENTILES = (10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90)
IMAGENET = {"red": 0.485, "green": 0.456, "blue": 0.406, "red_std": 0.229, "green_std": 0.224, "blue_std": 0.225}
# In photos of things and people red is on average the brightest channel and blue the darkest. A mean blue - red above
# both of these has a cause: sky, sea, or swapped channels. Splits with fewer than MIN_PHOTOS readable photos don't
# count.
MORE_BLUE, STANDARD_ERRORS, MIN_PHOTOS = 0.01, 3, 10
# Decode as training does, at a small size: libjpeg then scales by up to 1/8, which takes a fraction of the time and
# still reads all the data, so that truncation shows as in a full decode.
SMALL = Preprocessing(size_px=64, mean=(0, 0, 0), std=(1, 1, 1))
DARK = 16  # of 255; a photo is nearly black if 99 % of its values are below
NEARLY_BLACK, FEWER_BITS = "nearly black", "values of {} bits"  # notes

# Kinds of problems: the first whose pattern fits the beginning of the reason, else "unreadable"
KINDS = {
    "truncated": "(?i).*truncated", "decompression bomb": ".*bomb", "box without area": "box .*has no area",
    "box outside the photo": "box", "missing": "the file is missing", "empty": "the file is empty",
    "not a photo": "not a supported image", "too few bytes": "too few bytes",
}  # fmt: skip


def scan_photos(table: Table, boxes: bool, num_workers: int) -> pd.DataFrame:
    """Read and decode every photo. Return path and the columns of PhotoFacts, one row per photo in the table's order.

    boxes: also check the table's boxes. num_workers: threads; 0: this one. Besides the result (about 600 bytes per
    photo), a thread holds one decoded photo at a time. Raises InputError for boxes that the table lacks.
    """
    if boxes and not table.has_boxes:
        raise InputError(f"data.crop_to_box: {table.name} has no boxes; set it to false")
    corners = table.rows[BOX].to_numpy(np.float32) if boxes else None
    tasks = ((table.photo(i), None if corners is None else corners[i]) for i in range(len(table)))
    found: list[PhotoFacts] = []
    num_bad = 0
    with (
        catch_warnings(),
        contextlib.closing(InThreads(inspect_photo, tasks, num_workers)) as results,
        show_bar("reading photos", len(table), keep=False) as advance,
    ):
        for facts in results:
            found.append(facts)
            num_bad += bool(facts.problem)
            advance(1, f"reading photos ({num_bad:,} with a problem)")
    scan = pd.DataFrame(found, columns=PhotoFacts._fields)
    scan.insert(0, "path", table.rows["path"].to_numpy())
    return scan


class Caught(threading.local):
    """The number of warnings in this thread, see `catch_warnings`."""

    warnings = 0


caught = Caught()


@contextlib.contextmanager
def catch_warnings() -> Iterator[None]:
    """Count each thread's warnings rather than print them: Pillow's about odd metadata, which `inspect_photo` notes.
    For the whole process, so the main thread enters it."""

    def count(*_, **__) -> None:
        caught.warnings += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        yield


class PhotoFacts(NamedTuple):
    """The facts about one photo. What can't be read is 0, "" or NaN.

    bytes: size of the file. width, height: pixels of the upright photo. problem: "" or its kind; detail: the full
    reason. note: unusual properties that training handles, joined by "; ". digest: SHA-256 of the bytes as hex. red to
    blue_std: mean and standard deviation of each channel in 0..1, of the photo scaled down to a short side of 64 pixels
    or more.
    """

    bytes: int
    width: int
    height: int
    mode: str
    format: str
    problem: str
    detail: str
    note: str
    digest: str
    red: float = math.nan
    green: float = math.nan
    blue: float = math.nan
    red_std: float = math.nan
    green_std: float = math.nan
    blue_std: float = math.nan


def inspect_photo(photo: str | Path | PackedPhoto, box: np.ndarray | None) -> PhotoFacts:
    """Read and decode a photo and collect its facts. box: float (4,) pixels of the upright photo, NaN if it has none;
    None: don't check it. Warnings are only noted within `catch_warnings`."""
    num_bytes, width, height, mode, form, digest, reason, notes, colours = 0, 0, 0, "", "", "", "", [], []
    caught.warnings = 0
    try:
        data = read_file(photo)
        num_bytes, digest = len(data), hashlib.sha256(data).hexdigest()
        with open_bytes(data) as image:
            width, height = image.size[::-1] if upright_turn(image) in SIDEWAYS else image.size
            mode, form = image.mode, image.format or ""
            notes = _notes(image, photo)
            pixels = decode_part(image, SMALL)
            colours = _colours(pixels)
            notes += _notes_on_values(image, pixels)
            if box is not None and np.isnan(box).any():
                notes.append("no box")
            elif box is not None:
                check_box(box, width, height)
    except BadImage as error:
        reason = str(error)
    if caught.warnings:
        notes.append("odd metadata")
    problem = next((kind for kind, start in KINDS.items() if re.match(start, reason)), "unreadable" if reason else "")
    return PhotoFacts(num_bytes, width, height, mode, form, problem, reason, "; ".join(notes), digest, *colours)


def _notes(image: Image.Image, photo: str | Path | PackedPhoto) -> list[str]:
    """Return notes on the opened image's format and metadata."""
    mode = image.mode
    suffix = "" if isinstance(photo, PackedPhoto) else Path(photo).suffix  # a packed photo may be in another format
    expected = Image.registered_extensions().get(suffix.lower())
    facts = {
        "greyscale": mode in ("1", "L", "LA") or mode.startswith("I"),
        "16-bit": mode.startswith("I"),
        "CMYK": mode == "CMYK",
        "palette": mode in ("P", "PA"),
        "transparency": image.has_transparency_data,
        "turned by EXIF": upright_turn(image) is not None,
        "animated": image.format != "MPO" and _is_animated(image),  # MPO: a camera's JPEG with its preview
        f"{image.format} named {suffix}": expected not in (None, image.format) and image.format != "MPO",
    }
    return [note for note, holds in facts.items() if holds]


def _colours(pixels: Image.Image) -> list[float]:
    """Return the means of red, green and blue, then their standard deviations, in 0..1."""
    counts = np.array(pixels.histogram(), np.float64).reshape(3, 256)
    values, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    means = shares @ values
    stds = np.sqrt((shares @ values**2 - means**2).clip(min=0))
    return [round(float(value), 5) for value in (*means, *stds)]


def _notes_on_values(image: Image.Image, pixels: Image.Image) -> list[str]:
    """Return notes on the values of the image. pixels: the image as training sees it."""
    notes = []
    if image.mode.startswith("I"):
        bits, stated = grey_bits(image, np.asarray(image))
        notes += [] if stated or bits == 16 else [FEWER_BITS.format(bits)]
    counts = np.array(pixels.histogram()).reshape(3, 256)
    return notes + ([NEARLY_BLACK] if counts[:, :DARK].sum() >= 0.99 * counts.sum() else [])


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # damaged after the first frame, which alone is used
        return False


def find_copies(table: Table, scan: pd.DataFrame) -> pd.DataFrame:
    """Return the photos whose bytes another photo has, too, sorted by group. scan: from `scan_photos`.

    Columns: group (from 0), path, split, each label (names of classes; "" or NaN if not known), conflict (the group has
    different known values of some label), across_splits (the group is in different splits).
    """
    real = (scan["bytes"] > 0).to_numpy()  # empty and missing files are not copies
    copied = real & scan["digest"].duplicated(keep=False).to_numpy()
    rows = table.rows.loc[copied].reset_index(drop=True)
    group = pd.Series(pd.factorize(scan.loc[copied, "digest"])[0], name="group")
    copies = pd.concat([group, rows[["path", "split"]]], axis=1)
    conflict = np.zeros(len(rows), bool)
    for name, label in table.labels.items():
        values = rows[name]
        if isinstance(label, Classes):
            names = np.array([*label.names, ""], dtype=object)  # the last entry serves UNKNOWN = -1
            copies[name] = names[values.to_numpy()]
            values = values.where(values != UNKNOWN)
        else:
            copies[name] = values
        conflict |= (values.groupby(group).transform("nunique") > 1).to_numpy()  # NaN does not count
    copies["conflict"] = conflict
    split = rows["split"].where(rows["split"] != "")
    copies["across_splits"] = split.groupby(group).transform("nunique") > 1
    return copies.sort_values("group", kind="stable", ignore_index=True)


def class_counts(table: Table, label: str) -> pd.DataFrame:
    """Count the photos of each class of a label, a row per class in the order of codes.

    Columns: id, name, one per split that the table has ("no split" for photos that its own split leaves out), total.
    Photos of unknown class are not counted.
    """
    classes = table.class_labels[label]
    codes = table.rows[label].to_numpy()
    split = table.rows["split"].replace("", NO_SPLIT).to_numpy()
    counts = pd.DataFrame({"id": classes.ids, "name": classes.names})
    for name in (*SPLITS, NO_SPLIT):
        if (split == name).any():
            counts[name] = np.bincount(codes[(split == name) & (codes != UNKNOWN)], minlength=len(classes))
    counts["total"] = np.bincount(codes[codes != UNKNOWN], minlength=len(classes))
    return counts


def describe_colours(table: Table, scan: pd.DataFrame) -> pd.DataFrame:
    """Average the colours per split, and over all in a last row: split, photos (readable), and the means of each
    photo's red, ..., blue_std, in 0..1, as ImageNet's were computed."""
    split = table.rows["split"].replace("", NO_SPLIT).to_numpy()
    good = scan["red"].notna().to_numpy()
    present = [name for name in (*SPLITS, NO_SPLIT) if (good & (split == name)).any()]
    described = []
    for name in [*present, *(["all"] if len(present) > 1 else [])]:
        photos = scan[good & ((split == name) | (name == "all"))]
        described.append({"split": name, "photos": len(photos), **photos[list(IMAGENET)].mean()})
    return pd.DataFrame(described, columns=["split", "photos", *IMAGENET])


def hints_on_values(table: Table, scan: pd.DataFrame) -> list[str]:
    """Return a line for each suspicious property of the photos' brightness and colours."""
    hints = []
    dark = scan.loc[scan["note"].str.contains(NEARLY_BLACK), "path"]
    if len(dark):
        hints.append(
            f"{len(dark):,} photos are nearly black (first: {dark.iloc[0]}). If they should not be, their files hold "
            "more than 8 bits a channel and use few of them: convert them to 8 bits, with one scale for all"
        )
    bits = scan["note"].str.extract(rf"({FEWER_BITS.format('[0-9]+')})")[0].dropna()
    if len(bits):
        counts = ", ".join(f"{count:,} {note}" for note, count in bits.value_counts().items())
        hints.append(
            f"{len(bits):,} grey photos of 16 or 32 bits are read as {counts}, the fewest that hold the photo's "
            f"largest value (first: {scan['path'][bits.index[0]]}). So a dark photo becomes brighter; if it should "
            "not, convert them to 8 bits, with one scale for all, or state MaxSampleValue in TIFF"
        )
    split = table.rows["split"].to_numpy()
    blue = []
    for name in (*SPLITS, ""):
        blue += _hint_of_blue(scan[split == name], f" of {name}" if name else "")
    return hints + (blue or _hint_of_blue(scan, ""))  # all photos, if each split has too few


def _hint_of_blue(scan: pd.DataFrame, of_split: str) -> list[str]:
    """Return a line if the photos are more blue than red, else none."""
    photos = scan.dropna(subset="red")
    more = photos["blue"] - photos["red"]
    if len(more) < MIN_PHOTOS or more.mean() <= max(MORE_BLUE, STANDARD_ERRORS * more.std() / np.sqrt(len(more))):
        return []
    return [
        f"the photos{of_split} are on average more blue than red ({photos['blue'].mean():.3f} and "
        f"{photos['red'].mean():.3f}). Sky, sea and studio light make them so; else red and blue may have been "
        "exchanged (BGR saved as RGB): look at samples_<label>.png"
    ]


def describe_counts(counts: pd.DataFrame) -> pd.DataFrame:
    """Summarise `class_counts` per split, and over all in a last row.

    Columns: split, classes (with photos), photos, and over all classes, also those without photos: mean, std (sample,
    NaN for one class), min, p10 to p90 with p25 and p75, max.
    """
    splits = [name for name in (*SPLITS, NO_SPLIT) if name in counts]
    described = []
    for split, column in [(name, name) for name in splits] + ([("all", "total")] if len(splits) > 1 else []):
        photos = counts[column]
        num = {"split": split, "classes": int((photos > 0).sum()), "photos": int(photos.sum())}
        of_class = {"mean": photos.mean(), "std": photos.std(), "min": int(photos.min())}
        percentiles = {f"p{q}": float(np.percentile(photos, q)) for q in PERCENTILES}
        described.append({**num, **of_class, **percentiles, "max": int(photos.max())})
    return pd.DataFrame(described)
