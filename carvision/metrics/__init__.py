"""Metrics of an epoch: counters that are summed over steps and processes, and the metrics computed from them."""

from carvision.metrics.auc import ScoreHistograms
from carvision.metrics.epoch import EpochMetrics, JointMetrics, metric_names
from carvision.metrics.heads import HeadMetrics, NumberMetrics

__all__ = ["EpochMetrics", "HeadMetrics", "JointMetrics", "NumberMetrics", "ScoreHistograms", "metric_names"]
