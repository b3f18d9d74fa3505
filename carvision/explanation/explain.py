"""Draw heat maps of the photos of a command line: a picture for each, the photo beside the maps of its classes."""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvision.data.decode import WHOLE, to_rgb, upright_turn, wanted_part
from carvision.data.images import BadImage, Preprocessing, open_image
from carvision.data.paths import nfc
from carvision.data.readers.walk import LeftOut
from carvision.errors import InputError, one_line, suggest
from carvision.explanation.cam import BATCH_SIZE, CamMap, class_activation_maps
from carvision.explanation.overlay import overlay
from carvision.files.atomic import file_stems
from carvision.files.folders import output_folder
from carvision.files.progress import show_progress
from carvision.inference.model_file import load
from carvision.inference.predictor import Batch, Predictor, predict_items
from carvision.inference.rows import NOT_A_NUMBER, best_codes
from carvision.inference.run import choose_boxes, with_root
from carvision.inference.sources import Photo, Sources, check_sources, iterate_photos, require_photos
from carvision.reports.photos import CAPTION_PT, Row, Tile, plot_sheet, wrap_text
from carvision.reports.plots import FAINT, TEXT

log = logging.getLogger(__name__)

SIDE_PX = 420  # the longer one of a photo in the picture
PER_ROW = 4  # photo and maps
SUFFIX = ".cam.png"


class Shown(NamedTuple):
    """A photo with its predictions. title: the predicted class; names: of the explained classes, with probabilities;
    codes: theirs."""

    photo: Photo
    image: Image.Image
    title: str
    names: list[str]
    codes: list[int]


def run(options: argparse.Namespace) -> tuple[Path, int]:
    """Write a picture for each photo that the options of carvision.explain ask for.

    Returns the folder, and the number of photos that can't be used; each of them is logged. Raises InputError, also if
    that is all of them.
    """
    sources = Sources(tuple(options.photos), options.listed, options.root, options.split)
    check_sources(sources)
    if options.class_ is not None and options.top > 1:
        raise InputError("--class: explains one class; leave it out, or --top")
    model = load(options.run)
    predictor = Predictor([model])
    head = choose_head(predictor, options.head)
    chosen = None if options.class_ is None else find_class(predictor, head, options.class_)
    sources = with_root(sources, predictor)
    uses_boxes = choose_boxes(predictor, options.listed)
    left_out = LeftOut()
    photos = require_photos(iterate_photos(sources, left_out=left_out), sources)
    photos = [photo if uses_boxes else photo._replace(box=None) for photo in photos]
    parent = (options.run if options.run.is_dir() else options.run.parent) / "explanations"
    stems: Counter[str] = Counter()
    num_unusable = 0
    with (
        output_folder(options.out, parent, "explanations") as folder,
        show_progress(len(photos), 0, bar=False) as advance,
    ):
        items = ((photo.file, photo.box) for photo in photos)
        for number, batch in enumerate(predict_items(predictor, items, options.device, BATCH_SIZE)):
            of_batch = photos[number * BATCH_SIZE :][: len(batch.items)]
            shown = open_predicted(predictor, head, of_batch, batch, options.top, chosen)
            num_unusable += len(of_batch) - len(shown)
            repeated = [(each.image, each.photo.box, code) for each in shown for code in each.codes]
            images, boxes, codes = zip(*repeated, strict=True) if repeated else ((), (), ())
            maps = iter(class_activation_maps(model, images, boxes, head, codes))
            for each in shown:
                file = folder / f"{free_stem(each.photo.path, stems)}{SUFFIX}"
                draw(each, [next(maps) for _ in each.codes], model.preprocessing, file)
            advance(len(of_batch))
        if num_unusable == len(photos):
            raise InputError("no photo of those given can be used; give others")
    if line := left_out.line():
        log.info("%s", line)
    return folder, num_unusable


def choose_head(predictor: Predictor, head: str | None) -> str:
    """Return the head to explain: the wanted one, else the last with classes. Raises InputError for an unknown one."""
    if head is None:
        return [*predictor.labels, *predictor.class_ids][-1]
    if head not in predictor.labels:
        raise InputError(f"--head: {head!r} is not one of {', '.join(predictor.labels)}")
    return head


def find_class(predictor: Predictor, head: str, wanted: str) -> int:
    """Return the code of the class with this id, else of the only one with this name. Raises InputError."""
    if head not in predictor.class_ids:
        raise InputError(f"--class: {head} estimates a number and has no classes; leave it out")
    ids, names = ([nfc(text) for text in texts[head]] for texts in (predictor.class_ids, predictor.classes))
    if nfc(wanted) in ids:
        return ids.index(nfc(wanted))
    codes = [code for code, name in enumerate(names) if name == nfc(wanted)]
    if len(codes) > 1:
        some = ", ".join(ids[code] for code in codes[:5])
        raise InputError(f"--class: {len(codes)} classes of {head} are named {wanted!r}; give an id instead ({some})")
    if not codes:
        near = suggest(wanted, [*names, *ids])
        raise InputError(f"--class: {wanted!r} is not the id or the name of one of the {len(ids):,} classes of "
                         f"{head}{near}")  # fmt: skip
    return codes[0]


def open_predicted(
    predictor: Predictor, head: str, photos: Sequence[Photo], batch: Batch, top: int, chosen: int | None
) -> list[Shown]:
    """Return the photos that can be used with their predictions; log the others. chosen: code of the class to explain
    instead of the `top` likeliest ones."""
    logits = batch.logits
    if head in predictor.class_ids:
        values = predictor.probs(logits)[head].numpy()
        decoded = predictor.decode(logits)
        best = best_codes(values, decoded[head].numpy() if head in decoded else np.zeros(len(values), int), top)
    else:
        values, best = logits[head].float().numpy(), np.zeros((len(photos), 1), int)
    shown = []
    for i, photo in enumerate(photos):
        reason = batch.reasons[i] or (None if np.isfinite(values[i]).all() else NOT_A_NUMBER)
        try:
            if reason:
                raise BadImage(reason)
            image = upright(photo.file)
        except BadImage as error:
            log.warning("%s", one_line(f"{photo.path}: {error}"))
            continue
        codes = best[i].tolist() if chosen is None else [chosen]
        title, *names = (describe(predictor, head, values[i], code) for code in (int(best[i, 0]), *codes))
        shown.append(Shown(photo, image, title, names, codes))
    return shown


def upright(file: str) -> Image.Image:
    """Return the whole photo, upright, RGB. Raises BadImage."""
    with open_image(file) as image:
        turn = upright_turn(image)
        try:
            whole = to_rgb(image)
        except BadImage:
            raise
        except Exception as error:  # each decoder raises its own kinds
            raise BadImage(f"can't be decoded ({one_line(error)})") from None
        return whole if turn is None else whole.transpose(turn)


def describe(predictor: Predictor, head: str, values: np.ndarray, code: int) -> str:
    """Return a class with its probability, or the number that the head estimates. values: of the head, (C,)."""
    if head not in predictor.class_ids:
        return f"{head} {values[0]:.4g}"
    return f"{predictor.classes[head][code]} {100 * values[code]:.1f} %"


def free_stem(path: str, taken: Counter[str]) -> str:
    """Return a name for the photo's picture that no earlier one has, also on disks that ignore case."""
    own = PurePath(path.replace("\\", "/")).stem or "photo"
    stem = file_stems([own])[own]
    name = stem
    while taken[name.casefold()]:
        taken[stem.casefold()] += 1
        name = f"{stem}_{taken[stem.casefold()]}"
    taken[name.casefold()] += 1
    return name


def draw(shown: Shown, maps: Sequence[CamMap], preprocessing: Preprocessing, file: Path) -> None:
    """Write a PNG: the photo, with an outline of the part that the network saw, beside the map of each class."""
    image = shown.image
    scale = SIDE_PX / max(image.size)
    tile_px = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    box = None if shown.photo.box is None else np.asarray(shown.photo.box, np.float32)
    _, part = wanted_part(*image.size, preprocessing, box, WHOLE, 0.5, can_scale=False)
    is_whole = part == (0, 0, *image.size)
    outline = None if is_whole else np.array(part) * scale
    lines = [(line, TEXT) for line in wrap_text(PurePath(shown.photo.path).name, tile_px[0], CAPTION_PT)]
    lines += [] if is_whole else [("outlined: the part that the network sees", FAINT)]
    tiles: list[Tile | str] = [Tile(image.resize(tile_px, Image.Resampling.BICUBIC), lines, box=outline)]
    seen = image.crop(part)
    shrink = min(tile_px[0] / seen.width, tile_px[1] / seen.height)
    seen = seen.resize((max(1, round(seen.width * shrink)), max(1, round(seen.height * shrink))))
    for name, cam in zip(shown.names, maps, strict=True):
        lines = [(line, TEXT) for line in wrap_text(f"evidence for {name}", tile_px[0], CAPTION_PT)]
        lines += [(line, FAINT) for line in wrap_text(cam.note, tile_px[0], CAPTION_PT) if line]
        tiles.append(Tile(overlay(seen, cam.values), lines))
    rows = [Row(tiles[start : start + PER_ROW]) for start in range(0, len(tiles), PER_ROW)]
    try:
        plot_sheet(rows, file, title=shown.title, tile_px=tile_px)
    except OSError as error:
        raise InputError(f"--out: {file} can't be written ({error.strerror or error}); choose another") from None
