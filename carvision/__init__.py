"""carvision: classify cars, flowers or anything else fine-grained in photos."""

TYPE_CHECKING = False  # type checkers assume True; `import carvision` alone imports nothing, not even typing
if TYPE_CHECKING:
    from os import PathLike

    from carvision.inference.model_file import LoadedClassifier

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "LoadedClassifier":
    """Load the network of a run's folder, or of its model.safetensors, as a torch.nn.Module in eval mode, with

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
    from carvision.inference import model_file

    return model_file.load(path)
