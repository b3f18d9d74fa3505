"""What a search has found: tables, plots, a page."""
