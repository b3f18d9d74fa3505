"""The steps of the augmentation: functions on batches, listed in `carvision.data.transforms.STEPS`."""
