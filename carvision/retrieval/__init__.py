"""Nearest neighbours of embeddings, and the metrics computed from them: retrieval and k-NN classification."""
