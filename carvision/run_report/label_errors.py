"""Find photos whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70)."""

import numpy as np
import pandas as pd

from carvision.data.table import UNKNOWN

ROUNDING = 1e-12  # below a mean of equal probabilities, which may be the last digit larger than each


def find_label_errors(probs: np.ndarray, targets: np.ndarray) -> pd.DataFrame:
    """Return the photos off the diagonal of the confident joint, the most likely errors first.

    probs: float (N, C), of a network that was not trained on these photos (validation or out-of-fold predictions), else
    it has learned their errors. targets: int (N,), the given labels; photos with UNKNOWN are left out.

    Columns: row, index into probs; given and suggested, codes; score, p(suggested) - p(given) in -1..1, which is
    negative where the given class is the likelier one, and yet less likely than is usual for photos of it.

    The threshold of a class is the mean probability of it over the photos that are labelled so (equation 2). A photo
    counts for the likeliest of the classes whose threshold it reaches (equation 1); for none if it reaches none. It is
    an error if that is not the given one. A class that no photo is labelled with is never suggested.
    """
    known = np.flatnonzero((targets != UNKNOWN) & np.isfinite(probs).all(axis=1))
    probs, targets = np.asarray(probs, np.float64)[known], np.asarray(targets)[known]
    num_classes = probs.shape[1]
    counts = np.bincount(targets, minlength=num_classes)
    sums = np.bincount(targets, probs[np.arange(len(targets)), targets], num_classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = np.where(probs >= thresholds - ROUNDING, probs, -np.inf)
    suggested = confident.argmax(axis=1) if len(probs) else targets
    is_error = (suggested != targets) & (confident.max(axis=1, initial=-np.inf) > -np.inf)
    rows = np.flatnonzero(is_error)
    score = probs[rows, suggested[rows]] - probs[rows, targets[rows]]
    order = np.argsort(-score, kind="stable")
    found = {"row": known[rows], "given": targets[rows], "suggested": suggested[rows], "score": score}
    return pd.DataFrame({name: values[order] for name, values in found.items()})
