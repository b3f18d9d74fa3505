"""carvision: classify cars, flowers or anything else fine-grained in photos."""

import os

TYPE_CHECKING = False  # type checkers assume True; `import carvision` alone imports nothing, not even typing
if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from carvision.inference.model_file import LoadedClassifier

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "LoadedClassifier":
    """Load the network of a run's folder, or of its model.safetensors, as a torch.nn.Module in eval mode. As in the
    commands, "latest" is the newest run below runs/, and a folder of runs stands for its newest. The model has

    model(images) -> {head: logits}          images float (B, 3, H, W) as model.transform gives them
    model.transform(PIL image, box=None) -> (3, H, W)   float, preprocessed as in training
    model.classes[head], model.class_ids[head]   names and ids, in the order of the logits
    model.decode(logits) -> {head: int64 (B,)}   the predicted classes, by the run's decoding rule
    model.probs(logits) -> {head: float32 (B, C)}   probabilities: softmax(logits / model.temperature[head])
    model.predict(photos, boxes=None, top=1) -> a dict for each photo, of plain values
    model.parents, model.crop_to_box, model.about   see LoadedClassifier

    Nothing in the files is executed. Raises InputError for a path without a model, and for one that is damaged or newer
    than this version.
    """
    from carvision.files.folders import find_run
    from carvision.inference import model_file

    return model_file.load(find_run(os.fspath(path)))


class Run:
    """Hold what a training left: its folder, and metrics, the contents of metrics.json ({} if it is not finished).

    metrics["test"]["class/top1"] is the accuracy of the head `class` on test photos, 0 to 1.
    """

    def __init__(self, folder: "Path", metrics: dict):
        self.folder, self.metrics = folder, metrics

    def load(self) -> "LoadedClassifier":
        """Load the trained network, as carvision.load does."""
        return load(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def fit(*overrides: str) -> Run:
    """Train as the command `carvision train` does, in a script or a notebook, and return the run:

    run = carvision.fit("data=folder", "data.root=photos", "trainer.max_epochs=5")
    run.folder, run.metrics["test"], run.load().predict(["photo.jpg"])

    overrides: the words of the command line. Trains in this process, on one device. Raises InputError for a wrong value
    and KeyboardInterrupt after Ctrl-C; fit(..., f"run.dir={folder}") then resumes the run.
    """
    from carvision.train import fit as train

    return Run(*train(list(overrides)))
