"""Nearest neighbours of embeddings, and what they tell of a network: retrieval and k-NN classification."""
