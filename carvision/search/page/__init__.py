"""The page of a search, search.html: its charts, and the page."""
