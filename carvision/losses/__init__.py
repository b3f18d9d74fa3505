"""Losses: pure functions of logits or embeddings and targets."""
