"""A trained network behind HTTP: photos in, classes, heat maps, embeddings and neighbours out (carvision.serve)."""
