"""Reports for people: tables, plots, summaries."""
