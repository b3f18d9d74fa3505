"""Metrics of an epoch: counters that are summed step by step and over processes, and the figures made of them."""

from carvision.system.quick_imports import import_metrics

import_metrics()  # before the modules here import torchmetrics in their own, slow way

from carvision.metrics.auc import ScoreHistograms  # noqa: E402
from carvision.metrics.epoch import EpochMetrics, JointMetrics, metric_names  # noqa: E402
from carvision.metrics.heads import HeadMetrics, NumberMetrics  # noqa: E402

__all__ = ["EpochMetrics", "HeadMetrics", "JointMetrics", "NumberMetrics", "ScoreHistograms", "metric_names"]
