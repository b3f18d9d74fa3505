"""Photos as vectors: embed them, find the nearest ones, and tell pairs of one class from pairs of two."""
