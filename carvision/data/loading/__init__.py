"""From a Table's split to batches: datasets, samplers and data loaders."""
