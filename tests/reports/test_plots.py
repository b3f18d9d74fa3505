"""The curves of a run: only metrics that say something, and Keras' way of counting only where it is wanted."""

import pandas as pd
import pytest

from carvision.reports.plots import plot_curves


def history(heads: list[str]) -> pd.DataFrame:
    names = ("loss", "top1", "top3", "top5", "precision", "precision_at50", "recall", "recall_at50", "auc", "auc_keras")
    columns = [f"{split}/{head}/{name}" for split in ("train", "val") for head in heads for name in names]
    return pd.DataFrame({"epoch": [0, 1], **{name: [0.4, 0.5] for name in ["train/loss", "val/loss", *columns]}})


@pytest.mark.parametrize("keras", [False, True])
def test_panels_say_something_and_dashes_are_only_keras(tmp_path, figures, keras):
    plot_curves(history(["make", "model"]), tmp_path, {"make": 4, "model": 6}, keras)
    shown = [axes for axes in figures[-1].axes if axes.get_visible()]
    titles = {axes.get_title(loc="left"): len(axes.lines) for axes in shown}
    per_metric, both = 2, 4 if keras else 2  # training and validation
    assert titles == {
        "make: top-3 accuracy": per_metric, "make: precision": both, "make: recall": both, "make: AUC": both,
        "model: top-3 accuracy": per_metric, "model: top-5 accuracy": per_metric, "model: precision": both,
        "model: recall": both, "model: AUC": both,
    }  # fmt: skip
    assert ("Keras" in figures[-1]._suptitle.get_text()) == keras
