"""Photos to embeddings: which network, which photos, and how they lie on the disk. Used by embed, retrieve, verify."""
