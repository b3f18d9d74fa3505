"""Report an evaluation: tables, plots and files."""
