"""How far a network's confidence can be trusted: the temperature that corrects it, reliability, selective accuracy, and
the operating points: above which probability to believe it."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from carvision.data.table import UNKNOWN, LabelDescription
from carvision.evaluation.predict import Predictions
from carvision.inference import model_file
from carvision.inference.description import OperatingPoint, read_description
from carvision.inference.model_file import parents_of
from carvision.inference.predictor import Predictor
from carvision.models.decoding import decode

log = logging.getLogger(__name__)

NUM_BINS = 15  # as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
BLOCK = 1 << 22  # logits processed at a time
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
ACCURACIES = (0.8, 0.9, 0.95, 0.98, 0.99)  # of the operating points
MIN_ANSWERS = 20  # photos by which a threshold is chosen, at least


def choose_temperature(
    predictor: Predictor,
    mode: str,
    split: str,
    as_in_training: bool,
    is_run_split: bool | None,
    predict_val: Callable[[], Predictions | None],
    run: Path,
) -> list[str]:
    """Set predictor.temperature; return notes for the report. The run's own is stored, with its operating points.

    mode: "stored" uses the model's temperature and fits one if it has none, "fit" always fits, "none" uses 1.
    as_in_training: the photos are read as in training, as those were that the stored temperature was fitted on.
    is_run_split: the split is the run's (False: photos of it are missing, None: it is another). predict_val: returns
    the predictions of the validation photos; None in processes other than the first, and if there are none.
    """
    about = predictor.about
    stored = not predictor.averages and "temperature" in about
    can_store = as_in_training and is_run_split is True and not predictor.averages
    if mode == "none":
        return ["no temperature: the probabilities are as the network gives them"]
    fits = mode == "fit" or not stored or not (as_in_training or is_run_split is None)
    if not fits and (not can_store or "operating_points" in about):
        return []
    val = predict_val() if is_run_split is not None else None
    if val is None:
        return [] if stored else ["no temperature was fitted to these probabilities"]
    if fits:
        _fit(predictor, val)
    if can_store:
        calibrated = replace(val, temperature=predictor.temperature)
        _store(run, predictor.temperature, operating_points_of(calibrated, about["labels"], about["decoding"]))
    return ["the temperature was fitted on photos that are among these"] if fits and split in ("val", "all") else []


def _fit(predictor: Predictor, val: Predictions) -> None:
    """Set predictor.temperature to that of the validation photos."""
    predictor.temperature = {
        name: fit_temperature(val.logits[name][val.valid], val.targets[name][val.valid]) for name in predictor.classes
    }
    text = ", ".join(f"{name} {value:.2f}" for name, value in predictor.temperature.items())
    log.info("temperature on %s validation photos: %s", f"{len(val.paths):,}", text)


def _store(run: Path, temperature: dict[str, float], points: dict[str, list[OperatingPoint]]) -> None:
    """Write the temperature and the operating points into the run's model.json; log a warning if that fails."""
    folder, file = model_file.find_model(run)
    try:
        described = read_description(file)
        model_file.write_description(folder, {**described, "temperature": temperature, "operating_points": points})
    except OSError as error:
        log.warning("%s: the temperature can't be stored there (%s); it serves this evaluation", file, error.strerror)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T between 0.05 and 20 for which softmax(logits / T) has the smallest negative log likelihood.

    logits (N, C); targets int64 (N,), UNKNOWN is ignored. Guo et al. 2017, section 4.2. If every photo is right, the
    optimum is T = 0, with which the first mistake elsewhere would cost without bound; such photos can't determine a
    temperature, and 1 is returned. The same holds without known photos and for a single class.
    """
    known = targets != UNKNOWN
    logits, targets = logits[known], targets[known]
    if not len(targets) or logits.shape[1] < 2 or not torch.isfinite(logits).all():
        log.warning("no temperature can be fitted to %d photos with %d logits each; it is 1", *logits.shape)
        return 1.0
    if (logits.argmax(dim=1) == targets).all():
        log.warning(
            "all of %s photos are right, so that they can't determine a temperature; it is 1", f"{len(targets):,}"
        )
        return 1.0
    # The likelihood is concave in 1 / T, so that it has one maximum, also over log T.
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(
        lambda log_t: _nll(logits, targets, math.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    temperature = math.exp(found.x)
    if not MIN_TEMPERATURE * 1.001 < temperature < MAX_TEMPERATURE / 1.001:
        log.warning("the temperature of %s photos is at its bound, %.4g", f"{len(targets):,}", temperature)
    return temperature


def _nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the mean negative log likelihood of softmax(logits / temperature), in float64."""
    total = 0.0
    step = max(1, BLOCK // logits.shape[1])
    for part, part_targets in zip(logits.split(step), targets.split(step), strict=True):
        part = part.double() / temperature
        total += float((part.logsumexp(dim=1) - part.gather(1, part_targets[:, None])[:, 0]).sum())
    return total / len(targets)


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin index of each confidence, int64 (N,); bins have equal width and include only their upper edge."""
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    return np.searchsorted(edges, np.asarray(confidence, np.float64), side="left")


def reliability(probs: Tensor, targets: Tensor) -> pd.DataFrame:
    """Tabulate the probability of the most probable class by bins: low, high, photos, confidence (mean), accuracy.

    probs (N, C); targets int64 (N,), all known. Confidence and accuracy are NaN in an empty bin.
    """
    confidence, likeliest = (values.numpy() for values in probs.max(dim=1))
    right = likeliest == targets.numpy()
    bins = bin_of(confidence)
    photos = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, NUM_BINS) / photos for values in (confidence.astype(float), right)]
    low = np.arange(NUM_BINS) / NUM_BINS
    return pd.DataFrame(
        {"low": low, "high": low + 1 / NUM_BINS, "photos": photos, "confidence": means[0], "accuracy": means[1]}
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error: |accuracy - confidence|, weighted by photos (Guo et al. 2017, eq. 3)."""
    distance = (bins["accuracy"] - bins["confidence"]).abs()
    return float((distance.fillna(0) * bins["photos"]).sum() / bins["photos"].sum()) if bins["photos"].any() else np.nan


def accuracy_by_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy on the k most confident photos, and their lowest confidence; float64 (N,) each, k = 1..N.

    Photos of equal confidence can't be ranked: each counts with their mean, as if their order were random.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order].astype(np.float64)
    _, group = np.unique(-sorted_confidence, return_inverse=True)
    mean = np.bincount(group, right[order]) / np.bincount(group)
    return np.cumsum(mean[group]) / np.arange(1, len(order) + 1), sorted_confidence


def coverage_table(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Return one row for each of COVERAGES: coverage, photos (rounded up), accuracy on them, threshold.

    threshold: the counted photos have at least this confidence; others that equal it exactly would pass it, too.
    """
    accuracy, sorted_confidence = accuracy_by_coverage(confidence, right)
    counts = [math.ceil(share * len(accuracy)) for share in COVERAGES]
    last = np.array(counts) - 1
    return pd.DataFrame(
        {"coverage": COVERAGES, "photos": counts, "accuracy": accuracy[last], "threshold": sorted_confidence[last]}
    )


def area_under_risk(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the mean of 1 - accuracy over all coverages (AURC, Geifman et al. 2019).

    0 is best; an uninformative confidence gives 1 - accuracy.
    """
    accuracy, _ = accuracy_by_coverage(confidence, right)
    return float(1 - accuracy.mean())


class Answers(NamedTuple):
    """What a network answers for N photos, and how sure it is. predicted: int64 (N,), of all photos. confidence
    float32, right bool (n,): of those whose class is known."""

    predicted: Tensor
    confidence: np.ndarray
    right: np.ndarray


def answers_of(predictions: Predictions, labels: dict[str, LabelDescription], rule: str) -> dict[str, Answers]:
    """Return the answers of the heads with classes of which some photo's class is known. rule: the decoding rule."""
    heads = [head for head, label in labels.items() if "ids" in label]
    decoded, answers = decode({head: predictions.logits[head] for head in heads}, parents_of(labels), rule), {}
    for head in heads:
        known = predictions.known(head)
        if known.any():
            guess = decoded[head][known]
            confidence = predictions.probs(head)[known].gather(1, guess[:, None])[:, 0].numpy()
            answers[head] = Answers(decoded[head], confidence, (guess == predictions.targets[head][known]).numpy())
    return answers


def accuracy_above(confidence: np.ndarray, right: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy of the photos with at least each confidence, NaN without any, and their number; (T,) each.

    A confidence of NaN is below every threshold.
    """
    order = np.argsort(confidence, kind="stable")[: np.count_nonzero(~np.isnan(confidence))]  # NaN comes last
    below = np.searchsorted(confidence[order], thresholds, side="left")
    num, num_right = len(order) - below, np.append(0, np.cumsum(right[order]))
    with np.errstate(invalid="ignore"):
        return (num_right[-1] - num_right[below]) / num, num


def threshold_for(confidence: np.ndarray, right: np.ndarray, accuracy: float, min_answers: int) -> float | None:
    """Return the lowest confidence from which on this share of the photos is right, None if there is none.

    min_answers: photos with that confidence, at least. The accuracy is that of all photos above the threshold, not of
    those close to it.
    """
    thresholds = np.unique(confidence[~np.isnan(confidence)])
    reached, num = accuracy_above(confidence, right, thresholds)
    enough = thresholds[(reached >= accuracy) & (num >= min_answers)]
    return float(enough[0]) if len(enough) else None


def operating_points_of(
    predictions: Predictions, labels: dict[str, LabelDescription], rule: str
) -> dict[str, list[OperatingPoint]]:
    """Return the operating points of each head with classes, for those of ACCURACIES that its answers reach.

    An accuracy of 0.99 takes 100 answers: with fewer it can't be told from 1.
    """
    points: dict[str, list[OperatingPoint]] = {head: [] for head, label in labels.items() if "ids" in label}
    for head, (_, confidence, right) in answers_of(predictions, labels, rule).items():
        for accuracy in ACCURACIES:
            min_answers = max(MIN_ANSWERS, round(1 / (1 - accuracy)))
            threshold = threshold_for(confidence, right, accuracy, min_answers)
            if threshold is not None:
                coverage = float((confidence >= threshold).mean())
                points[head].append({"accuracy": accuracy, "threshold": threshold, "coverage": coverage})
    return points
