"""Metrics of an epoch: counters that are summed over steps and processes, and the metrics computed from them."""

from carvision.system.quick_imports import import_metrics

import_metrics()  # before a module of this package imports torchmetrics the slow way

from carvision.metrics.auc import ScoreHistograms  # noqa: E402
from carvision.metrics.epoch import EpochMetrics, JointMetrics, metric_names  # noqa: E402
from carvision.metrics.heads import HeadMetrics, NumberMetrics  # noqa: E402

__all__ = ["EpochMetrics", "HeadMetrics", "JointMetrics", "NumberMetrics", "ScoreHistograms", "metric_names"]
