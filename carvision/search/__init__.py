"""Searching the values of a training: the space, the study that many processes share, and what came of it."""
