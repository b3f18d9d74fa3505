"""Compute, store and read embeddings of photos; shared by embed, retrieve and verify."""
