"""One start of a run: its folder, resuming, checkpoints, stopping."""
