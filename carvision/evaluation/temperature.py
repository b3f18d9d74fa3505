"""Choose the temperature of an evaluation: the model's own, or one fitted on the run's validation photos."""

import logging
from collections.abc import Callable
from pathlib import Path

from carvision import portable
from carvision.description import read_description
from carvision.evaluation.calibration import fit_temperature
from carvision.evaluation.predictions import Predictions
from carvision.inference.predictor import Predictor

log = logging.getLogger(__name__)


def is_stored(predictor: Predictor) -> bool:
    """Return whether the model holds a temperature that applies to the predictor."""
    return not predictor.averages and "temperature" in predictor.about


def fit(predictor: Predictor, val: Predictions) -> dict[str, float]:
    """Fit {head: temperature} on validation photos."""
    fitted = {}
    for name in predictor.classes:
        known = val.known(name)
        fitted[name] = fit_temperature(val.logits[name][known], val.targets[name][known])
    text = ", ".join(f"{name} {value:.2f}" for name, value in fitted.items())
    log.info("temperature on %s validation photos: %s", f"{len(val.paths):,}", text)
    return fitted


def store(run: Path, temperature: dict[str, float]) -> None:
    """Write the temperature into the run's model.json; log a warning if that fails."""
    folder, file = portable.find_model(run)
    try:
        portable.write_description(folder, {**read_description(file), "temperature": temperature})
    except OSError as error:
        log.warning("%s: the temperature can't be stored there (%s); it serves this evaluation", file, error.strerror)


def choose_temperature(
    predictor: Predictor,
    mode: str,
    split: str,
    as_in_training: bool,
    is_run_split: bool | None,
    predict_val: Callable[[], Predictions | None],
    run: Path,
) -> list[str]:
    """Set predictor.temperature; return notes for the report.

    mode: "stored" uses the model's temperature and fits one if it has none, "fit" always fits, "none" uses 1.
    as_in_training: the photos are read as in training, as those were that the stored temperature was fitted on.
    is_run_split: the split is the run's (False: photos of it are missing, None: it is another). predict_val: returns
    the predictions of the validation photos; None in processes other than the first, and if there are none.
    """
    if mode == "none":
        return ["no temperature: the probabilities are as the network gives them"]
    if mode == "stored" and is_stored(predictor) and (as_in_training or is_run_split is None):
        return []
    val = predict_val() if is_run_split is not None else None
    if val is None:
        return [] if is_stored(predictor) else ["no temperature was fitted to these probabilities"]
    predictor.temperature = fit(predictor, val)
    if as_in_training and is_run_split and not predictor.averages:
        store(run, predictor.temperature)
    return ["the temperature was fitted on photos that are among these"] if split in ("val", "all") else []
