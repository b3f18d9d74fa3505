"""Hyperparameter search: the space, the study that workers share, the workers, and the results."""
