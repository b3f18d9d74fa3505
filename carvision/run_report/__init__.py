"""Report on one run, on one page: how good it is, where it fails and why."""
