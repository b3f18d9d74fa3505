"""From photos on disk to batches: disk -> Table -> splits -> images -> batches."""
