"""Report a search: tables, plots, an HTML page."""
