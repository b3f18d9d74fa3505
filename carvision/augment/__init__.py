"""Augmentation on the device: functions on batches, composed by `pipeline`."""
