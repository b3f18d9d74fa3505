"""Metrics of an epoch: counters that are summed step by step and over processes, and the figures made of them."""

from carvision.metrics.auc import ScoreHistograms
from carvision.metrics.epoch import EpochMetrics, JointMetrics, figure_names
from carvision.metrics.heads import HeadMetrics, NumberMetrics

__all__ = ["EpochMetrics", "HeadMetrics", "JointMetrics", "NumberMetrics", "ScoreHistograms", "figure_names"]
