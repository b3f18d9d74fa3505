"""A trained network over HTTP: the API and the page of carvision serve."""
