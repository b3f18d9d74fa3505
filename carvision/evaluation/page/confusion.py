"""The confusion matrix of a page: what is confused stands together, and each cell knows its photos."""

import numpy as np
import pandas as pd

from carvision.data.table import LabelDescription
from carvision.evaluation.metrics import HeadResult, class_order
from carvision.evaluation.predict import Predictions

MAX_PHOTOS = 5  # of a cell, whose paths the page names
MAX_PATHS = 10_000  # of all cells
MAX_CLUSTERED = 3000  # classes up to which they are ordered by similarity: the distances of more take too much memory
MAX_OPTIMAL = 300  # up to which the order of the leaves is the best one


def similar_order(cells: pd.DataFrame, num_classes: int) -> np.ndarray:
    """Return the classes ordered so that those that are confused stand together, int64 (C,).

    cells: columns true, predicted, photos. By average linkage of the share of photos that two classes exchange
    (scipy.cluster.hierarchy); classes that are never confused keep their order, at the end.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    wrong = cells[cells["true"] != cells["predicted"]]
    confused = np.unique(wrong[["true", "predicted"]].to_numpy())
    if len(confused) < 3 or len(confused) > MAX_CLUSTERED:
        return np.concatenate([confused, np.setdiff1d(np.arange(num_classes), confused)])
    photos = np.bincount(cells["true"], cells["photos"], num_classes) + np.bincount(
        cells["predicted"], cells["photos"], num_classes
    )
    index = np.full(num_classes, -1)
    index[confused] = np.arange(len(confused))
    shares = np.zeros((len(confused), len(confused)))
    for true, predicted, count in wrong[["true", "predicted", "photos"]].itertuples(index=False):
        share = 2 * count / (photos[true] + photos[predicted])
        shares[index[true], index[predicted]] += share
        shares[index[predicted], index[true]] += share
    distances = squareform(
        1 - np.minimum(shares, 1) * (1 - np.eye(len(confused))) - np.eye(len(confused)), checks=False
    )
    tree = linkage(distances, "average")
    if len(confused) <= MAX_OPTIMAL:
        tree = optimal_leaf_ordering(tree, distances)
    return np.concatenate([confused[leaves_list(tree)], np.setdiff1d(np.arange(num_classes), confused)])


def confusion_data(predictions: Predictions, labels: dict[str, LabelDescription], head: str, part: HeadResult) -> dict:
    """Return what the page's script draws: names, two orders, cells [true, predicted, photos], paths of wrong photos.

    orders: "similar" by what is confused, "name" by parent and name. paths: {"true,predicted": [path, ...]}.
    """
    known = np.flatnonzero(predictions.known(head).numpy())
    targets, guesses = predictions.targets[head][known].tolist(), part.predicted[known].tolist()
    paths: dict[str, list[str]] = {}
    total = 0
    for row, true, predicted in zip(known.tolist(), targets, guesses, strict=True):
        if true != predicted and total < MAX_PATHS:
            listed = paths.setdefault(f"{true},{predicted}", [])
            if len(listed) < MAX_PHOTOS:
                listed.append(predictions.paths[row])
                total += 1
    return {
        "names": list(labels[head]["names"]),
        "orders": {
            "similar": similar_order(part.cells, len(labels[head]["ids"])).tolist(),
            "name": class_order(head, labels).tolist(),
        },
        "cells": part.cells[["true", "predicted", "photos"]].to_numpy().tolist(),
        "paths": paths,
    }
