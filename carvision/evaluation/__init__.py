"""Evaluate a network on photos with known labels: metrics and calibration, as pure functions of its predictions."""
