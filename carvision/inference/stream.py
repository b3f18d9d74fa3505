"""Send photos through the network to the output, batch by batch."""

from collections import deque
from collections.abc import Callable, Iterator

from carvision.errors import InputError
from carvision.inference.inputs import Photo
from carvision.inference.predictor import Predictor
from carvision.inference.reading import predict_items
from carvision.inference.rows import Layout, Truth, rows_of
from carvision.inference.truth import TrueClasses
from carvision.inference.writers import Output

OnRow = Callable[[Photo, Truth, dict], None]  # called with each photo, its true classes and its row


def skip_done(photos: Iterator[Photo], output: Output, truths: TrueClasses, on_row: OnRow) -> int:
    """Consume the photos that the unfinished output already has, and return their number.

    Raises InputError if its rows belong to other photos.
    """
    done = 0
    for row in output.rows():
        photo = next(photos, None)
        if photo is None or photo.path != row["path"]:
            now = "there are no more photos" if photo is None else f"now it is {photo.path}"
            raise InputError(
                f"the unfinished output has {row['path']} as photo {done + 1:,}, and {now}; give the same photos in "
                "the same order, or another --out"
            )
        on_row(photo, truths.codes(photo), row)
        done += 1
    return done


def predict_photos(
    predictor: Predictor, photos: Iterator[Photo], output: Output, layout: Layout, truths: TrueClasses, on_row: OnRow,
    advance: Callable[[int], None], **reading,
) -> None:  # fmt: skip
    """Write one row per photo, in order.

    advance: called with the number of photos of each batch. reading: keyword arguments of predict_items.
    """
    waiting: deque[Photo] = deque()  # requested ahead by the workers

    def items():
        for photo in photos:
            waiting.append(photo)
            yield photo.file, photo.box

    for batch in predict_items(predictor, items(), **reading):
        taken = [waiting.popleft() for _ in batch.items]
        known = [truths.codes(photo) for photo in taken]
        rows = rows_of(predictor, layout, taken, known, batch.logits, batch.reasons)
        output.write(rows)
        for photo, truth, row in zip(taken, known, rows, strict=True):
            on_row(photo, truth, row)
        advance(len(rows))
