"""Write an evaluation's predictions.csv in the format of carvision.predict."""

from pathlib import Path

from carvision.data.table import UNKNOWN
from carvision.evaluation.figures import CHUNK
from carvision.evaluation.predictions import Predictions
from carvision.inference.inputs import Photo
from carvision.inference.predictor import Predictor
from carvision.inference.rows import Layout, rows_of
from carvision.inference.text_rows import header, to_text
from carvision.whole_files import written_whole


def layout_of(predictor: Predictor) -> tuple[Layout, dict]:
    """Return the layout with the true classes, and its columns. Raises InputError if two columns have the same name."""
    layout = Layout(true_heads=tuple(predictor.classes))
    return layout, layout.columns(predictor.class_ids, predictor.labels)


def write_predictions(file: Path, predictor: Predictor, predictions: Predictions, bad: dict[str, str]) -> None:
    """Write one row per photo, as carvision.predict does: path, true class, predicted class, its id and probability."""
    layout, columns = layout_of(predictor)
    codes = {head: predictions.targets[head].tolist() for head in predictor.classes}
    with written_whole(file) as partial, partial.open("w", encoding="utf-8", newline="") as out:
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
