"""Gather what the page of a run shows: its model, its photos, its predictions of validation and test photos."""

from dataclasses import dataclass, replace
from pathlib import Path

from carvision.data.images import Preprocessing
from carvision.data.table import LabelDescription, Table
from carvision.evaluation.bootstrap import Measured, measure
from carvision.evaluation.calibration import choose_temperature
from carvision.evaluation.metrics import HeadResult, evaluation_loss, head_results, head_weights_of, photo_losses
from carvision.evaluation.predict import Predictions, predict_table
from carvision.evaluation.run import judged_photos
from carvision.evaluation.select import DataChoice, compose_data, read_photos
from carvision.inference import model_file
from carvision.inference.model_file import LoadedClassifier
from carvision.inference.predictor import Predictor

NUM_SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Judged:
    """The photos of one split with a known label, and what the network predicts for them."""

    table: Table
    predictions: Predictions


@dataclass(frozen=True)
class RunResults:
    """A run's model and its predictions.

    folder: of the model. about: its model.json. judged: {"val", "test"}, without those that have no photos. split: the
    one whose metrics are shown: test, else val. measured, heads: its metrics, and the results of each head with
    classes. train: the table of the training photos. device: as given. bad: {path: reason} of unusable photos.
    """

    folder: Path
    model: LoadedClassifier
    labels: dict[str, LabelDescription]
    chosen: DataChoice
    table: Table
    judged: dict[str, Judged]
    split: str
    measured: Measured
    heads: dict[str, HeadResult]
    device: str
    bad: dict[str, str]

    @property
    def about(self) -> dict:
        """The contents of model.json."""
        return dict(self.model.about)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the network's photos are read."""
        return self.model.preprocessing

    @property
    def train(self) -> Table:
        """The training photos."""
        return self.table.of_split("train")

    @property
    def main_head(self) -> str | None:
        """The head with most classes, by which the page judges the model; None if all heads are numbers."""
        return max(self.heads, key=lambda head: len(self.labels[head]["ids"]), default=None)


def gather(run: Path, overrides: list[str], device: str = "auto") -> RunResults:
    """Load a run's model and predict its validation and test photos.

    overrides: of the data group, such as data.root=<where the photos are now>. The temperature of the model is used,
    or fitted to the validation photos and stored if it has none.
    """
    model = model_file.load(run)
    predictor = Predictor([model], "none")
    labels = {name: predictor.about["labels"][name] for name in predictor.labels}
    chosen = compose_data(predictor.about, overrides)
    folder = model_file.find_model(run)[0]
    table, is_run_split = read_photos(chosen, list(labels), "all", folder / "splits.csv")
    judged, bad = {}, {}
    for split in ("val", "test"):
        if (table.rows["split"] == split).any():
            photos, matched = judged_photos(table.of_split(split), labels, "id", {})
            predictions, unusable = predict_table(predictor, photos, matched.targets, chosen.data, device, split)
            assert predictions is not None  # one process
            judged[split] = Judged(photos, predictions)
            bad |= unusable
    split = "test" if "test" in judged else "val"
    val = judged["val"].predictions if "val" in judged else None
    choose_temperature(predictor, "stored", "test", chosen.as_in_training, is_run_split, lambda: val, run)
    temperature = dict(predictor.temperature)
    judged = {
        name: Judged(each.table, replace(each.predictions, temperature=temperature)) for name, each in judged.items()
    }
    predictions, rule = judged[split].predictions, predictor.about["decoding"]
    loss = evaluation_loss(predictor.about, averages=False)
    losses, weights = photo_losses(predictions, labels, loss), head_weights_of(labels, loss)
    measured = measure(predictions, labels, rule, losses, weights, NUM_SAMPLES)
    heads = head_results(predictions, labels, rule)
    return RunResults(folder, model, labels, chosen, table, judged, split, measured, heads, device, bad)
