"""The page of a run, report.html: how good the model is, where it fails and why."""
